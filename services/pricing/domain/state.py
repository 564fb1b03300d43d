"""The words of the fold: what the control log made, what waits, and what a step changes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Final, NamedTuple

from pricing.domain.applications import Applications
from pricing.domain.books import Posting
from pricing.domain.catalogue import PublishedCard
from pricing.domain.credits import NEVER_US
from pricing.domain.events import Event, EventLeaf, Reading
from pricing.domain.meters import Layer, MeterKey, Month, MonthKey
from tollbook.pricing.v1.accounts_pb2 import PeriodClosed


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
    priority: int = 0
    expires_us: int = NEVER_US
    project_id: str = ""


class Terms(NamedTuple):
    """How far an account may go below 0."""

    position: int
    account_id: str
    credit_limit_pico: int


class Limit(NamedTuple):
    """A limit of what is spent in each window. `amount_pico` None: it was lifted."""

    position: int
    limit_id: str
    account_id: str
    project_id: str
    key_id: str
    window: str
    time_zone: str
    amount_pico: int | None

    def covers(self, project_id: str, key_id: str) -> bool:
        """Tell whether what a project spends with a key counts here."""
        return self.project_id in ("", project_id) and self.key_id in ("", key_id)


class Change(NamedTuple):
    """A change of credit that was applied: the control record's `kind` and its body."""

    kind: str
    change_id: str
    account_id: str
    position: int
    body: bytes


class Suspended(NamedTuple):
    """A usage event with leaves that have no price yet."""

    log: str
    pin: int
    event: Event
    waiting: tuple[int, ...]
    """Indexes of the event's leaves that wait."""
    raw: bytes
    """The log's leaf, from which all of this can be had again."""

    @property
    def place(self) -> tuple[str, int]:
        """(log, position)"""
        return self.log, self.event.position

    @property
    def unpriced(self) -> tuple[EventLeaf, ...]:
        """The leaves that wait."""
        return tuple(self.event.leaves[index] for index in self.waiting)


class Ignored(NamedTuple):
    """An entry that could not be applied; it stays in the log and counts for nothing."""

    log: str
    position: int
    why: str


class MeterMove(NamedTuple):
    """Units that a run counted on a meter, and what the meter stood at before."""

    key: MeterKey
    before: tuple[tuple[Layer, int], ...]
    units: tuple[tuple[Layer, int], ...]
    log: str
    from_position: int
    to_position: int
    control_position: int
    """As in a posting."""


class Closed(NamedTuple):
    """A month that a control record closed, and the version whose terms hold."""

    position: int
    period: str
    terms: PublishedCard


class MonthMove(NamedTuple):
    """Charges that count towards a month's commitment, or its closing."""

    key: MonthKey
    before: Month | None
    """What the month stood at; None: nothing had been charged."""
    version: int
    amount_pico: int
    closes: bool


class Use(NamedTuple):
    """What usage can be summed by. `minute_us`: the minute of the event's own time.

    `leaf` is the leaf's dimensions in one text, or EVENT for the events themselves.
    Card and line are empty for what has no price (yet).
    """

    account_id: str
    project_id: str
    key_id: str
    model: str
    adapter: str
    service_tier: str
    region: str
    outcome: str
    leaf: str
    minute_us: int
    card_id: str = ""
    card_version: int = 0
    line_id: str = ""


class Used(NamedTuple):
    """A sum of usage: units, units of them that are charged, and the charge in pico-units."""

    amount: int
    charged: int
    amount_pico: int

    def plus(self, more: Used) -> Used:
        """Both together."""
        return Used(
            self.amount + more.amount,
            self.charged + more.charged,
            self.amount_pico + more.amount_pico,
        )


class Origin(NamedTuple):
    """Where a charge comes from: a log, and the number of ended periods known by then."""

    log: str
    era: int


class BillKey(NamedTuple):
    """What of an account's charges is summed together (billing.py)."""

    currency: str
    month: str
    card_id: str
    meter: str
    version: int
    line_id: str
    factor: Fraction | None
    """Of a metered line, of which units are summed and amounts are not; else None."""
    rule: str


class Billed(NamedTuple):
    """A sum of charges: units, and pico-units."""

    units: int
    amount_pico: int

    def plus(self, more: Billed) -> Billed:
        """Both together."""
        return Billed(self.units + more.units, self.amount_pico + more.amount_pico)


class Counted(NamedTuple):
    """Whose units a line that is not metered charges, and by what: also where they cost nothing."""

    account_id: str
    currency: str
    card_id: str
    version: int
    line_id: str
    rule: str
    month: str
    log: str
    control_position: int
    """As in a posting."""


EVENT: Final = "event"
"""In the place of a leaf: the accepted events."""


@dataclass(slots=True)
class Totals:
    """What an account used: events, and tokens by what the balance shows."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0

    def add_tokens(self, place: int, amount: int) -> None:
        """Add to the field at a place, from 1 on: the fields in their order."""
        name = _TOTALS[place]
        setattr(self, name, getattr(self, name) + amount)

    def add_counts(
        self,
        requests: int,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        cache_write_tokens: int,
    ) -> None:
        """Add to every field."""
        self.requests += requests
        self.input_tokens += input_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += output_tokens
        self.cache_write_tokens += cache_write_tokens

    def add(self, more: Totals) -> None:
        """Add another's counts to these."""
        self.add_counts(
            more.requests,
            more.input_tokens,
            more.cached_tokens,
            more.output_tokens,
            more.cache_write_tokens,
        )


_TOTALS: Final = tuple(one.name for one in fields(Totals))


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
    applied: Applications = field(default_factory=Applications)
    suspended: list[Suspended] = field(default_factory=list)
    released: list[Suspended] = field(default_factory=list)
    """Entries that wait no more. One that waits on for a part of its leaves is not here."""
    accounts: list[Account] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    """Keys made or revoked, as they are now."""
    cards: list[PublishedCard] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    settled_holds: list[tuple[str, str]] = field(default_factory=list)
    """(account_id, hold_id) of holds whose amount is posted in this step."""
    recorded: list[tuple[int, int]] = field(default_factory=list)
    """(control position, when it was recorded in microseconds since the epoch)"""
    used: dict[Use, Used] = field(default_factory=dict)
    """What was used and charged, by minute and everything it can be asked for by."""
    ignored: list[Ignored] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    meter_moves: list[MeterMove] = field(default_factory=list)
    month_moves: list[MonthMove] = field(default_factory=list)
    counted: dict[Counted, Billed] = field(default_factory=dict)
    """Units that lines which are not metered charge, and what they come to."""
    billed: list[tuple[str, BillKey, Origin, Billed]] = field(default_factory=list)
    """(account_id, what, from where, how much) of usage that is to be billed."""
    closes: list[tuple[int, PeriodClosed]] = field(default_factory=list)
    """(control position, record) of closings that are to be judged."""
    passed: list[tuple[str, int, int]] = field(default_factory=list)
    """(log, era, first position) of runs whose pin is the first of its era in their log."""

    def use(self, use: Use, amount: int, charged: int, amount_pico: int) -> None:
        """Add to what was used: units, units charged, and their charge in pico-units."""
        older, more = self.used.get(use), Used(amount, charged, amount_pico)
        self.used[use] = more if older is None else older.plus(more)

    def total_of(self, account_id: str) -> Totals:
        """The account's totals in this step."""
        found = self.totals.get(account_id)
        if found is None:
            found = self.totals[account_id] = Totals()
        return found

    def engine_of(self, engine_id: str) -> Engine:
        """The engine's counters in this step."""
        found = self.engines.get(engine_id)
        if found is None:
            found = self.engines[engine_id] = Engine()
        return found
