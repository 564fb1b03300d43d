"""Records gather behind a few that were read, and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ledger.adapters.partition import PartitionWriter
from ledger.adapters.source import Fetched, LastRead
from ledger.adapters.store import Head
from ledger.domain.columns import of_records


def fetched(records: int) -> Fetched:
    columns = of_records([(offset, 0, b"k", b"v") for offset in range(records)])
    return Fetched(0, columns, records, records)


class Held:
    """A log that is not written here."""

    head = Head(100, "usage-0", b"", 1, 0, 0, b"", b"")


class Source:
    """A partition that has nothing more; tells when it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def start(self, known_topic_id: bytes, last: LastRead | None) -> bytes:
        raise AssertionError((known_topic_id, last))

    async def fetch(self, offset: int) -> Fetched:
        self.asked.append(("fetch", offset))
        return fetched(0)

    async def close(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("records", "waits"),
    [(0, False), (1, True), (511, True), (512, False), (5_000, False)],
)
async def test_only_what_follows_a_few_records_is_waited_for(
    records: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()

    async def sleep(delay_s: float) -> None:
        source.asked.append(("wait", round(delay_s * 1000)))

    held: Any = Held()
    writer = PartitionWriter(held, source, 100, lambda name: None)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await writer._fetch_after(fetched(records))
    monkeypatch.undo()
    assert source.asked == [*([("wait", 10)] if waits else []), ("fetch", records)]
