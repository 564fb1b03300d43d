"""The records of the spool: what a process notes so that the next one can go on.

Pure shapes. Their bytes are adapters/spool_codec.py's, their meaning together is
domain/journal.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Booted:
    """A process began to write here; `engine_id` names its engine."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Started:
    """A request was admitted.

    `template`: the serialized UsageEvent with everything that is known before
    generation. `serial` is unique in the spool. `choices` is 0 where vectors are made.
    """

    serial: int
    account_id: str
    request_id: str
    body_digest: bytes
    template: bytes
    trace_id: bytes
    span_id: bytes
    prompt_tokens: int
    choices: int


@dataclass(frozen=True, slots=True)
class Progress:
    """New tokens of a choice, about to leave to the caller.

    `total_tokens` is the choice's count with these: a check, and what makes the
    record readable alone. `delivered_tokens`: how many the caller had been
    handed when this was written. `cached_tokens`: the engine's cache figure, or -1 while it has
    not given any.
    """

    serial: int
    choice: int
    total_tokens: int
    delivered_tokens: int
    cached_tokens: int
    at_us: int
    token_ids: Sequence[int]
    text: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors came of inputs of so many tokens."""

    serial: int
    tokens: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A started request never ran: it is as if it had not been sent."""

    serial: int


@dataclass(frozen=True, slots=True)
class EngineCount:
    """An engine's counters and itemised waste, cumulative."""

    engine_id: str
    generation_tokens: int
    prompt_tokens: int
    waste: Mapping[int, int]
    final: bool
    inferred_tokens: int = 0
    """Of generation_tokens, beyond the counter's last recorded value."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """A record for the topic, with the place that it keeps for ever.

    `value`: the serialized UsageRecord. `closes`: it is its stream's last.
    """

    partition: int
    key: str
    stream_id: str
    stream_seq: int
    trace_id: bytes
    span_id: bytes
    value: bytes
    closes: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """What a choice came to, for whoever asks again.

    Of an embedding one for each input: a vector's components as the bits of IEEE 754's binary32
    in the place of ids.
    """

    token_ids: Sequence[int]
    text: str
    finish_reason: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's one event, and its result.

    One record and not two: the event on its way and the request's end are
    either both here or neither. `output_tokens`: what the engine's counter has of it, generated
    or embedded.
    """

    serial: int
    account_id: str
    request_id: str
    body_digest: bytes
    engine_id: str
    output_tokens: int
    event: bytes
    log: str
    results: Sequence[ChoiceResult]
    outbound: Outbound


@dataclass(frozen=True, slots=True)
class Noted:
    """An engine's counters, and the record of the topic that says so, if any."""

    count: EngineCount
    outbound: Outbound | None


@dataclass(frozen=True, slots=True)
class Closed:
    """A stream's closing record."""

    outbound: Outbound


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker has this stream's records up to and with `stream_seq`."""

    stream_id: str
    stream_seq: int


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Where a stream stands."""

    stream_id: str
    partition: int
    next_seq: int
    acked_seq: int
    closed: bool


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """Where an engine's account stands."""

    count: EngineCount
    settled_tokens: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """First record of a segment: all that must outlive the segments before it."""

    next_serial: int
    streams: Sequence[StreamPlace] = field(default_factory=tuple)
    engines: Sequence[EnginePlace] = field(default_factory=tuple)


Record = (
    Booted | Started | Progress | Embedded | Withdrawn | Settled | Noted | Closed | Acked | Snapshot
)
