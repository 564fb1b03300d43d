"""A sealed segment's file gives its leaves back by position, and says when it is not that file."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.unit.ledger import builders

from kernel import leaf as leaf_format
from kernel.tiles import TILE_WIDTH, encode_bundle
from ledger.adapters import archive, leaves
from ledger.adapters.archive import GROUP_ENTRIES, Archive, ArchiveError, Sealed
from ledger.adapters.leaves import RUN_ENTRIES, LeafReader
from ledger.adapters.sealing import batch_of
from ledger.adapters.store import BrokenLogError
from ledger.domain import leafrun

START = 512
ENTRIES = GROUP_ENTRIES + 700
ROOT = bytes(range(32))


def leaf(position: int) -> bytes:
    value = builders.wrap(builders.event(f"r-{position}"), position)
    return leaf_format.encode(1, 0, position, 5, b"acme", value if position % 50 else b"poison")


def written(root: Path, end_root: bytes = ROOT, entries: int = ENTRIES) -> tuple[Archive, Sealed]:
    made = Archive(str(root))
    data = [leaf(at) for at in range(START, START + entries)]
    batches: list[pa.RecordBatch] = []
    for at in range(0, entries, GROUP_ENTRIES):
        part = data[at : at + GROUP_ENTRIES]
        batches.append(batch_of(leafrun.of_bundles(START + at, [encode_bundle(part)], len(part))))
    size, digest = made.write("usage-0/one.parquet", batches, {"end_root": end_root.hex()})
    content = (root / "usage-0" / "one.parquet").read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).digest())
    return made, Sealed(100, START, START + ENTRIES, "usage-0/one.parquet", digest, ROOT)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, Sealed]:
    return written(tmp_path_factory.mktemp("segments"))


@pytest.mark.parametrize(
    ("first", "end"),
    [
        (START, START + 3),
        (START + GROUP_ENTRIES - 2, START + GROUP_ENTRIES + 5),
        (START + ENTRIES - 1, START + ENTRIES + 100),
    ],
)
async def test_leaves_are_found_by_position(
    kept: tuple[Archive, Sealed], first: int, end: int
) -> None:
    files, sealed = kept
    run = await files.run(sealed, first, end)
    assert run.first == first
    # A run ends with its group; who asks on gets the rest.
    group_end = START + ((first - START) // GROUP_ENTRIES + 1) * GROUP_ENTRIES
    assert run.end == min(end, group_end, sealed.end)
    assert run.leaves() == [leaf(at) for at in range(first, run.end)]


async def test_a_file_that_is_away_or_another_is_told_by_name(tmp_path: Path) -> None:
    files, sealed = written(tmp_path, end_root=bytes(32))
    with pytest.raises(ArchiveError, match=r"is not what was sealed.*" + sealed.sha256.hex()):
        await files.run(sealed, START, START + 1)
    files, sealed = written(tmp_path, entries=ENTRIES - 1)
    with pytest.raises(ArchiveError, match="is not what was sealed"):
        await files.run(sealed, START, START + 1)
    (tmp_path / sealed.file).unlink()
    with pytest.raises(ArchiveError, match=rf"{sealed.file}.*cannot be read"):
        await Archive(str(tmp_path)).run(sealed, START, START + 1)


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(ArchiveError, match="cannot hold segments"):
        Archive("no-such-scheme://somewhere")


class Tables:
    """Answers the queries of LeafReader as a database would that holds [0, entries)."""

    def __init__(self, entries: int, without: frozenset[int] = frozenset()) -> None:
        self.entries = entries
        self.without = without
        """Rows that are not there, by their first position."""
        self.asked = 0

    async def fetch(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        if query != leaves._ROWS:
            return []
        self.asked += 1
        _, first, end, *_ = arguments
        begin = first // TILE_WIDTH * TILE_WIDTH
        return [
            (at, TILE_WIDTH, encode_bundle([leaf(n) for n in range(at, at + TILE_WIDTH)]))
            for at in range(begin, min(end, self.entries), TILE_WIDTH)
            if at not in self.without
        ]


async def test_readers_share_whole_runs_and_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(4 * RUN_ENTRIES)
    reader = LeafReader(tables, Archive(str(tmp_path)))
    run = await reader.run(100, 0, 4 * RUN_ENTRIES)
    for _ in range(3):
        run = await reader.run(100, 0, 4 * RUN_ENTRIES)
        assert (run.first, run.end) == (0, RUN_ENTRIES)
    inside = await reader.run(100, 100, 105)
    assert inside.leaves() == [leaf(at) for at in range(100, 105)]
    assert tables.asked == 1
    # Room for two runs: the one read longest ago goes.
    monkeypatch.setattr(leaves, "KEPT_BYTES", 2 * len(run.data) + 100_000)
    for number in (1, 2, 1, 2):
        await reader.run(100, number * RUN_ENTRIES, 4 * RUN_ENTRIES)
    assert tables.asked == 3
    await reader.run(100, 0, 10)
    assert tables.asked == 4
    # The end of a log that still grows is not kept: it is read anew each time.
    tables.entries = 4 * RUN_ENTRIES - TILE_WIDTH
    for _ in range(2):
        await reader.run(100, 3 * RUN_ENTRIES, tables.entries)
    assert tables.asked == 6
    with pytest.raises(BrokenLogError, match="position 1000000 is missing"):
        await reader.run(100, 1_000_000, 1_000_001)


async def test_a_hole_in_the_rows_is_never_read_over(tmp_path: Path) -> None:
    reader = LeafReader(Tables(2_048, frozenset({512})), Archive(str(tmp_path)))
    assert (await reader.run(100, 10, 2_048)).end == 512
    with pytest.raises(BrokenLogError, match="position 512 is missing"):
        await reader.run(100, 512, 2_048)
    with pytest.raises(BrokenLogError, match="position 600 is missing"):
        await reader.leaves(100, 600, 700)
    with pytest.raises(BrokenLogError, match="position 512 is missing"):
        await reader.leaves(100, 0, 2_048)


async def test_many_readers_at_once_get_the_same(kept: tuple[Archive, Sealed]) -> None:
    files, sealed = kept
    runs = await asyncio.gather(
        *(files.run(sealed, START + at, START + at + 2) for at in range(0, 60, 3))
    )
    assert all(run.leaves() == [leaf(run.first), leaf(run.first + 1)] for run in runs)


def test_every_column_is_told_in_the_schema() -> None:
    run = leafrun.of_bundles(0, [encode_bundle([leaf(1), leaf(50)])], 2)
    first, second = batch_of(run).to_pylist()
    assert first["account_id"] == "acme"
    assert first["served_model"] == "tiny"
    assert first["event_time_ns"] == builders.NOON_S * 10**9
    assert (second["account_id"], second["served_model"], second["event_time_ns"]) == (None,) * 3
    assert first["leaf"] == leaf(1)
    assert batch_of(run).schema == archive.SCHEMA
