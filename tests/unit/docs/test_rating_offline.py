"""docs/rating-offline.md, run: its files written, its commands typed, its answers compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "rating-offline.md"
_BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fits(shown: str, printed: str) -> bool:
    """Whether an output is what the page shows, `...` standing for anything within a line."""
    parts = [re.escape(part) for part in shown.strip().split("...")]
    return re.fullmatch("[^\n]*".join(parts), printed.strip()) is not None


def test_the_page_says_what_happens(tmp_path: Path) -> None:
    environment = {**os.environ, "TOLLBOOK_HOME": str(tmp_path / "home")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = 0
    for name, language, text in _BLOCK.findall(PAGE.read_text()):
        if name:
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            continue
        if language != "console":
            pytest.fail(f"a block of {language!r} is run by nobody")
        for part in text.split("$ ")[1:]:
            command, _, shown = part.partition("\n")
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=240,
                check=False,
            )
            assert fits(shown, done.stdout), f"$ {command}\n{done.stdout}"
            ran += 1
    assert ran >= 8
