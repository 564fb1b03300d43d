"""One line of a usage file: a request with its usage object, or one of our own events.

A line is a JSON object. With `usage` (Gemini: `usageMetadata`) it is a request:

    id, account, provider, model (Gemini: modelVersion), base_model, adapter,
    dialect, usage, service_tier, region, time (RFC 3339) or created (seconds
    since 1970), outcome

With `quantities` it is a UsageEvent of protos/tollbook/usage/v1/usage.proto in
protobuf's JSON form. Fields that neither has are refused: a misspelt
`service_teir` must not become the standard price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pricing.domain.dimensions import OUTCOMES, STANDARD_TIER, Context
from pricing.domain.events import EventLeaf
from pricing.domain.readers import dialects, fields, own
from pricing.domain.readers.reading import (
    INCONSISTENT,
    MISSING_FIELD,
    NOT_READABLE,
    OUT_OF_RANGE,
    UsageReadError,
    UsageReading,
)

MAX_INSTANT_US: Final = 253_402_300_799_999_999
"""The end of the year 9999, as for cards."""

_REQUEST: Final = frozenset(
    {
        "id",
        "account",
        "provider",
        "model",
        "modelVersion",
        "base_model",
        "adapter",
        "dialect",
        "usage",
        "usageMetadata",
        "service_tier",
        "region",
        "time",
        "created",
        "outcome",
    }
)
_TEXTS: Final = _REQUEST - {"usage", "usageMetadata", "created", "time", "outcome", "service_tier"}
_EVENT_SPELLINGS: Final = {
    "eventId": "event_id",
    "accountId": "account_id",
    "projectId": "project_id",
    "keyId": "key_id",
    "holdId": "hold_id",
    "servedModel": "served_model",
    "baseModel": "base_model",
    "serviceTier": "service_tier",
    "finishReason": "finish_reason",
    "eventTime": "event_time",
    "firstTokenTime": "first_token_time",
    "endTime": "end_time",
    "outputDigest": "output_digest",
    "engineId": "engine_id",
    "choiceCount": "choice_count",
}
_EVENT: Final = frozenset(_EVENT_SPELLINGS.values()) | {
    "adapter",
    "provenance",
    "region",
    "quantities",
    "outcome",
}
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _outcomes() -> dict[Any, int]:
    found: dict[Any, int] = {}
    for number, word in OUTCOMES.items():
        if number:
            found.update({number: number, word: number, "OUTCOME_" + word.upper(): number})
    return found


_OUTCOMES: Final = _outcomes()
_COMPLETE: Final = _OUTCOMES["complete"]


class UsageLine(NamedTuple):
    """A line as rating takes it. `at_us` None: it does not say when it was."""

    line_id: str
    account_id: str
    provider: str
    context: Context
    outcome: int
    at_us: int | None
    leaves: tuple[EventLeaf, ...]
    is_request: bool
    """Whether it is a usage object of one request, and not an event that says all itself."""


def read_line(data: object) -> UsageLine:
    """Read a decoded line. Errors: UsageReadError that names the field."""
    line = fields.as_object(data, "")
    return _read_event(line) if "quantities" in line else _read_request(line)


def _read_request(line: fields.Object) -> UsageLine:
    fields.known(line, _REQUEST, "", "usage line")
    usage_field = fields.one_of(line, "usage", "usageMetadata")
    # Most lines say little: only what is there is looked at.
    said = {name: fields.word(line, name) for name in line if name in _TEXTS}.get
    model = said(fields.one_of(line, "model", "modelVersion"), "")
    if not model:
        raise UsageReadError("model", MISSING_FIELD, "this field is missing")
    usage = line.get(usage_field)
    if usage is None:
        raise UsageReadError("usage", MISSING_FIELD, "this field is missing")
    name = said("dialect", "")
    try:
        dialect = dialects.named(name) if name else dialects.detected(usage)
        reading = dialect.read(usage)
    except UsageReadError as error:
        if error.field == "dialect":
            raise
        inside = f"{usage_field}.{error.field}" if error.field else usage_field
        raise UsageReadError(inside, error.reason, error.message) from None
    context = Context(
        model,
        said("base_model", "") or model,
        said("adapter", ""),
        _tier(line, dialect, reading),
        _agreed(said("region", ""), reading.region, "region"),
    )
    return UsageLine(
        said("id", ""),
        said("account", ""),
        said("provider", ""),
        context,
        _outcome(line),
        _when_us(line),
        reading.leaves,
        dialect.name != own.NAME,
    )


def _read_event(given: fields.Object) -> UsageLine:
    line = {_EVENT_SPELLINGS.get(name, name): value for name, value in given.items()}
    if len(line) != len(given):
        raise UsageReadError("", INCONSISTENT, "a field stands there in both spellings")
    fields.known(line, _EVENT, "", "usage event")
    model = fields.word(line, "served_model")
    if not model:
        raise UsageReadError("served_model", MISSING_FIELD, "this field is missing")
    if line.get("outcome") is None:
        raise UsageReadError("outcome", MISSING_FIELD, "this field is missing")
    reading = own.read({"quantities": line["quantities"]})
    context = Context(
        model,
        fields.word(line, "base_model") or model,
        fields.word(line, "adapter"),
        fields.word(line, "service_tier") or STANDARD_TIER,
        fields.word(line, "region"),
    )
    at_us = None if line.get("event_time") is None else _instant_us(line, "event_time")
    return UsageLine(
        fields.word(line, "event_id"),
        fields.word(line, "account_id"),
        "",
        context,
        _outcome(line),
        at_us,
        reading.leaves,
        False,
    )


def _tier(line: fields.Object, dialect: dialects.Dialect, reading: UsageReading) -> str:
    """The tier that served: the line's word in our words, and what the usage object says."""
    words: Mapping[str, str] = dialect.service_tiers
    said = (
        fields.translated(line, "service_tier", words, dialect.name)
        if words
        else fields.word(line, "service_tier")
    )
    return _agreed(said, reading.service_tier, "service_tier") or STANDARD_TIER


