"""What compiled loops are kept for: the very sources that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel.jit import compiler, is_kept


def twice(number: Any) -> Any:
    return number + number


def test_a_loop_is_kept_when_it_was_called_and_until_a_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "limits.py"
    source.write_text("LIMIT = 1\n")
    made: Any = compiler([source])(twice)
    assert not is_kept(made)
    assert made(4) == 8
    assert is_kept(made)
    # As another process finds it.
    assert is_kept(compiler([source])(twice))
    source.write_text("LIMIT = 2\n")
    assert not is_kept(compiler([source])(twice))
