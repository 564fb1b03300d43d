"""The spool on a real disk: what is told is kept, whatever a crash leaves of the file."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.inference.spools import (
    SMALL,
    opened,
    progress,
    run_some,
    segments,
    settled,
    started,
)

from inference.adapters import spool_codec
from inference.adapters.spool import Spool
from inference.adapters.spool_segments import Limits, SpoolUnusable
from inference.app.recovery import recover
from inference.app.streams import Streams
from inference.domain import records
from inference.domain.journal import Contradiction, Journal, Ref
from kernel.clock import SystemClock
from tollbook.usage.v1 import usage_pb2 as usage

# The codec

TEXT = st.text(max_size=20)
ID = st.integers(0, 2**32 - 1)
BYTES = st.binary(max_size=40)
COUNTS = st.integers(0, 2**63)
OUTBOUND = st.builds(
    records.Outbound,
    partition=st.integers(0, 4095),
    key=TEXT,
    stream_id=TEXT,
    stream_seq=COUNTS,
    trace_id=BYTES,
    span_id=BYTES,
    value=BYTES,
    closes=st.booleans(),
)
ENGINE_COUNT = st.builds(
    records.EngineCount,
    engine_id=TEXT,
    generation_tokens=COUNTS,
    prompt_tokens=COUNTS,
    waste=st.dictionaries(st.integers(0, 9), COUNTS).map(lambda waste: dict(sorted(waste.items()))),
    final=st.booleans(),
    inferred_tokens=COUNTS,
)
RECORDS = st.one_of(
    st.builds(records.Booted, engine_id=TEXT),
    st.builds(
        records.Started,
        serial=COUNTS,
        account_id=TEXT,
        request_id=TEXT,
        body_digest=BYTES,
        template=BYTES,
        trace_id=BYTES,
        span_id=BYTES,
        prompt_tokens=ID,
        choices=ID,
    ),
    st.builds(
        records.Progress,
        serial=COUNTS,
        choice=ID,
        total_tokens=ID,
        delivered_tokens=ID,
        cached_tokens=st.integers(-1, 2**32 - 2),
        at_us=COUNTS,
        token_ids=st.lists(ID, max_size=9),
        text=TEXT,
    ),
    st.builds(records.Withdrawn, serial=COUNTS),
    st.builds(records.Noted, count=ENGINE_COUNT, outbound=st.none() | OUTBOUND),
    st.builds(records.Closed, outbound=OUTBOUND),
    st.builds(records.Acked, stream_id=TEXT, stream_seq=COUNTS),
    st.builds(
        records.Settled,
        serial=COUNTS,
        account_id=TEXT,
        request_id=TEXT,
        body_digest=BYTES,
        engine_id=TEXT,
        output_tokens=COUNTS,
        event=BYTES,
        log=TEXT,
        results=st.lists(
            st.builds(
                records.ChoiceResult,
                token_ids=st.lists(ID, max_size=5),
                text=TEXT,
                finish_reason=ID,
            ),
            max_size=3,
        ).map(tuple),
        outbound=OUTBOUND,
    ),
    st.builds(
        records.Snapshot,
        next_serial=COUNTS,
        streams=st.lists(
            st.builds(
                records.StreamPlace,
                stream_id=TEXT,
                partition=ID,
                next_seq=COUNTS,
                acked_seq=st.integers(-1, 2**40),
                closed=st.booleans(),
            ),
            max_size=3,
        ).map(tuple),
        engines=st.lists(
            st.builds(records.EnginePlace, count=ENGINE_COUNT, settled_tokens=COUNTS), max_size=3
        ).map(tuple),
    ),
)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: records.Record) -> None:
    back = spool_codec.decode(spool_codec.encode(record))
    assert repr_of(back) == repr_of(record)


def repr_of(record: object) -> str:
    """Equality that does not mind an array in a list's place."""
    return re.sub(r"array\('.'(?:, (\[.*?\]))?\)", lambda m: m[1] or "[]", repr(record))


@given(RECORDS, st.data())
def test_a_frame_with_a_flipped_bit_is_no_frame(
    record: records.Record, data: st.DataObject
) -> None:
    frame = bytearray(spool_codec.encode(record))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    found = list(spool_codec.scan(memoryview(spool_codec.MAGIC + bytes(frame))))
    assert found == []


