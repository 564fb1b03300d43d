"""Numbered SQL files: one of each number, and none left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.migrations import MigrationError, Schema
from ledger.adapters.migrate import SCHEMA as LEDGER
from pricing.adapters.migrate import SCHEMA as PRICING


def schema(folder: Path, *names: str) -> Schema:
    for name in names:
        (folder / name).write_text(f"-- {name}")
    return Schema("a", "a_role", folder, 0, ())


@pytest.mark.parametrize("real", [LEDGER, PRICING], ids=["ledger", "pricing"])
def test_each_service_has_steps(real: Schema) -> None:
    steps = real.steps()
    # What is numbered from nothing is in order too.
    assert len(steps) == len(list(real.folder.iterdir())) > 0
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


def test_steps_come_in_order(tmp_path: Path) -> None:
    made = schema(tmp_path, "0002_b.sql", "0001_a.sql")
    assert made.steps() == [(1, "-- 0001_a.sql"), (2, "-- 0002_b.sql")]


@pytest.mark.parametrize(
    ("names", "next_one"),
    [
        (["0002_b.sql"], "0001"),
        (["0001_a.sql", "0003_c.sql"], "0002"),
        (["0001_a.sql", "0002_b.sql", "0002_c.sql"], "0003"),
        (["0001_a.sql", "2_b.sql"], "0002"),
        (["0001_a.sql", "0002.sql"], "0002"),
    ],
)
def test_a_number_twice_or_left_out_is_refused(
    tmp_path: Path, names: list[str], next_one: str
) -> None:
    with pytest.raises(MigrationError, match=f"name it {next_one}_WHAT_IT_DOES"):
        schema(tmp_path, *names).steps()


@pytest.mark.parametrize("name", ["", "gone"])
async def test_an_installation_without_its_files_changes_nothing_and_says_so(
    tmp_path: Path, name: str
) -> None:
    made = schema(tmp_path / name)
    for refused in (made.migrate("postgresql://nowhere", ""), made.check_version(None)):
        with pytest.raises(MigrationError, match=r"has no migrations of schema a: .* install"):
            await refused