def _agreed(of_line: str, of_usage: str, field: str) -> str:
    if of_line and of_usage and of_line != of_usage:
        raise UsageReadError(
            field, INCONSISTENT, f"{of_line!r} beside {of_usage!r} in the usage object"
        )
    return of_line or of_usage


def _outcome(line: fields.Object) -> int:
    said = line.get("outcome")
    if said is None:
        return _COMPLETE
    number = _OUTCOMES.get(said) if isinstance(said, str) or type(said) is int else None
    if number is None:
        words = ", ".join(word for number, word in OUTCOMES.items() if number)
        raise UsageReadError("outcome", NOT_READABLE, f"an outcome is one of {words}")
    return number


def _when_us(line: fields.Object) -> int | None:
    if line.get("time") is not None:
        if line.get("created") is not None:
            raise UsageReadError(
                "created", INCONSISTENT, "stands beside time; one of them is needed"
            )
        return _instant_us(line, "time")
    if line.get("created") is None:
        return None
    return _in_range(fields.count(line, "created") * 1_000_000, "created")


def _instant_us(line: fields.Object, name: str) -> int:
    text = line[name]
    try:
        if not isinstance(text, str) or not _TIME.fullmatch(text):
            raise ValueError
        delta = datetime.fromisoformat(text).astimezone(UTC) - _EPOCH
    except (ValueError, OverflowError):
        raise UsageReadError(
            name,
            NOT_READABLE,
            "an RFC 3339 instant with its zone is needed, such as 2026-01-31T00:00:00Z",
        ) from None
    return _in_range((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds, name)


def _in_range(at_us: int, name: str) -> int:
    if not 0 <= at_us <= MAX_INSTANT_US:
        raise UsageReadError(name, OUT_OF_RANGE, "instants are in the years 1970 to 9999")
    return at_us