# Crashes


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int], int]:
    """A segment's bytes, the ends of its frames, and where the first record ends."""
    path = tmp_path_factory.mktemp("spool")

    async def write() -> None:
        spool = await opened(path, Limits())
        streams = Streams(spool.journal, "p/boot1", 4)
        spool.append(records.Booted("p/boot1"))
        run_some(spool, streams, 0, 2)
        spool.append(records.Noted(records.EngineCount("p/boot1", 20, 40, {1: 4}, False), None))
        spool.append(started(2))
        spool.append(progress(2, 2, [7, 8]))
        spool.append(progress(2, 5, [9, 10, 11], delivered=2))
        await spool.durable()
        await spool.close()

    asyncio.run(write())
    data = segments(path)[0].read_bytes().rstrip(b"\0")
    frames = list(spool_codec.scan(memoryview(data)))
    ends = [frame.offset + frame.length for frame in frames]
    # rstrip may eat the last payload's own zeros; the frames say where it ends.
    data = data.ljust(ends[-1], b"\0") if ends else data
    return data, ends, ends[0]


def test_cut_at_every_byte_every_whole_record_before_the_cut_is_there(
    written: tuple[bytes, list[int], int], tmp_path: Path
) -> None:
    """Whatever prefix survived: it opens, keeps what was whole, settles, and opens again alike."""
    data, ends, _ = written

    async def crash_at(cut: int) -> None:
        path = tmp_path / str(cut)
        path.mkdir()
        (path / f"{0:016d}.spool").write_bytes(data[:cut])
        expected = Journal()
        whole = 0
        for record, offset, length in spool_codec.scan(memoryview(data[:cut])):
            expected.apply(record, Ref())
            whole = offset + length
        assert whole == max((end for end in ends if end <= cut), default=0)
        spool = await opened(path)
        streams = Streams(spool.journal, "p/boot2", 4)
        assert set(spool.journal.open) == set(expected.open)
        orphan_tokens = sum(entry.tally.made_tokens for entry in expected.open.values())
        before = sum(book.settled_tokens for book in expected.engines.values())
        recover(spool, streams, "p/boot2", SystemClock())
        await spool.durable()
        book = spool.journal.engines.get("p/boot1")
        if book is not None:
            assert book.settled_tokens == before + orphan_tokens
            assert book.final
            assert book.residual() == 0
        assert not spool.journal.open
        first = describe(spool.journal)
        await spool.close()
        again = await opened(path)
        assert describe(again.journal) == first
        await again.close()
        shutil.rmtree(path)

    async def all_cuts() -> None:
        for cut in range(len(data) + 1):
            await crash_at(cut)

    asyncio.run(all_cuts())


