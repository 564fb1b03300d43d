"""Builds the environment of a checkout: installer, packages, broker, generated code.

Owns .venv, with the two small files it adds to it: a path entry for services/ and gen/, and the
`tollbook` command. Runs under the system's Python with nothing but the standard library, as root or
not, and without a network when everything is cached. What it needs is read from requirements/ and
deploy/kafka/jars.lock; it never decides a version. A second run finds nothing to do by a stamp.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PROFILES = ("runtime", "local", "engine-cpu", "dev")
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "tollbook-setup.json"
SUPPORTED = ((3, 12), (3, 11))
PACKAGES_DOWNLOAD = "about 2.4 GB"
PACKAGES_ON_DISK_GB = 6.5

sys.path.insert(0, str(ROOT / "services"))
sys.dont_write_bytecode = True


class SetupError(Exception):
    """What is missing, and what to do about it."""


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def use_supported_python() -> None:
    """Goes on under a supported Python when the one at hand is not, or raises SetupError."""
    if sys.version_info[:2] in SUPPORTED:
        return
    for major, minor in SUPPORTED:
        other = shutil.which(f"python{major}.{minor}")
        if other is not None:
            os.execv(other, [other, *sys.argv])
    raise SetupError(
        f"this is Python {sys.version.split()[0]}; Tollbook needs 3.11 or 3.12. "
        "Put python3.11 or python3.12 on PATH, or say which: make PYTHON=/path/to/python3.12"
    )


def run(command: list[str], failure: str, **options: object) -> None:
    """Runs a command, its output shown; raises SetupError(failure) when it fails."""
    done = subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SetupError(f"{failure} (`{Path(command[0]).name}` ended with {done.returncode})")


def installer() -> Path:
    """The pinned uv, from the shared cache; fetched by pip, hashes checked, the first time."""
    from tollbook.cache import cached_folder

    lock = REQUIREMENTS / "bootstrap.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = cached_folder(f"installer-{digest}", lambda into: _fetch_installer(lock, into))
    return folder / "bin" / "uv"


def _fetch_installer(lock: Path, into: Path) -> None:
    say("  fetching uv, the installer of the rest (25 MB)")
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
        # No pip beside this Python: a throw-away environment brings its own.
        scratch = into / "pip"
        run(
            [sys.executable, "-m", "venv", str(scratch)],
            "this Python has neither pip nor venv; on Debian: apt-get install python3-venv",
        )
        pip = [str(scratch / "bin" / "python"), "-m", "pip"]
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    run(
        [*pip, "install", *options, "--target", str(into), "-r", str(lock)],
        "uv could not be fetched; check the network",
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
    )
    shutil.rmtree(into / "pip", ignore_errors=True)


def inputs() -> str:
    """A hash of all that the environment is a function of, this checkout's place included."""
    from tollbook.cache import cache_home

    digest = hashlib.sha256()
    for fact in (str(ROOT), str(cache_home()), sys.version, os.path.realpath(sys.executable)):
        digest.update(fact.encode() + b"\0")
    files = [REQUIREMENTS / f"{name}.txt" for name in ("bootstrap", *PROFILES)]
    files += [ROOT / "deploy" / "kafka" / "jars.lock", Path(__file__)]
    for path in files:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_ready(wanted: str) -> bool:
    """Whether an earlier run built exactly this, and what it used is still there."""
    try:
        stamp = json.loads(STAMP.read_text())
        return bool(
            stamp["inputs"] == wanted
            and PYTHON.exists()
            and all(Path(path).exists() for path in stamp["uses"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def install_packages(uv: Path) -> None:
    """Makes .venv hold exactly the locked packages, every hash checked."""
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    environment.pop("PYTHONHOME", None)
    if not _is_venv_of_this_python():
        run(
            [str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)],
            f"{VENV} could not be made; is the folder writable?",
            env=environment,
        )
    locks = [str(REQUIREMENTS / f"{profile}.txt") for profile in PROFILES]
    sync = [str(uv), "pip", "sync", "--require-hashes", "--python", str(PYTHON), *locks]
    # From the cache alone if that is enough: quick, and needs no network.
    offline = subprocess.run(
        [*sync, "--offline", "--quiet"], env=environment, capture_output=True, check=False
    )
    if offline.returncode == 0:
        say("  all of them were in uv's cache")
        return
    _require_disk(VENV, PACKAGES_ON_DISK_GB)
    say(f"  downloading {PACKAGES_DOWNLOAD}, {PACKAGES_ON_DISK_GB} GB on disk; once a machine")
    run(sync, "packages could not be installed; see above", env=environment)


def _is_venv_of_this_python() -> bool:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return PYTHON.exists() and (VENV / "lib" / f"python{version}" / "site-packages").is_dir()


def _require_disk(place: Path, needed_gb: float) -> None:
    free_gb = shutil.disk_usage(place).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(f"{place} has {free_gb:.1f} GB free; {needed_gb} GB are needed")


def link_checkout() -> None:
    """Puts services/ and gen/ on the environment's path, and `tollbook` beside its python."""
    (packages,) = (VENV / "lib").glob("python3.*/site-packages")
    write(packages / "tollbook-checkout.pth", f"{ROOT / 'services'}\n{ROOT / 'gen'}\n")
    # A shell script: a path longer than the kernel's limit for #! cannot hurt it.
    command = VENV / "bin" / "tollbook"
    write(command, '#!/bin/sh\nexec "$(dirname "$0")/python" -m tollbook.cli "$@"\n')
    command.chmod(0o755)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)


@contextmanager
def only_one() -> Iterator[None]:
    """One set-up at a time in a checkout; the lock is on the folder of requirements itself."""
    descriptor = os.open(REQUIREMENTS, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up runs in this checkout; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def build(wanted: str) -> None:
    """All steps of a set-up, in order, and the stamp when all are done."""
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    say(f"Setting up {ROOT} (the first time takes a while; after that, well under a second)")
    say("[1/4] installer")
    uv = installer()
    count = sum(
        line[0].isalnum() and "==" in line
        for profile in PROFILES
        for line in (REQUIREMENTS / f"{profile}.txt").read_text().splitlines()
        if line
    )
    say(f"[2/4] Python packages: {count} pins in {len(PROFILES)} profiles")
    install_packages(uv)
    link_checkout()
    say("[3/4] broker: Apache Kafka, 45 jars, 44 MB unless this machine has them")
    # Not by -m: the package imports this module too, of which Python warns whoever sets up.
    fetch = [str(PYTHON), "-c", "from tollbook.stack.jars import main; main()"]
    jars = _output(fetch, "the broker could not be fetched")
    say("[4/4] generated code")
    generate_protos()
    write(STAMP, json.dumps({"inputs": wanted, "uses": [jars, str(VENV / "bin" / "tollbook")]}))
    say(f"Ready, in {time.monotonic() - started:.0f} s.")


def generate_protos() -> None:
    """Brings gen/ up to date with protos/; it knows by itself when there is nothing to do."""
    run(
        [str(PYTHON), str(ROOT / "tools" / "protos.py")], "protos/ could not be compiled; see above"
    )


def _output(command: list[str], failure: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(failure)
    return done.stdout.strip()


def main() -> int:
    """Sets the checkout up, or finds that it is. Exit 1 with one clear line when it cannot."""
    try:
        use_supported_python()
        wanted = inputs()
        if not is_ready(wanted):
            with only_one():
                if not is_ready(wanted):
                    build(wanted)
        generate_protos()
    except SetupError as problem:
        print(f"set-up: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: stopped; run it again, it goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
