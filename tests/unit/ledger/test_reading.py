"""What readers get is the leaves, in whichever form; a filter means what its plain code does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ledger import builders

from kernel import leaf as leaf_format
from kernel.merkle import leaf_hash
from kernel.tiles import encode_bundle
from ledger.adapters import arrow_ipc, reading
from ledger.domain import leafrun
from ledger.domain.described import describe, described, leaves_of
from ledger.domain.matching import LeafFilter
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.usage.v1 import usage_pb2 as usage

LEAVES = st.lists(st.binary(max_size=400), min_size=1, max_size=40)


def run_of(leaves: list[bytes], first: int = 7) -> leafrun.LeafRun:
    return leafrun.of_bundles(first, [encode_bundle(leaves)], len(leaves))


def piece_of(run: leafrun.LeafRun, chosen: list[int] | None = None) -> reading.Piece:
    which = np.array(range(len(run)) if chosen is None else chosen, dtype=np.int64)
    return reading.Piece(run, which, 3, 1_000, chosen is not None)


@given(LEAVES, st.data())
def test_a_run_gives_back_what_the_bundles_held(leaves: list[bytes], data: st.DataObject) -> None:
    run = run_of(leaves)
    assert run.leaves() == leaves
    first = data.draw(st.integers(0, 60))
    end = data.draw(st.integers(0, 60))
    part = run.part(first, end)
    assert part.leaves() == [leaf for at, leaf in enumerate(leaves, 7) if first <= at < end]
    assert not len(part) or part.first == max(first, 7)


@given(LEAVES, st.integers(1, 2_000))
def test_a_run_within_a_size_holds_as_many_as_fit_and_at_least_one(
    leaves: list[bytes], most: int
) -> None:
    within = run_of(leaves).within(most)
    size = sum(map(len, within.leaves()))
    assert len(within) == 1 or size <= most
    assert len(within) == len(leaves) or size + len(leaves[len(within)]) > most


@given(LEAVES, st.data())
def test_bundles_that_are_not_whole_are_refused(leaves: list[bytes], data: st.DataObject) -> None:
    bundle = encode_bundle(leaves)
    cut = data.draw(st.integers(0, len(bundle) - 1))
    with pytest.raises(ValueError, match="do not hold"):
        leafrun.of_bundles(0, [bundle[:cut]], len(leaves))
    with pytest.raises(ValueError, match="do not hold"):
        leafrun.of_bundles(0, [bundle, b"\0\1"], len(leaves) + 1)


@given(LEAVES)
def test_the_message_is_the_one_that_protobuf_reads(leaves: list[bytes]) -> None:
    message = pb.ReadEventsResponse.FromString(
        reading.events_message(piece_of(run_of(leaves)), with_hashes=False)
    )
    assert message == pb.ReadEventsResponse(
        first_position=7,
        leaves=leaves,
        control_size=3,
        log_size=1_000,
        next_position=7 + len(leaves),
    )


@given(LEAVES, st.data())
def test_with_a_filter_leaves_and_hashes_are_all_that_was_looked_at(
    leaves: list[bytes], data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(leaves) - 1))))
    message = pb.ReadEventsResponse.FromString(
        reading.events_message(piece_of(run_of(leaves), chosen), with_hashes=True)
    )
    found = {
        at: leaf_hash(leaf) for at, leaf in zip(message.positions, message.leaves, strict=True)
    }
    passed = message.passed_over_hashes
    hashes = iter([passed[at : at + 32] for at in range(0, len(passed), 32)])
    together = [
        found.get(at) or next(hashes) for at in range(message.first_position, message.next_position)
    ]
    assert together == [leaf_hash(leaf) for leaf in leaves]
    assert list(message.positions) == [at + 7 for at in chosen]


@given(LEAVES, st.data())
def test_arrow_holds_the_chosen_leaves_and_their_positions(
    leaves: list[bytes], data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(leaves) - 1))))
    message = pb.ReadArrowResponse.FromString(
        reading.arrow_message(piece_of(run_of(leaves), chosen))
    )
    assert (message.first_position, message.next_position) == (7, 7 + len(leaves))
    batch = pa.ipc.read_record_batch(pa.py_buffer(message.ipc), arrow_ipc.SCHEMA)
    batch.validate(full=True)
    stream = arrow_ipc.SCHEMA.serialize().to_pybytes() + 2 * message.ipc
    assert pa.ipc.open_stream(stream).read_all() == pa.Table.from_batches([batch, batch])
    assert batch.to_pylist() == [
        {"position": at + 7, "control_size": 3, "leaf": leaves[at]} for at in chosen
    ]


@given(LEAVES)
def test_a_batch_says_nothing_of_what_stood_in_memory_before(leaves: list[bytes]) -> None:
    run = run_of(leaves)
    leaf_bytes = sum(map(len, leaves))
    size = arrow_ipc.batch_size(len(run), leaf_bytes)
    written = []
    for before in (0, 255):
        out = np.full(size, before, dtype=np.uint8)
        arrow_ipc.write_batch(run, np.arange(len(run)), 3, leaf_bytes, out)
        written.append(out.tobytes())
    assert written[0] == written[1]


ACCOUNTS = st.sampled_from(["acme", "acm", "acme2", "ümläut"])
MODELS = st.sampled_from(["tiny", "tiny-large"])
SECONDS = st.sampled_from([-5, 0, 1, 99, 100, 1 << 33, 253_402_300_799])
NANOS = st.sampled_from([0, 1, 999_999_999])
INSTANTS = st.one_of(
    st.none(), st.sampled_from([-(10**10), -1, 0, 1, 99 * 10**9, 100 * 10**9 + 1, 1 << 62])
)
FILTERS = st.builds(
    LeafFilter,
    account_id=st.one_of(st.just(""), ACCOUNTS),
    served_model=st.one_of(st.just(""), MODELS),
    from_ns=INSTANTS,
    to_ns=INSTANTS,
    dispositions=st.frozensets(st.integers(1, 4), max_size=3),
)


@st.composite
def leaf(draw: st.DrawFn) -> bytes:
    """A leaf as the log may hold it: any record when rejected, else one that admission takes."""
    event = builders.event(account_id=draw(ACCOUNTS), served_model=draw(MODELS))
    event.event_time.seconds = draw(SECONDS)
    event.event_time.nanos = draw(NANOS)
    raw = event.SerializeToString()
    if draw(st.booleans()):
        # Fields written twice, as protobuf allows: the last one counts, and instants are merged.
        again = usage.UsageEvent(account_id=draw(ACCOUNTS), served_model=draw(MODELS))
        again.event_time.nanos = draw(NANOS)
        raw += again.SerializeToString()
    value = draw(st.sampled_from([builders.wrap(raw), builders.close(3), builders.reading(2)]))
    disposition = draw(st.integers(1, 4))
    if disposition == int(pb.DISPOSITION_REJECTED) and draw(st.booleans()):
        value = draw(st.one_of(st.binary(max_size=30), st.just(builders.wrap(raw)[:-3])))
    if draw(st.integers(0, 9)) == 0:
        value = value + bytes(leaf_format.MAX_LEAF_BYTES)
    return leaf_format.encode(disposition, 0, 1, 2, draw(ACCOUNTS).encode(), value)


@given(st.lists(leaf(), min_size=1, max_size=12), FILTERS)
def test_the_compiled_filter_is_the_plain_one(leaves: list[bytes], wanted: LeafFilter) -> None:
    chosen = wanted.choose(run_of(leaves)).tolist()
    assert chosen == [at for at, data in enumerate(leaves) if wanted.matches(data)]


@given(st.lists(leaf(), min_size=1, max_size=12))
def test_a_sealed_row_tells_what_the_plain_code_reads(leaves: list[bytes]) -> None:
    columns = described(run_of(leaves))
    told = [column.to_pylist() for column in columns]
    for column in columns:
        column.validate(full=True)
    for index, data in enumerate(leaves):
        plain = leaf_format.decode(data)
        assert tuple(column[index] for column in told) == (
            plain.disposition,
            plain.reason,
            plain.timestamp_ms,
            *describe(data),
        )
    assert leaves_of(run_of(leaves)).to_pylist() == leaves


def test_each_condition_of_a_filter_counts() -> None:
    data = leaf_format.encode(1, 0, 1, 2, b"acme", builders.wrap(builders.event()))
    at_ns = builders.NOON_S * 10**9
    good = LeafFilter("acme", "tiny", at_ns, at_ns + 1, frozenset({1}))
    assert good.choose(run_of([data])).tolist() == [0]
    for change in (
        {"account_id": "other"},
        {"served_model": "other"},
        {"from_ns": at_ns + 1, "to_ns": at_ns + 2},
        {"to_ns": at_ns},
        {"dispositions": frozenset({2, 3})},
    ):
        bad = dataclasses.replace(good, **change)
        assert bad.choose(run_of([data])).tolist() == [], change
        assert not bad.matches(data), change
