"""The words of the fold: what the control log made, what waits, and what a step changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pricing.domain.books import Posting
from pricing.domain.catalogue import PublishedCard
from pricing.domain.events import Event, Reading


class Account(NamedTuple):
    """An account as the control log made it."""

    position: int
    account_id: str
    currency: str
    display_name: str


class Key(NamedTuple):
    """A key as the control log made it; `secret_digest` is SHA-256 of the secret."""

    position: int
    key_id: str
    account_id: str
    project_id: str
    secret_digest: bytes
    revoked_position: int | None
    """Position of its revocation; None while it is good."""


class Grant(NamedTuple):
    """A grant of credit as the control log made it."""

    position: int
    grant_id: str
    account_id: str
    amount_pico: int


class Suspended(NamedTuple):
    """A usage event with leaves that have no price yet."""

    log: str
    pin: int
    event: Event
    """Its `leaves` are those that wait, and no others."""
    raw: bytes
    """The log's leaf, from which all of this can be had again."""

    @property
    def place(self) -> tuple[str, int]:
        """(log, position)"""
        return self.log, self.event.position


class Ignored(NamedTuple):
    """An entry that could not be applied; it stays in the log and counts for nothing."""

    log: str
    position: int
    why: str


class Applied(NamedTuple):
    """An accepted usage event that was applied: what an index and a trace need of it."""

    position: int
    account_id: str
    event_id: str
    trace_id: bytes
    span_id: bytes


@dataclass(slots=True)
class Totals:
    """What an account used: events, and tokens by what the balance shows."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, more: Totals) -> None:
        """Add another's counts to these."""
        self.requests += more.requests
        self.input_tokens += more.input_tokens
        self.cached_tokens += more.cached_tokens
        self.output_tokens += more.output_tokens
        self.cache_write_tokens += more.cache_write_tokens


@dataclass(slots=True)
class Engine:
    """An engine process by the logs: tokens in events, and its own newest counters.

    The counters are cumulative, so the largest is the newest, in whatever
    order the logs are read.
    """

    event_tokens: int = 0
    generation_tokens: int = 0
    waste_tokens: int = 0
    final: bool = False

    def add(self, more: Engine) -> None:
        """Take in what another stretch of the logs says of the same engine."""
        self.event_tokens += more.event_tokens
        self.generation_tokens = max(self.generation_tokens, more.generation_tokens)
        self.waste_tokens = max(self.waste_tokens, more.waste_tokens)
        self.final = self.final or more.final

    def read(self, reading: Reading) -> None:
        """Take in a reading."""
        self.add(Engine(0, reading.generation_tokens, reading.waste_tokens, reading.final))


@dataclass(slots=True)
class Effects:
    """What one step changes: everything a projector writes, and nothing else."""

    postings: list[Posting] = field(default_factory=list)
    totals: dict[str, Totals] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    applied: list[Applied] = field(default_factory=list)
    suspended: list[Suspended] = field(default_factory=list)
    released: list[Suspended] = field(default_factory=list)
    """Entries that wait no more. One that waits on for a part of its leaves is not here."""
    accounts: list[Account] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    """Keys made or revoked, as they are now."""
    cards: list[PublishedCard] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)

    def total_of(self, account_id: str) -> Totals:
        """The account's totals in this step."""
        return self.totals.setdefault(account_id, Totals())

    def engine_of(self, engine_id: str) -> Engine:
        """The engine's counters in this step."""
        return self.engines.setdefault(engine_id, Engine())
