"""The schema `ledger` and its role, as the ledger's processes need them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kernel.migrations import Schema

SCHEMA: Final = Schema(
    name="ledger",
    role="tollbook_ledger",
    folder=Path(__file__).parent / "migrations",
    lock=0x6C656467,  # "ledg"
    # The migrations grant table by table: the log is for appending alone.
    rights=("SELECT ON schema_version",),
)
