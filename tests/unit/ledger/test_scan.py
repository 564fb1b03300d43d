"""Admission of a single record: every rule, and that they are the contract's own rules."""

from __future__ import annotations

import random
from typing import Any

import protovalidate
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ledger import builders as make

from ledger.domain import scan as scanning
from ledger.domain.scan import body_digest, scan
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.usage.v1 import usage_pb2 as usage

STREAM = "inference-0/boot/0"


def reason_of(value: bytes | None) -> str:
    return ledger.Reason.Name(ledger.Reason.ValueType(scan(value).reason)).removeprefix("REASON_")


def reason_of_event(**fields: Any) -> str:
    return reason_of(make.wrap(make.event(**fields)))


def reason_of_quantities(*quantities: usage.Quantity) -> str:
    return reason_of_event(quantities=list(quantities))


def test_a_usable_event_tells_stream_identity_and_nothing_else() -> None:
    found = scan(make.wrap(make.event(), seq=5))
    assert (found.reason, found.stream_id, found.stream_seq, found.closes) == (0, STREAM, 5, False)
    assert len(found.identity) == 32


def test_all_there_is_of_an_event_is_usable() -> None:
    full = make.event(
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
        first_token_time=Timestamp(seconds=make.NOON_S),
        quantities=[make.quantity(10**12, attribute=f"tool-{n}") for n in range(64)],
    )
    assert reason_of(make.wrap(full)) == "UNSPECIFIED"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "EMPTY"),
        (b"", "EMPTY"),
        (b"\xff" * 40, "MALFORMED"),
        (make.wrap(make.event())[:-3], "MALFORMED"),
        (make.wrap(b"\x0a\xff"), "MALFORMED"),
        (make.wrap(b""), "MISSING_ID"),
        (b"x" * (scanning.MAX_VALUE_BYTES + 1), "OVERSIZE"),
        (make.wrap(make.event(), stream_id=""), "MISSING_ID"),
        (make.wrap(make.event(), stream_id="s" * 129), "INVALID_FIELD"),
        (make.wrap(make.event(), seq=-1), "INVALID_FIELD"),
        (usage.UsageRecord(stream_id="s").SerializeToString(), "INVALID_FIELD"),
        (make.close(0), "UNSPECIFIED"),
        (make.close(7), "UNSPECIFIED"),
        (
            usage.UsageRecord(
                stream_id="s", stream_seq=4, stream_close=usage.StreamClose(last_seq=1)
            ).SerializeToString(),
            "INVALID_FIELD",
        ),
        (make.reading(), "UNSPECIFIED"),
        (make.reading(engine_id=""), "MISSING_ID"),
        (make.reading(generation_tokens=-1), "NEGATIVE_QUANTITY"),
        (
            make.reading(waste=[usage.Waste(kind=usage.WASTE_KIND_WARM_UP, tokens=-1)]),
            "NEGATIVE_QUANTITY",
        ),
        (make.reading(waste=[usage.Waste(tokens=1)]), "INVALID_FIELD"),
        (
            make.reading(waste=[usage.Waste(kind=usage.WASTE_KIND_WARM_UP, tokens=1)] * 2),
            "INCONSISTENT_QUANTITIES",
        ),
    ],
)
def test_records(value: bytes | None, reason: str) -> None:
    assert reason_of(value) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"event_id": ""}, "MISSING_ID"),
        ({"account_id": ""}, "MISSING_ID"),
        ({"event_id": "e" * 129}, "INVALID_FIELD"),
        ({"account_id": "a" * 65}, "INVALID_FIELD"),
        ({"account_id": "a\0b"}, "INVALID_FIELD"),
        ({"served_model": ""}, "INVALID_FIELD"),
        ({"outcome": usage.OUTCOME_UNSPECIFIED}, "INVALID_FIELD"),
        ({"outcome": 99}, "INVALID_FIELD"),
        ({"finish_reason": 99}, "INVALID_FIELD"),
        ({"choice_count": -1}, "INVALID_FIELD"),
        ({"choice_count": 1025}, "INVALID_FIELD"),
        ({"output_digest": bytes(33)}, "INVALID_FIELD"),
        ({"provenance": usage.Provenance(adapter_digest=bytes(33))}, "INVALID_FIELD"),
        ({"event_time": Timestamp(seconds=2**40)}, "INVALID_FIELD"),
        ({"event_time": Timestamp(seconds=1, nanos=10**9)}, "INVALID_FIELD"),
        ({"event_time": Timestamp(seconds=1, nanos=-1)}, "INVALID_FIELD"),
    ],
)
def test_fields_of_an_event(fields: dict[str, Any], reason: str) -> None:
    assert reason_of_event(**fields) == reason


def test_an_event_without_its_time_has_no_price_and_is_refused() -> None:
    event = make.event()
    event.ClearField("event_time")
    assert reason_of(make.wrap(event)) == "INVALID_FIELD"


@pytest.mark.museum
@pytest.mark.parametrize(
    ("amount", "undelivered", "reason"),
    [
        (0, 0, "UNSPECIFIED"),
        (10**12, 10**12, "UNSPECIFIED"),
        (-1, 0, "NEGATIVE_QUANTITY"),
        (-(2**63), 0, "NEGATIVE_QUANTITY"),
        (1, -1, "NEGATIVE_QUANTITY"),
        (10**12 + 1, 0, "ABSURD_QUANTITY"),
        (2**63 - 1, 0, "ABSURD_QUANTITY"),
        (5, 6, "INCONSISTENT_QUANTITIES"),
    ],
)
def test_usage_never_raises_a_balance(amount: int, undelivered: int, reason: str) -> None:
    """Exhibit 20: overflowing or negative usage credits the user."""
    assert reason_of_quantities(make.quantity(amount, undelivered_amount=undelivered)) == reason


