"""Runs every linter of the project, all of them even when one fails, and says which did.

Owns the order and the command lines; what each rule is stands in pyproject.toml and buf.yaml.
Runs in the project's environment and changes no file.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON_FOLDERS = tuple(
    folder for folder in ("services", "tests", "tools", "bench", "docs") if (ROOT / folder).is_dir()
)


@dataclass(frozen=True)
class Check:
    """One linter: its name in the summary and its command, run in the project's root."""

    name: str
    command: tuple[str, ...]


def git(*arguments: str) -> str | None:
    """What git answers, or None when it fails or is not there."""
    try:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def breaking_baseline() -> str | None:
    """The commit that the protos must not break, or None when there is none to compare with.

    Work not yet on main is compared with main's last commit. On main itself, with nothing changed
    in protos/, that would compare a thing with itself: then it is the commit before.
    """
    main = git("rev-parse", "--verify", "--quiet", "main") or git(
        "rev-parse", "--verify", "--quiet", "origin/main"
    )
    if main is None:
        return None
    unchanged = git("rev-parse", "HEAD") == main and not git(
        "status", "--porcelain", "--", "protos"
    )
    baseline = git("rev-parse", "--verify", "--quiet", f"{main}~1") if unchanged else main
    if baseline is None or not git("ls-tree", "--name-only", baseline, "protos/tollbook/"):
        return None
    return baseline


def checks() -> list[Check]:
    """All linters, the quick ones first."""
    found = [
        Check("ruff check", (str(BIN / "ruff"), "check", *PYTHON_FOLDERS)),
        Check("ruff format", (str(BIN / "ruff"), "format", "--check", *PYTHON_FOLDERS)),
        Check("buf lint", (str(BIN / "buf"), "lint")),
    ]
    baseline = breaking_baseline()
    if baseline is not None:
        against = f".git#ref={baseline}"
        found.append(Check("buf breaking", (str(BIN / "buf"), "breaking", "--against", against)))
    found += [
        Check("import rules", (str(BIN / "lint-imports"),)),
        Check("mypy --strict", (str(BIN / "python"), "-m", "mypy", *PYTHON_FOLDERS)),
    ]
    return found


def main() -> int:
    """Runs all; exit 1 if any failed."""
    failed: list[str] = []
    for check in checks():
        started = time.monotonic()
        done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        verdict = "ok" if done.returncode == 0 else "FAILED"
        print(f"{check.name:<14} {verdict:<7} {seconds:5.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(check.name)
            print((done.stdout + done.stderr).strip(), flush=True)
    if failed:
        print(f"lint: {', '.join(failed)} failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
