"""The compiled loops beside what they stand for: scan.py, aiokafka's own decoder."""

from __future__ import annotations

import random
import struct

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ledger import builders as make
from tests.unit.ledger.test_scan import NEARLY_USABLE

from ledger.adapters import records
from ledger.domain.columns import joined, of_records
from ledger.domain.compiled import usage as compiled_usage
from ledger.domain.scan import scan
from tollbook.usage.v1 import usage_pb2 as usage


def agree(values: list[bytes]) -> int:
    """What is plain, scan.py finds usable and reads the same; gives how many are plain."""
    found = compiled_usage.read_plain(of_records(make.records(list(values))))
    for index, value in enumerate(values):
        if not found.plain[index]:
            continue
        expected = scan(value)
        assert expected.reason == 0
        assert expected.stream_id == found.stream_ids[found.stream[index]]
        assert expected.stream_seq == found.seq[index]
        assert expected.identity == found.identity[index].tobytes()
        assert not expected.closes
    return int(found.plain.sum())


def full_event() -> usage.UsageEvent:
    event = make.event(
        project_id="p" * 64,
        key_id="k" * 64,
        hold_id="h" * 64,
        base_model="b" * 256,
        adapter="a" * 256,
        service_tier="t" * 32,
        region="r" * 64,
        engine_id="e" * 128,
        output_digest=bytes(32),
        choice_count=1024,
        finish_reason=usage.FINISH_REASON_STOP,
        provenance=usage.Provenance(model_digest=bytes(32), template_digest=bytes(32)),
        quantities=[
            make.quantity(10**12, undelivered_amount=10**12),
            make.quantity(0, direction=usage.DIRECTION_IN, cache_ttl=usage.CACHE_TTL_1H),
        ],
    )
    event.first_token_time.seconds = make.NOON_S
    event.end_time.FromMilliseconds(make.NOON_S * 1000 + 1)
    return event


def test_what_producers_write_is_plain() -> None:
    values = [make.wrap(make.event()), make.wrap(full_event(), 2**62, "s" * 128)]
    assert agree(values) == 2


def test_what_is_out_of_the_ordinary_is_left_to_the_scan() -> None:
    event = make.event().SerializeToString()
    values = [
        make.wrap(make.event("ü")),
        make.wrap(b"\x68\x01" + event),  # a field twice, out of order
        make.wrap(event + b"\xf8\x07\x01"),  # an unknown field
        make.wrap(make.event(quantities=[make.quantity(1, attribute="gpu")])),
        make.wrap(make.event(), -1),
        make.close(0),
        make.reading(),
    ]
    assert agree(values) == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(NEARLY_USABLE, min_size=1, max_size=4), st.integers(0, 3))
def test_plain_means_usable(events: list[usage.UsageEvent], seq: int) -> None:
    agree([make.wrap(event, seq, f"s{number % 2}") for number, event in enumerate(events)])


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_plain_means_usable_also_after_damage(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    values = []
    for base in (make.wrap(make.event()), make.wrap(full_event(), 5)):
        for _ in range(20):
            data = bytearray(base)
            for _ in range(changes):
                match rng.randrange(3):
                    case 0:
                        data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, 10, 18])
                    case 1:
                        del data[rng.randrange(len(data)) :][: rng.randrange(1, 4)]
                    case _:
                        data.insert(rng.randrange(len(data)), rng.randrange(256))
            values.append(bytes(data))
    agree(values)


def test_streams_are_told_apart_however_many_there_are() -> None:
    rng = random.Random(3)
    names = [f"stream-{rng.randrange(500)}" for _ in range(3_000)]
    assert agree([make.wrap(make.event(f"e{n}"), n, name) for n, name in enumerate(names)]) == 3_000


def kafka_batch(
    rows: list[tuple[int, bytes | None, bytes | None]], base_offset: int, compression: int
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for delta, (timestamp, key, value) in enumerate(rows):
        headers = [("traceparent", b"00-1-2-3"), ("other", None)] if delta % 2 else []
        builder.append(delta, timestamp, key, value, headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base_offset)
    return bytes(data)


ROWS = st.lists(
    st.tuples(
        st.integers(0, 2**40),
        st.none() | st.binary(max_size=40),
        st.none() | st.binary(max_size=300),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ROWS, st.integers(0, 4)), min_size=1, max_size=4), st.data())
def test_record_batches_read_as_the_client_library_reads_them(
    batches: list[tuple[list[tuple[int, bytes | None, bytes | None]], int]], data: st.DataObject
) -> None:
    """None, gzip, snappy, lz4 and zstd, mixed, with the last batch cut off."""
    answer, end = b"", 0
    for rows, compression in batches:
        answer += kafka_batch(rows, end, compression)
        end += len(rows)
    offset = data.draw(st.integers(0, end))
    expected = []
    memory = MemoryRecords(answer)
    while (batch := memory.next_batch()) is not None:
        expected += [(item.offset, item.timestamp, item.key, item.value) for item in batch]
    cut = kafka_batch([(1, b"k", b"v" * 50)], end, 0)[: data.draw(st.integers(0, 60))]
    decoded = records.decode(answer + cut, offset)
    assert decoded.columns.records() == [item for item in expected if item[0] >= offset]
    assert decoded.next_offset == end


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32))
def test_a_damaged_batch_is_refused_and_never_misread(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(kafka_batch([(n, b"k", b"v" * 20) for n in range(5)], 0, rng.randrange(2)))
    # From the magic byte on: what stands before is checked by lengths and the reader's offsets.
    data[rng.randrange(16, len(data))] ^= 1 << rng.randrange(8)
    with pytest.raises(records.RecordsError):
        records.decode(bytes(data), 0)


def test_a_batch_that_claims_more_records_than_it_holds_is_refused() -> None:
    data = bytearray(kafka_batch([(1, b"k", b"v")], 0, 0))
    struct.pack_into(">i", data, 57, 2**31 - 1)
    struct.pack_into(">I", data, 17, calc_crc32c(memoryview(data)[21:]))
    with pytest.raises(records.RecordsError, match="claims"):
        records.decode(bytes(data), 0)


def test_columns_are_the_records() -> None:
    one, other = make.records([b"a", None, b""]), make.records([b"xyz"], 3)
    both = joined([of_records(one), of_records(other)])
    assert both.records() == [*one, *other]
    assert both.part(1, 3).records() == one[1:]
