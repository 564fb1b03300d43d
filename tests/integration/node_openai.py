"""The official OpenAI package for Node, as npm installs it, once for a machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tollbook.cache import cached_folder

NODE = Path(__file__).resolve().parents[1] / "node"
_BIN = Path(sys.executable).parent


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, folder / name)
    subprocess.run(
        [_BIN / "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        env=_environment(),
        check=True,
        capture_output=True,
        timeout=300,
    )


def run(script: str, folder: Path, settings: dict[str, str], *arguments: str) -> str:
    """Run a script of tests/node beside the package; what it printed."""
    lock = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:12]
    installed = cached_folder(f"node-openai-{lock}", _install)
    (folder / "node_modules").symlink_to(installed / "node_modules")
    shutil.copy(NODE / script, folder / script)
    done = subprocess.run(
        [_BIN / "node", script, *arguments],
        cwd=folder,
        env={**_environment(), **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    return done.stdout
