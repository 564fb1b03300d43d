"""Batches: however the records are cut, the log is the one the plain reference makes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ledger import builders as make
from tests.unit.ledger.reference import ReferenceLog

from kernel import leaf as leaves
from kernel.merkle import Frontier, leaf_hash
from kernel.tiles import TILE_WIDTH, decode_bundle
from ledger.domain import batch as batching
from ledger.domain import columnar
from ledger.domain.admission import Admission
from ledger.domain.batch import Batch, LogState, Record
from ledger.domain.columns import of_records
from ledger.domain.identities import IdentityIndex
from ledger.domain.tree import TreeBuilder

Planner = Callable[[LogState, Sequence[Record], list[bytes]], Batch]


def plan_plainly(state: LogState, records: Sequence[Record], log: list[bytes]) -> Batch:
    found = batching.scan_records(records)
    suspects = batching.find_suspects(state.index, found)
    bodies = batching.known_bodies(suspects, _asked(suspects, log))
    return batching.plan(state, records, found, suspects, bodies, records[-1][0] + 1)


def plan_in_columns(state: LogState, records: Sequence[Record], log: list[bytes]) -> Batch:
    reading = columnar.read(of_records(records))
    suspects = columnar.find_suspects(state.index, reading)
    bodies = batching.known_bodies(suspects, _asked(suspects, log))
    return columnar.plan(state, reading, suspects, bodies, records[-1][0] + 1)


def _asked(suspects: batching.Suspects, log: list[bytes]) -> dict[int, bytes]:
    return {at: log[at] for places in suspects.positions.values() for at in places}


PLANNERS = pytest.mark.parametrize("planner", [plan_plainly, plan_in_columns])


class Owner:
    """A log's owner without a database: what was written is kept in lists."""

    def __init__(self, planner: Planner = plan_in_columns) -> None:
        self.planner = planner
        self.state = LogState(TreeBuilder(), 0, IdentityIndex())
        self.leaves: list[bytes] = []
        self.batches: list[Batch] = []

    def take(self, records: Sequence[Record]) -> Batch:
        batch = self.planner(self.state, records, self.leaves)
        for chunk in batch.chunks:
            assert chunk.first_position == len(self.leaves)
            part = decode_bundle(chunk.data)
            assert len(part) == chunk.entries
            assert chunk.first_position % TILE_WIDTH + chunk.entries <= TILE_WIDTH
            self.leaves += part
        assert batch.size == len(self.leaves)
        self.batches.append(batch)
        return batch


# Few accounts, events, bodies, streams and numbers, so that everything meets everything.
def _value(draw: st.DrawFn) -> bytes | None:
    kind = draw(st.sampled_from(["event"] * 12 + ["close", "reading", "broken", "none", "bad"]))
    stream_id = draw(st.sampled_from(["a", "b"]))
    seq = draw(st.integers(0, 6))
    if kind == "event":
        event = make.event(
            draw(st.sampled_from(["e1", "e2", "e3"])),
            draw(st.sampled_from(["acme", "globex"])),
            quantities=[make.quantity(draw(st.integers(1, 2)))],
        )
        return make.wrap(event, seq, stream_id)
    if kind == "close":
        return make.close(seq, stream_id)
    if kind == "reading":
        return make.reading(seq, stream_id, generation_tokens=draw(st.integers(0, 1)))
    if kind == "bad":
        return make.wrap(make.event(quantities=[make.quantity(-1)]), seq, stream_id)
    return b"\xff\xff" if kind == "broken" else None


@st.composite
def histories(draw: st.DrawFn) -> list[list[Record]]:
    """Records with rising offsets (not all of them there), cut into batches."""
    values = [_value(draw) for _ in range(draw(st.integers(1, 40)))]
    offset = 0
    records: list[Record] = []
    for value in values:
        offset += draw(st.sampled_from([1, 1, 1, 3]))
        records.append((offset, make.NOON_S * 1000 - offset, b"k", value))
    cuts = sorted(draw(st.sets(st.integers(1, len(records)), max_size=6)) | {len(records)})
    return [records[first:end] for first, end in zip([0, *cuts], cuts, strict=False)]


@PLANNERS
@settings(max_examples=300, deadline=None)
@given(history=histories())
def test_every_cut_gives_the_log_of_the_reference(
    planner: Planner, history: list[list[Record]]
) -> None:
    reference, owner, frontier = ReferenceLog(), Owner(planner), Frontier()
    for records in history:
        batch = owner.take(records)
        for record in records:
            reference.take(record)
        frontier.extend(leaf_hash(entry) for entry in reference.entries[frontier.size :])
        assert batch.root == frontier.root()
        assert batch.frontier == frontier.to_bytes()
        assert batch.next_offset == records[-1][0] + 1
    assert owner.leaves == reference.entries
    counts = [
        sum(column) for column in zip(*(batch.counts for batch in owner.batches), strict=True)
    ]
    assert counts == reference.counts()
    assert owner.batches[-1].root == reference.root()
    for stream_id in reference.seen:
        stream = owner.state.streams[stream_id]
        assert stream.next_seq == max(reference.seen[stream_id]) + 1
        gaps = {number for first, end in stream.missing for number in range(first, end)}
        assert gaps == reference.missing(stream_id)


@settings(max_examples=100, deadline=None)
@given(histories())
def test_a_checker_with_the_leaves_alone_comes_to_the_same(history: list[list[Record]]) -> None:
    owner, checker = Owner(), Admission()
    for records in history:
        owner.take(records)
    for entry in owner.leaves:
        leaf = leaves.decode(entry)
        assert checker.admit_leaf(leaf) == (leaf.disposition, leaf.reason)


