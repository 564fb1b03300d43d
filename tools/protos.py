"""Generates Python from protos/ into gen/: messages, gRPC stubs, and their types.

Owns gen/ whole. It is written beside its place and moved in, so that nobody imports half of it,
and it is left alone while neither a .proto, nor the generators, nor this file have changed. Runs in
the project's environment (it needs grpcio-tools and mypy-protobuf) and imports nothing of ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
STAMP = ".stamp"


def digest_of_inputs(protos: Path) -> str:
    """A hash of all that the generated code is a function of."""
    digest = hashlib.sha256()
    for distribution in ("grpcio-tools", "mypy-protobuf"):
        digest.update(f"{distribution}=={version(distribution)}\n".encode())
    for path in [Path(__file__), *sorted(protos.rglob("*.proto"))]:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def generate(protos: Path, out: Path) -> None:
    """Runs protoc over every file of `protos` into the empty folder `out`.

    The stubs' types come from mypy-protobuf, not from protoc's own --pyi_out: only they tell a
    service's synchronous methods from its asynchronous ones.
    """
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    if not sources:
        raise SystemExit(f"no .proto file under {protos}")
    scripts = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={protos}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *sources,
    ]
    subprocess.run(command, check=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on a folder itself: no lock file to leave behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_folder(new: Path, old: Path) -> None:
    """Puts `new` where `old` is. Between the two renames `old` is absent, for microseconds."""
    aside = new.with_name(new.name + ".old")
    if old.exists():
        os.rename(old, aside)
    os.rename(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def main() -> int:
    """Generates when something changed; says what it did."""
    # Two people may run `make` in one checkout at the same moment: one generates, the other waits.
    with locked(PROTOS):
        wanted = digest_of_inputs(PROTOS)
        stamp = GEN / STAMP
        if stamp.is_file() and stamp.read_text() == wanted:
            return 0
        fresh = Path(tempfile.mkdtemp(prefix=".gen-", dir=ROOT))
        try:
            generate(PROTOS, fresh)
            (fresh / STAMP).write_text(wanted)
            fresh.chmod(0o755)
            replace_folder(fresh, GEN)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        print(f"protos: generated {len(list(GEN.rglob('*.py')))} modules into gen/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
