"""Lines of a usage file: what they say besides the usage object, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from tests.unit.pricing.readers.dialect_objects import Request, openai_chat, vector

from pricing.domain.dimensions import Context
from pricing.domain.events import event_of
from pricing.domain.readers import reading
from pricing.domain.readers.reading import UsageReadError, UsageReading
from pricing.domain.readers.usage_line import read_line
from tollbook.usage.v1 import usage_pb2

CHAT = openai_chat(Request(plain_in=3, plain_out=4))
LINE: dict[str, Any] = {"model": "m", "usage": CHAT}


def test_the_least_that_a_line_says() -> None:
    line = read_line(LINE)
    assert line.context == Context("m", "m", "", "standard", "")
    assert (line.line_id, line.account_id, line.provider, line.at_us) == ("", "", "", None)
    assert line.is_request
    assert vector(UsageReading(line.leaves)) == {"in": 3, "out": 4}


def test_all_that_a_line_can_say() -> None:
    line = read_line(
        LINE
        | {
            "id": "r-1",
            "account": "acme",
            "provider": "openai",
            "base_model": "b",
            "adapter": "tuned",
            "dialect": "openai_chat",
            "service_tier": "default",
            "region": "eu",
            "time": "2026-01-31T01:00:00.5+01:00",
            "outcome": "client_abort",
        }
    )
    assert line.context == Context("m", "b", "tuned", "standard", "eu")
    assert (line.line_id, line.account_id, line.provider) == ("r-1", "acme", "openai")
    assert line.at_us == 1_769_817_600_500_000
    assert line.outcome == usage_pb2.OUTCOME_CLIENT_ABORT


def test_a_tier_is_the_one_that_served_in_our_words() -> None:
    assert read_line(LINE | {"service_tier": "priority"}).context.service_tier == "priority"
    anthropic = {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"}
    line = {"model": "m", "usage": anthropic, "service_tier": "batch"}
    assert read_line(line).context.service_tier == "batch"


def test_geminis_own_names_of_the_answer_will_do() -> None:
    line = read_line({"modelVersion": "gemini-2.5-pro", "usageMetadata": {"promptTokenCount": 3}})
    assert line.context.model == "gemini-2.5-pro"
    assert vector(UsageReading(line.leaves)) == {"in": 3}


def test_our_own_event_in_protobufs_json_reads_as_the_ledger_reads_it() -> None:
    event = usage_pb2.UsageEvent(
        event_id="e-1",
        account_id="acme",
        project_id="p",
        key_id="k",
        served_model="tiny-legal",
        base_model="tiny",
        adapter="legal",
        service_tier="flex",
        region="eu",
        outcome=usage_pb2.OUTCOME_DEADLINE,
        output_digest=b"\1" * 32,
        engine_id="engine",
        choice_count=1,
    )
    event.event_time.FromJsonString("2026-01-31T00:00:00.000001Z")
    event.end_time.FromJsonString("2026-01-31T00:00:01Z")
    event.provenance.model_digest = b"\2" * 32
    event.quantities.add(unit="UNIT_TOKEN", direction="DIRECTION_IN", amount=10**12)
    event.quantities.add(
        unit="UNIT_TOKEN", direction="DIRECTION_OUT", amount=9, undelivered_amount=4
    )
    expected = event_of(0, event)
    for names in (True, False):
        data = json_format.MessageToDict(event, preserving_proto_field_name=names)
        line = read_line(data)
        assert line.context == expected.context
        assert sorted(line.leaves) == sorted(expected.leaves)
        assert (line.line_id, line.account_id) == ("e-1", "acme")
        assert (line.at_us, line.outcome) == (expected.event_time_us, expected.outcome)
        assert not line.is_request


REFUSED: list[tuple[object, str, str]] = [
    (3, "", reading.NOT_READABLE),
    ([], "", reading.NOT_READABLE),
    ({"usage": CHAT}, "model", reading.MISSING_FIELD),
    ({"model": "m"}, "usage", reading.MISSING_FIELD),
    ({"model": "m", "usage": 3}, "usage", reading.NOT_READABLE),
    ({"model": "m", "usage": {}}, "usage", reading.MISSING_FIELD),
    (LINE | {"service_teir": "flex"}, "service_teir", reading.UNKNOWN_FIELD),
    (LINE | {"service_tier": "turbo"}, "service_tier", reading.NOT_READABLE),
    # Asked for, not served: nobody knows which it was.
    (LINE | {"service_tier": "auto"}, "service_tier", reading.NOT_READABLE),
    (LINE | {"dialect": "cobol"}, "dialect", reading.NOT_READABLE),
    (LINE | {"usageMetadata": {}}, "usageMetadata", reading.INCONSISTENT),
    (LINE | {"modelVersion": "m"}, "modelVersion", reading.INCONSISTENT),
    (LINE | {"time": "yesterday"}, "time", reading.NOT_READABLE),
    (LINE | {"time": "2026-01-31"}, "time", reading.NOT_READABLE),
    (LINE | {"time": "2026-01-31T00:00:00"}, "time", reading.NOT_READABLE),
    (LINE | {"time": "2026-02-30T00:00:00Z"}, "time", reading.NOT_READABLE),
    (LINE | {"time": "1969-12-31T23:59:59Z"}, "time", reading.OUT_OF_RANGE),
    (LINE | {"created": 1.5}, "created", reading.NOT_READABLE),
    (LINE | {"created": 10**12}, "created", reading.OUT_OF_RANGE),
    (LINE | {"created": 1, "time": "2026-01-31T00:00:00Z"}, "created", reading.INCONSISTENT),
    (LINE | {"outcome": "fine"}, "outcome", reading.NOT_READABLE),
    (LINE | {"id": 7}, "id", reading.NOT_READABLE),
    (
        {"model": "m", "usage": {"prompt_tokens": -1}},
        "usage.prompt_tokens",
        reading.OUT_OF_RANGE,
    ),
    (
        {
            "model": "m",
            "service_tier": "standard",
            "usage": {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"},
        },
        "service_tier",
        reading.INCONSISTENT,
    ),
    ({"quantities": [], "outcome": 1}, "served_model", reading.MISSING_FIELD),
    ({"quantities": [], "served_model": "m"}, "outcome", reading.MISSING_FIELD),
    ({"quantities": [], "usage": {}}, "usage", reading.UNKNOWN_FIELD),
    (
        {"quantities": [{"unit": "token", "amount": "-1"}], "served_model": "m", "outcome": 1},
        "quantities[0].amount",
        reading.OUT_OF_RANGE,
    ),
]


@pytest.mark.parametrize(("data", "field", "reason"), REFUSED)
def test_refused_by_name(data: object, field: str, reason: str) -> None:
    with pytest.raises(UsageReadError) as caught:
        read_line(data)
    assert (caught.value.field, caught.value.reason) == (field, reason)