@settings(max_examples=50, deadline=None)
@given(histories())
def test_the_whole_history_sent_again_is_duplicates_or_as_bad_as_before(
    history: list[list[Record]],
) -> None:
    owner = Owner()
    for records in history:
        owner.take(records)
    accepted = sum(batch.counts[0] for batch in owner.batches)
    end = history[-1][-1][0] + 1
    again: list[Record] = [
        (offset + end, timestamp_ms, key, value)
        for records in history
        for offset, timestamp_ms, key, value in records
    ]
    batch = owner.take(again)
    assert batch.counts[0] == 0
    assert batch.counts[1] >= accepted


@PLANNERS
@pytest.mark.museum
def test_ten_deliveries_are_one_charge(planner: Planner) -> None:
    """Exhibit 13: redelivery and re-reads made duplicate rows."""
    owner = Owner(planner)
    values: list[bytes | None] = [make.wrap(make.event(f"e{n}"), n) for n in range(50)]
    for delivery in range(10):
        owner.take(make.records(values, delivery * 50))
    assert [batch.counts for batch in owner.batches] == [(50, 0, 0, 0)] + [(0, 50, 0, 0)] * 9


@PLANNERS
@pytest.mark.museum
def test_a_flush_of_many_keys_lands_whole(planner: Planner) -> None:
    """Exhibit 11: a flush kept the first 100 keys."""
    owner = Owner(planner)
    values: list[bytes | None] = [
        make.wrap(make.event("e", f"account-{number}"), number) for number in range(10_001)
    ]
    batch = owner.take(make.records(values))
    assert batch.counts == (10_001, 0, 0, 0)
    assert len({leaves.decode(leaf).value for leaf in owner.leaves}) == 10_001


@PLANNERS
def test_another_event_at_a_taken_place_is_kept_as_a_conflict_and_never_lost_as_a_repeat(
    planner: Planner,
) -> None:
    owner = Owner(planner)
    owner.take(make.records([make.wrap(make.event("e1"), 0)]))
    batch = owner.take(make.records([make.wrap(make.event("e2"), 0)], 1))
    assert batch.counts == (0, 0, 1, 0)
    # Sent again at a place of its own it counts: the conflict did not take its identity.
    batch = owner.take(make.records([make.wrap(make.event("e2"), 1)], 2))
    assert batch.counts == (1, 0, 0, 0)


@PLANNERS
def test_a_rejected_record_does_not_take_the_identity(planner: Planner) -> None:
    owner = Owner(planner)
    bad = make.event("e1", quantities=[make.quantity(-5)])
    owner.take(make.records([make.wrap(bad, 0)]))
    batch = owner.take(make.records([make.wrap(make.event("e1"), 1)], 1))
    assert batch.counts == (1, 0, 0, 0)


@PLANNERS
def test_an_oversize_record_is_kept_aside_and_its_leaf_fits_a_tile(planner: Planner) -> None:
    owner = Owner(planner)
    huge = b"x" * 1_000_000
    batch = owner.take(make.records([huge, make.wrap(make.event("e1"))]))
    assert batch.counts == (1, 0, 0, 1)
    assert batch.asides == [(0, huge)]
    assert leaves.decode(owner.leaves[0]).aside
    assert max(map(len, owner.leaves)) <= leaves.MAX_LEAF_BYTES


def test_a_batch_of_markers_alone_moves_the_offset_and_nothing_else() -> None:
    plain, fast = Owner(plan_plainly), Owner(plan_in_columns)
    for owner in (plain, fast):
        owner.take(make.records([make.wrap(make.event("e1"))]))
    nothing = batching.Suspects({}, frozenset())
    expected = batching.plan(plain.state, [], [], nothing, {}, 5)
    reading = columnar.read(of_records([]))
    assert columnar.find_suspects(fast.state.index, reading) == nothing
    found = columnar.plan(fast.state, reading, nothing, {}, 5)
    assert found == expected
    assert (found.size, found.next_offset, found.chunks) == (1, 5, [])


@settings(max_examples=200, deadline=None)
@given(histories())
def test_columns_give_the_very_batches_of_the_plain_way(history: list[list[Record]]) -> None:
    plain, fast = Owner(plan_plainly), Owner(plan_in_columns)
    for records in history:
        one, other = plain.take(records), fast.take(records)
        one.streams.sort()
        other.streams.sort()
        assert dataclasses.replace(one, sealed=None) == dataclasses.replace(other, sealed=None)


def test_batches_over_many_tiles_and_a_sealed_run_are_the_same_both_ways() -> None:
    rng = random.Random(7)
    plain, fast = Owner(plan_plainly), Owner(plan_in_columns)
    offset = 0
    for size in (1, 255, 256, 257, 5_000, 140_000, 3):
        # One in fifty repeats an event of before, in this batch or an earlier one.
        events = [
            rng.randrange(seq + 1) if rng.random() < 0.02 else seq
            for seq in range(offset, offset + size)
        ]
        records = make.records(
            [make.wrap(make.event(f"e{event}"), seq) for seq, event in enumerate(events, offset)],
            offset,
        )
        offset += size
        one, other = plain.take(records), fast.take(records)
        assert (one.root, one.counts, one.tiles, one.chunks) == (
            other.root,
            other.counts,
            other.tiles,
            other.chunks,
        )
        assert (one.sealed is None) == (other.sealed is None)
        if one.sealed is not None and other.sealed is not None:
            assert one.sealed[:2] == other.sealed[:2]
            assert all(
                np.array_equal(mine, yours)
                for mine, yours in zip(one.sealed.run, other.sealed.run, strict=True)
            )
    assert any(batch.sealed for batch in fast.batches)
