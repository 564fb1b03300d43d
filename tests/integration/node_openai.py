"""The official OpenAI package for Node, as npm installs it, once for a machine.

npm wants a package.json and a lock; both are written here, so that the one version and its hash
stand in one place. The hash is the registry's own, and npm refuses other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tollbook.cache import cached_folder

VERSION: Final = "6.49.0"
INTEGRITY: Final = (
    "sha512-aYCc0C6L864eR6WSYIwQGyXriw/nIyZx0ObvhzOE"
    "Vuk0zoBDpynjSbrionWI7q65B5H8jJX0DXR9snEzM6bfPg=="
)
NODE = Path(__file__).resolve().parents[1] / "node"
_BIN = Path(sys.executable).parent
_PACKAGE: Final[dict[str, Any]] = {
    "name": "tollbook-node-callers",
    "private": True,
    "type": "module",
    "dependencies": {"openai": VERSION},
}


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def _install(folder: Path) -> None:
    lock = {
        "name": _PACKAGE["name"],
        "lockfileVersion": 3,
        "requires": True,
        "packages": {
            "": _PACKAGE,
            "node_modules/openai": {"version": VERSION, "integrity": INTEGRITY},
        },
    }
    for name, content in {"package.json": _PACKAGE, "package-lock.json": lock}.items():
        (folder / name).write_text(json.dumps(content))
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
    digest = hashlib.sha256(INTEGRITY.encode()).hexdigest()[:12]
    installed = cached_folder(f"node-openai-{digest}", _install)
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