def describe(journal: Journal) -> object:
    """All of a journal that must be the same after a restart."""
    return (
        journal.next_serial,
        sorted(journal.open),
        sorted(journal.replays),
        [(pending.stream_id, pending.stream_seq) for pending in journal.outbox],
        {name: repr(stream) for name, stream in journal.streams.items()},
        {name: repr(book) for name, book in journal.engines.items()},
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_garbage_in_the_torn_group_takes_nothing_whole_with_it(
    written: tuple[bytes, list[int], int],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    """A page of the last group that never reached the disk: what stands before it stays."""
    whole, _, first = written
    start = data.draw(st.integers(first, len(whole) - 1))
    length = data.draw(st.integers(1, len(whole) - start))
    hurt = whole[:start] + data.draw(st.binary(min_size=length, max_size=length))
    hurt += whole[start + length :]
    path = tmp_path_factory.mktemp("torn")
    (path / f"{0:016d}.spool").write_bytes(hurt)

    async def check() -> int:
        spool = await opened(path)
        count = spool.journal.next_serial
        await spool.close()
        return count

    kept = list(spool_codec.scan(memoryview(whole[:start])))
    serials = [f.record.serial for f in kept if isinstance(f.record, records.Started)]
    assert asyncio.run(check()) >= max(serials, default=-1) + 1


async def test_what_is_cut_off_is_kept_beside(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    await spool.close()
    last = segments(tmp_path)[-1]
    whole = last.read_bytes().rstrip(b"\0")
    last.write_bytes(whole + b"half a record")
    again = await opened(tmp_path)
    await again.close()
    aside = sorted(path for path in os.listdir(tmp_path) if ".torn-at-" in path)
    assert len(aside) == 1
    assert (tmp_path / aside[0]).read_bytes().endswith(b"half a record")


async def test_damage_before_the_last_segment_is_refused(tmp_path: Path) -> None:
    for boot in range(3):
        spool = await opened(tmp_path)
        streams = Streams(spool.journal, f"p/boot{boot}", 4)
        run_some(spool, streams, boot * 2, 2)
        await spool.close()
    victim = segments(tmp_path)[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)
    with pytest.raises(SpoolUnusable, match="damaged at byte"):
        Spool.open(tmp_path, SMALL)


async def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    for boot in range(3):
        spool = await opened(tmp_path)
        run_some(spool, Streams(spool.journal, f"p/boot{boot}", 4), boot * 2, 2)
        await spool.close()
    segments(tmp_path)[1].unlink()
    with pytest.raises(SpoolUnusable, match="missing"):
        Spool.open(tmp_path, SMALL)


# Life


async def test_durable_is_told_in_order_and_after_the_disk_has_it(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    told: list[int] = []

    def tell(serial: int) -> Callable[[], None]:
        def check() -> None:
            # Read with no help of this process's memory: what the disk's file says.
            on_disk = {
                record.serial
                for path in segments(tmp_path)
                for record, _, _ in spool_codec.scan(memoryview(path.read_bytes()))
                if isinstance(record, records.Started)
            }
            assert serial in on_disk
            told.append(serial)

        return check

    for serial in range(50):
        start = started(serial)
        spool.append(start, tell(serial))
        spool.append(settled(spool, streams, start, 1))
        if serial % 7 == 0:
            await asyncio.sleep(0)
    await spool.durable()
    assert told == list(range(50))
    await spool.close()


async def test_segments_roll_and_go_only_when_nothing_needs_them(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    for serial in range(0, 100, 2):
        run_some(spool, streams, serial, 2, tokens=40)
        await spool.durable()
    # Nothing is acknowledged: everything is still there.
    assert len(segments(tmp_path)) > 3
    assert len(spool.journal.outbox) == 100
    assert segments(tmp_path)[0].name == f"{0:016d}.spool"
    for stream_id, stream in list(spool.journal.streams.items()):
        spool.append(records.Acked(stream_id, stream.next_seq - 1))
    for serial in range(100, 140, 2):
        run_some(spool, streams, serial, 2, tokens=40)
        await spool.durable()
        for stream_id, stream in list(spool.journal.streams.items()):
            spool.append(records.Acked(stream_id, stream.next_seq - 1))
    await spool.durable()
    kept = segments(tmp_path)
    assert kept[0].name != f"{0:016d}.spool"
    assert sum(path.stat().st_size for path in kept[:-1]) <= SMALL.retain_bytes + 2 * 4_096
    first = describe(spool.journal)
    # Every answer that is still promised can be read.
    for key, replay in spool.journal.replays.items():
        record = spool.read(replay.ref)
        assert isinstance(record, records.Settled)
        assert (record.account_id, record.request_id) == key
    await spool.close()
    again = await opened(tmp_path)
    assert describe(again.journal) == first
    await again.close()


async def test_a_long_request_keeps_its_segment(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    long = started(0)
    spool.append(long)
    for serial in range(1, 61, 2):
        run_some(spool, streams, serial, 2, tokens=40)
        for stream_id, stream in list(spool.journal.streams.items()):
            spool.append(records.Acked(stream_id, stream.next_seq - 1))
        await spool.durable()
    assert segments(tmp_path)[0].name == f"{0:016d}.spool"
    spool.append(progress(0, 1, [1]))
    await spool.durable()
    await spool.close()
    again = await opened(tmp_path)
    assert list(again.journal.open) == [0]
    assert again.journal.open[0].tally.made_tokens == 1
    await again.close()


async def test_admission_closes_before_the_spool_overflows(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    assert spool.reserve(40_000)
    assert not spool.reserve(40_000)
    spool.release(40_000)
    assert spool.reserve(40_000)
    await spool.close()


def full(_fd: int, _offset: int, _length: int) -> None:
    raise OSError(28, "No space left on device")


async def test_no_space_for_the_next_segment_closes_admission_until_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    # Enough for one roll: the spare is used up and no new one can be had.
    run_some(spool, streams, 0, 12, tokens=40)
    await spool.durable()
    assert not spool.reserve(1)
    # Those under way still have room.
    run_some(spool, streams, 12, 2, tokens=40)
    await spool.durable()
    monkeypatch.setattr(os, "posix_fallocate", real)
    assert not spool.reserve(1)
    await spool.durable()
    assert spool.reserve(1)
    await spool.close()


async def test_who_is_under_way_goes_on_in_a_full_segment_while_the_next_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    for serial in range(40):
        run_some(spool, streams, serial, 1, tokens=40)
        await spool.durable()
    assert not spool.failed.done()
    assert not spool.reserve(1)
    grown = segments(tmp_path)
    assert len(grown) == 2
    assert grown[-1].stat().st_size > 2 * SMALL.segment_bytes
    monkeypatch.setattr(os, "posix_fallocate", real)
    assert not spool.reserve(1)
    await spool.durable()
    assert spool.reserve(1)
    run_some(spool, streams, 40, 1, tokens=40)
    await spool.durable()
    assert len(segments(tmp_path)) == 3
    await spool.close()
    again = await opened(tmp_path)
    kept = [(pending.stream_id, pending.stream_seq) for pending in again.journal.unacked()]
    assert len(kept) == len(set(kept)) == 41
    assert all(again.read(replay.ref) for replay in again.journal.replays.values())
    await again.close()


class Slow:
    """A system call that has begun, and goes on when it is let."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.begun = threading.Event()
        self.let = threading.Event()

    def __call__(self, *given: Any) -> Any:
        self.begun.set()
        assert self.let.wait(30)
        return self._real(*given)


async def test_admission_stays_open_while_the_next_segment_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    slow = Slow(os.posix_fallocate)
    monkeypatch.setattr(os, "posix_fallocate", slow)
    # Enough for one roll: the spare is used up, and the next one takes its time.
    run_some(spool, Streams(spool.journal, "p/boot1", 4), 0, 12, tokens=40)
    assert await asyncio.to_thread(slow.begun.wait, 30)
    admitted = spool.reserve(1)
    slow.let.set()
    assert admitted
    await spool.durable()
    await spool.close()


async def test_closing_without_space_commits_what_came_during_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    monkeypatch.setattr(os, "posix_fallocate", full)
    run_some(spool, streams, 0, 12, tokens=40)
    await spool.durable()
    assert not spool.reserve(1)
    await spool.durable()
    slow = Slow(os.fdatasync)
    monkeypatch.setattr(os, "fdatasync", slow)
    run_some(spool, streams, 12, 1)
    assert await asyncio.to_thread(slow.begun.wait, 30)
    run_some(spool, streams, 13, 1)
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    slow.let.set()
    await closing
    monkeypatch.undo()
    again = await opened(tmp_path)
    assert ("acct", "r12") in again.journal.replays
    assert ("acct", "r13") in again.journal.replays
    await again.close()


async def test_who_stops_waiting_takes_nothing_from_who_waits(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    spool.append(started(0))
    gone, waiting = (asyncio.create_task(spool.durable()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await waiting
    assert gone.cancelled()
    await spool.durable()
    await spool.close()


async def test_a_failed_write_is_told_to_nobody_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await opened(tmp_path)
    told: list[str] = []

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    spool.append(started(0), lambda: told.append("durable"))
    # Whoever waits is told, and whoever comes when it is known.
    waiting = await asyncio.gather(spool.durable(), spool.durable(), return_exceptions=True)
    assert [str(error) for error in waiting] == ["[Errno 5] Input/output error"] * 2
    with pytest.raises(OSError, match="Input/output"):
        await spool.durable()
    assert told == []
    assert spool.failed.done()
    await spool.close()
    assert told == []


async def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = await opened(path)
    run_some(spool, Streams(spool.journal, "p/boot1", 4), 0, 30, tokens=40)
    await spool.durable()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await spool.close()


async def test_two_processes_cannot_share_a_spool(tmp_path: Path) -> None:
    spool = await opened(tmp_path)
    with pytest.raises(SpoolUnusable, match="running process"):
        Spool.open(tmp_path, SMALL)
    await spool.close()


async def test_an_unusable_directory_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SpoolUnusable, match="TOLLBOOK_SPOOL_DIR"):
        Spool.open(file / "spool", SMALL)


# Recovery


async def test_orphans_are_settled_at_their_last_record_and_the_rest_is_itemised(
    tmp_path: Path,
) -> None:
    spool = await opened(tmp_path)
    streams = Streams(spool.journal, "p/boot1", 4)
    spool.append(records.Booted("p/boot1"))
    run_some(spool, streams, 0, 1, tokens=3)
    spool.append(started(1))
    spool.append(progress(1, 2, [5, 6]))
    spool.append(progress(1, 4, [7, 8], delivered=2))
    spool.append(records.Noted(records.EngineCount("p/boot1", 18, 20, {1: 4}, False), None))
    await spool.close()

    again = await opened(tmp_path)
    streams = Streams(again.journal, "p/boot2", 4)
    found = recover(again, streams, "p/boot2", SystemClock())
    assert (found.requests, found.engines, found.streams) == (1, 1, 1)
    # 18 counted = 3 settled + 4 settled now + 4 warm-up + 7 that nobody recorded.
    assert found.lost_tokens == 7
    await again.durable()
    replay = again.journal.replays[("acct", "r1")]
    record = again.read(replay.ref)
    assert isinstance(record, records.Settled)
    event = usage.UsageEvent.FromString(record.event)
    assert event.outcome == usage.OUTCOME_ENGINE_LOST
    output = [leaf for leaf in event.quantities if leaf.direction == usage.DIRECTION_OUT]
    assert [(leaf.amount, leaf.undelivered_amount) for leaf in output] == [(4, 2)]
    assert list(record.results[0].token_ids) == [5, 6, 7, 8]
    wire = [
        usage.UsageRecord.FromString(outbound_of(again, p.ref).value) for p in again.journal.outbox
    ]
    readings = [r.engine_reading for r in wire if r.HasField("engine_reading")]
    assert [(r.engine_id, r.generation_tokens, r.final) for r in readings] == [
        ("p/boot1", 18, True)
    ]
    closings = [r for r in wire if r.HasField("stream_close")]
    assert [(r.stream_id.rpartition("/")[0], r.stream_close.last_seq) for r in closings] == [
        ("p/boot1", 0)
    ]
    await again.close()


def outbound_of(spool: Spool, ref: Ref) -> records.Outbound:
    record = spool.read(ref)
    assert isinstance(record, records.Settled | records.Noted | records.Closed)
    assert record.outbound is not None
    return record.outbound


async def test_every_stream_is_numbered_without_a_gap_over_crashes(tmp_path: Path) -> None:
    wire: list[usage.UsageRecord] = []
    for boot in range(4):
        spool = await opened(tmp_path)
        streams = Streams(spool.journal, f"p/boot{boot}", 3)
        recover(spool, streams, f"p/boot{boot}", SystemClock())
        spool.append(records.Booted(f"p/boot{boot}"))
        for serial in range(spool.journal.next_serial, spool.journal.next_serial + 5):
            start = started(serial, account=f"acct-{serial}", engine=f"p/boot{boot}")
            spool.append(start)
            spool.append(progress(serial, 1, [1]))
            if serial % 5 != 4:
                spool.append(settled(spool, streams, start, 1))
        await spool.close()
    spool = await opened(tmp_path)
    recover(spool, Streams(spool.journal, "p/boot9", 3), "p/boot9", SystemClock())
    await spool.durable()
    for pending in spool.journal.outbox:
        wire.append(usage.UsageRecord.FromString(outbound_of(spool, pending.ref).value))
    await spool.close()
    by_stream: dict[str, list[usage.UsageRecord]] = {}
    for record in wire:
        by_stream.setdefault(record.stream_id, []).append(record)
    for name, stream in by_stream.items():
        assert [record.stream_seq for record in stream] == list(range(len(stream)))
        if not name.startswith("p/boot9"):
            assert stream[-1].stream_close.last_seq == len(stream) - 2
    events = [
        usage.UsageEvent.FromString(record.usage_event) for record in wire if record.usage_event
    ]
    assert len({event.event_id for event in events}) == len(events) == 20


def test_records_in_an_impossible_order_are_refused() -> None:
    journal = Journal()
    journal.apply(started(0), Ref())
    with pytest.raises(Contradiction):
        journal.apply(started(0), Ref())
    with pytest.raises(Contradiction):
        journal.apply(progress(0, 5, [1]), Ref())
    with pytest.raises(Contradiction):
        journal.apply(records.Withdrawn(7), Ref())


@pytest.fixture(autouse=True)
def _no_leak(tmp_path: Path) -> Iterator[None]:
    """No test leaves a file descriptor of the spool behind."""
    yield
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert not [path for path in held if path.startswith(str(tmp_path))]
