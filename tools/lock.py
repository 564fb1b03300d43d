"""Resolves requirements/*.in and pins every package by version and hash: `make lock`.

Owns the locked files of requirements/. All profiles are resolved together first, so that any of
them can be installed beside any other; then each is written by itself under that one resolution.
Needs the network. No address of a package registry is ever written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.setup import REQUIREMENTS, installer

PROFILES = ("runtime", "local", "engine-cpu", "dev")
PYTHON_VERSION = "3.11"
HOST_FREE = ("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate")


def compile_requirements(uv: Path, sources: list[str], *options: str, out: Path) -> None:
    """Runs the resolver over `sources`, relative to requirements/, into `out`."""
    command = [str(uv), "pip", "compile", "--quiet", *sources, "--override", "overrides.txt"]
    command += ["--python-version", PYTHON_VERSION, *HOST_FREE, *options, "-o", str(out)]
    subprocess.run(command, cwd=REQUIREMENTS, check=True)


def main(options: list[str]) -> int:
    """Locks; `options` are the resolver's own, such as --upgrade-package NAME."""
    uv = installer()
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder) / "all.txt"
        # What is locked stays as it is unless an option asks for more.
        locked = [REQUIREMENTS / f"{profile}.txt" for profile in PROFILES]
        pins = {
            line.split(" ")[0]
            for path in locked
            if path.exists()
            for line in path.read_text().splitlines()
            if "==" in line and not line.startswith((" ", "#"))
        }
        everything.write_text("\n".join(sorted(pins)) + "\n")
        sources = [f"{profile}.in" for profile in PROFILES]
        compile_requirements(uv, sources, *options, out=everything)
        for profile in PROFILES:
            constraint = ("--constraint", str(everything), "--generate-hashes")
            compile_requirements(
                uv, [f"{profile}.in"], *constraint, out=REQUIREMENTS / f"{profile}.txt"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