@pytest.mark.museum
def test_an_event_without_an_id_is_refused_and_not_merged_with_others() -> None:
    """Exhibit 14: an empty id collides and later rows are lost."""
    first, second = make.event(event_id=""), make.event(event_id="", account_id="globex")
    assert [scan(make.wrap(item)).identity for item in (first, second)] == [b"", b""]
    assert reason_of(make.wrap(first)) == "MISSING_ID"


def test_leaves_are_disjoint_also_when_a_default_is_spelled_out() -> None:
    plain = make.quantity(1)
    spelled = make.quantity(
        1,
        modality=usage.MODALITY_TEXT,
        cache_use=usage.CACHE_USE_NONE,
        token_kind=usage.TOKEN_KIND_PLAIN,
    )
    other = make.quantity(1, token_kind=usage.TOKEN_KIND_REASONING)
    assert reason_of_quantities(plain, other) == "UNSPECIFIED"
    assert reason_of_quantities(plain, plain) == "INCONSISTENT_QUANTITIES"
    assert reason_of_quantities(plain, spelled) == "INCONSISTENT_QUANTITIES"


def test_too_many_quantities() -> None:
    items = [make.quantity(1, attribute=str(number)) for number in range(65)]
    assert reason_of_quantities(*items) == "INVALID_FIELD"
    assert reason_of_quantities(*items[:64]) == "UNSPECIFIED"


@pytest.mark.museum
def test_identity_ignores_every_timestamp() -> None:
    """Exhibit 30: the same id under two timestamps was two charges."""
    early, late = make.event(), make.event(event_time=Timestamp(seconds=1))
    assert scan(make.wrap(early)).identity == scan(make.wrap(late)).identity
    assert body_digest(make.wrap(early)) != body_digest(make.wrap(late))


def test_identity_is_the_pair_and_never_its_concatenation() -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("abc", "d"), ("d", "abc")]
    found = {scan(make.wrap(make.event(account_id=a, event_id=e))).identity for a, e in pairs}
    assert len(found) == len(pairs)


def test_the_body_is_what_the_producer_wrote_without_its_envelope() -> None:
    event = make.event().SerializeToString()
    sent, resent = make.wrap(event, seq=1, stream_id="a"), make.wrap(event, seq=9, stream_id="b")
    assert body_digest(sent) == body_digest(resent)
    # An outcome written twice reads the same and is other bytes: the producer wrote something else.
    twice = b"\x68\x01" + event
    assert usage.UsageEvent.FromString(twice) == usage.UsageEvent.FromString(event)
    assert body_digest(make.wrap(twice)) != body_digest(sent)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=70)
INT64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 3) | st.integers(10**12 - 1, 10**12 + 1)
ENUM = st.integers(-1, 20)

QUANTITIES = st.builds(
    usage.Quantity,
    unit=ENUM,
    direction=ENUM,
    modality=st.integers(-1, 7),
    cache_use=st.integers(-1, 5),
    cache_ttl=st.integers(-1, 5),
    token_kind=st.integers(-1, 8),
    attribute=TEXT,
    amount=INT64,
    undelivered_amount=INT64,
)
NEARLY_USABLE = st.builds(
    make.event,
    event_id=st.sampled_from(["req-1", "e" * 128, "e" * 129, "ü" * 128]),
    account_id=st.sampled_from(["acme", "a" * 64, "a" * 65, "ü" * 64]),
    project_id=TEXT,
    served_model=st.sampled_from(["", "tiny", "m" * 256, "m" * 257]),
    service_tier=st.sampled_from(["", "flex", "t" * 33]),
    outcome=st.integers(-1, 10),
    finish_reason=st.integers(-1, 7),
    choice_count=st.integers(-1, 3) | st.just(1025),
    output_digest=st.binary(max_size=34),
    quantities=st.lists(QUANTITIES, max_size=3),
)


def breaks_a_rule_beside_the_fields(message: Any) -> bool:
    return bool(protovalidate.collect_violations(message))


@settings(max_examples=150, deadline=None)
@given(NEARLY_USABLE)
def test_the_rules_are_those_of_the_contract(event: usage.UsageEvent) -> None:
    """What the contract refuses is refused; what it allows is refused only for contradiction."""
    reason = reason_of(make.wrap(event))
    if breaks_a_rule_beside_the_fields(event):
        assert reason != "UNSPECIFIED"
    else:
        assert reason in {"UNSPECIFIED", "INCONSISTENT_QUANTITIES"}


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    found = scan(data)
    assert found.reason in ledger.Reason.values()
    assert bool(found.identity) == (found.reason == 0)
    assert scan(data) == found


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_no_damage_to_a_usable_record_makes_it_raise(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    data = bytearray(make.wrap(make.event(quantities=[make.quantity(3), make.quantity(4, unit=2)])))
    for _ in range(changes):
        data[rng.randrange(len(data))] = rng.randrange(256)
    found = scan(bytes(data))
    assert found.reason in ledger.Reason.values()
    assert not found.identity or len(found.identity) == 32
