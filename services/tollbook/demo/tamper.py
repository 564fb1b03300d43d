"""Flip one byte of one charge in a copy of an export."""

from __future__ import annotations

import shutil
from pathlib import Path


def flip_one_byte(export: Path, copy: Path) -> Path:
    """Copy the export and flip a byte inside a usage log's entry; gives the file changed."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(export, copy)
    bundles = sorted(
        path for path in (copy / "logs").glob("usage-*/tile/entries/**/*") if path.is_file()
    )
    target = max(bundles, key=lambda path: path.stat().st_size)
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 0x01
    target.write_bytes(data)
    return target.relative_to(copy)
