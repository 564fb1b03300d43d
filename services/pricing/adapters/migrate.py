"""The schema `pricing` and its role, as pricing's processes need them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kernel.migrations import Schema

SCHEMA: Final = Schema(
    name="pricing",
    role="tollbook_pricing",
    folder=Path(__file__).parent / "migrations",
    lock=0x70726963,  # "pric"
    rights=(
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pricing",
        "USAGE ON ALL SEQUENCES IN SCHEMA pricing",
    ),
)
