"""What each account is billed for: every charge by month, line, log and era, each a plain sum.

Postings say how balances moved, step by step; where a month decides prices,
how much of a change one step makes depends on the order of reading. A bill may
not. So charges of plain lines are summed here, of metered lines their units,
and what these and the commitments come to is worked out for a set of eras when
it is asked for: by the same counts it is the same, in whatever order they came.
Over all eras it is what the postings come to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from kernel.placement import CONTROL_LOG
from pricing.domain import books
from pricing.domain.books import NO_CONTROL, Posting
from pricing.domain.catalogue import PublishedCard
from pricing.domain.meters import Commitments, Layer, MeterKey, Meters, MonthKey
from pricing.domain.period_ends import PeriodEnds
from pricing.domain.state import Billed, BillKey, Effects, Origin

USAGE: Final = "usage"
COMMITMENT: Final = "commitment"
CORRECTION: Final = "correction"
_REVENUE: Final = books.revenue("")
_CUSTOMER: Final = books.customer("")
_OF_USAGE: Final = (books.USAGE, books.SUSPENSE, books.ADJUSTMENT, books.COMMITMENT)

Version = Callable[[str, int], PublishedCard]
"""A version of a card by its id and number."""


class LineKey(NamedTuple):
    """A line of a bill."""

    month: str
    card_id: str
    version: int
    content_hash: bytes
    line_id: str
    rule: str
    kind: str
    """One of USAGE, COMMITMENT, CORRECTION."""


@dataclass(slots=True)
class Line:
    """What a line comes to: units, and pico-units."""

    units: int = 0
    amount_pico: int = 0


class Credit(NamedTuple):
    """A change of an account's credit by the control log, that usage did not make."""

    position: int
    kind: str
    other: str
    """The ledger account on the other side."""
    amount_pico: int
    """Below 0: it went."""


class Extent(NamedTuple):
    """Which charges are meant: of these logs, known before the end numbered `era`."""

    logs: frozenset[str]
    era: int

    def has(self, origin: Origin) -> bool:
        """Tell whether what has this origin is meant."""
        return origin.era <= self.era and (origin.log in self.logs or origin.log == CONTROL_LOG)


class Bills:
    """The charges of every account."""

    def __init__(self, ends: PeriodEnds, version: Version) -> None:
        self.ends = ends
        self.version = version
        self.sums: dict[str, dict[BillKey, dict[Origin, Billed]]] = {}
        """By account."""
        self.credits: dict[str, list[Credit]] = {}
        self._closings: dict[str, dict[MonthKey, tuple[int, int]]] = {}
        """(control position, version) of the commitments' closed months, by account."""

    def logs_of(self, account_id: str) -> list[str]:
        """The usage logs that an account's charges are from, in order."""
        found = {
            origin.log for origins in self.sums.get(account_id, {}).values() for origin in origins
        }
        return sorted(found - {CONTROL_LOG})

    def alone(self, account_id: str) -> Bills:
        """What the control log alone says of one account; its usage is to be put to it."""
        other = Bills(self.ends, self.version)
        other.credits[account_id] = list(self.credits.get(account_id, ()))
        other._closings[account_id] = dict(self._closings.get(account_id, {}))
        for key, origins in self.sums.get(account_id, {}).items():
            for origin, billed in origins.items():
                if origin.log == CONTROL_LOG:
                    other.put(account_id, key, origin, billed)
        return other

    def put(self, account_id: str, key: BillKey, origin: Origin, more: Billed) -> None:
        """Add to a sum."""
        origins = self.sums.setdefault(account_id, {}).setdefault(key, {})
        older = origins.get(origin)
        origins[origin] = more if older is None else older.plus(more)

    def take(self, effects: Effects, pin: int) -> None:
        """Take in a step's charges; `pin` is that of its run, or the size before its record."""
        for move in effects.meter_moves:
            origin = self._origin(move.log, move.control_position, pin)
            meter, account_id = move.key, move.key.account_id
            for layer, units in move.units:
                key = BillKey(meter.currency, meter.period, meter.card_id, meter.meter, *layer)
                self._enter(account_id, key, origin, Billed(units, 0), effects)
        for one, billed in effects.counted.items():
            origin = self._origin(one.log, one.control_position, pin)
            what = one.month, one.card_id, "", one.version, one.line_id, None, one.rule
            key = BillKey(one.currency, *what)
            self._enter(one.account_id, key, origin, billed, effects)
        for posting in effects.postings:
            self._book(posting, pin, effects)
        for month in effects.month_moves:
            if month.closes:
                # A closing is a control record's, at the size before it.
                months = self._closings.setdefault(month.key.account_id, {})
                months[month.key] = (pin, month.version)

    def _origin(self, log: str, control_position: int, pin: int) -> Origin:
        known = pin if control_position == NO_CONTROL else control_position + 1
        return Origin(log, self.ends.era_of(known))

    def _enter(
        self, account_id: str, key: BillKey, origin: Origin, billed: Billed, effects: Effects
    ) -> None:
        self.put(account_id, key, origin, billed)
        if origin.log != CONTROL_LOG:
            effects.billed.append((account_id, key, origin, billed))

    def _book(self, posting: Posting, pin: int, effects: Effects) -> None:
        """Take in a posting that usage did not make: its charges are counted beside theirs."""
        if posting.kind in _OF_USAGE:
            return
        if posting.kind != books.CORRECTION:
            self._credit(posting)
            return
        charged = posting.credit.startswith(_REVENUE)
        side = posting.debit if charged else posting.credit
        account_id = side.removeprefix(_CUSTOMER)
        origin = self._origin(CONTROL_LOG, posting.control_position, pin)
        key = BillKey(
            posting.currency,
            posting.period,
            posting.card_id,
            "",
            posting.card_version,
            posting.line_id,
            None,
            CORRECTION,
        )
        amount_pico = posting.amount_pico if charged else -posting.amount_pico
        self._enter(account_id, key, origin, Billed(posting.quantity, amount_pico), effects)

    def _credit(self, posting: Posting) -> None:
        if posting.log != CONTROL_LOG or posting.kind == books.ROUNDING:
            return
        got = posting.credit.startswith(_CUSTOMER)
        mine, other = (posting.credit, posting.debit) if got else (posting.debit, posting.credit)
        amount_pico = posting.amount_pico if got else -posting.amount_pico
        self.credits.setdefault(mine.removeprefix(_CUSTOMER), []).append(
            Credit(posting.from_position, posting.kind, other, amount_pico)
        )

    def lines(
        self, account_id: str, currency: str, extent: Extent, until: str
    ) -> dict[LineKey, Line]:
        """What an account's charges of months up to `until` come to, by line, within an extent."""
        lines: dict[LineKey, Line] = defaultdict(Line)
        meters: dict[MeterKey, dict[Layer, int]] = {}
        for key, origins in self.sums.get(account_id, {}).items():
            meant = [made for origin, made in origins.items() if extent.has(origin)]
            if key.month > until or not meant:
                continue
            if key.factor is not None:
                meter = MeterKey(account_id, currency, key.card_id, key.meter, key.month)
                layer = Layer(key.version, key.line_id, key.factor, key.rule)
                layers = meters.setdefault(meter, {})
                layers[layer] = layers.get(layer, 0) + sum(made.units for made in meant)
                continue
            kind = CORRECTION if key.rule == CORRECTION else USAGE
            what = key.month, key.card_id, key.version, key.line_id, key.rule
            line = lines[self._line_key(*what, kind)]
            for made in meant:
                line.units += made.units
                line.amount_pico += made.amount_pico
        for meter, layers in meters.items():
            self._measure(meter, layers, lines)
        self._commit(account_id, currency, extent, until, lines)
        return dict(lines)

    def _line_key(
        self, month: str, card_id: str, version: int, line_id: str, rule: str, kind: str
    ) -> LineKey:
        known = self.version(card_id, version)
        return LineKey(month, card_id, version, known.content_hash, line_id, rule, kind)

    def _measure(
        self, meter: MeterKey, layers: dict[Layer, int], lines: dict[LineKey, Line]
    ) -> None:
        """Add what a meter's layers cost by their counts."""
        meters = Meters()
        for layer, units in layers.items():
            meters.put(meter, layer, units, self.version(meter.card_id, layer.version))
        for layer, amount_pico in meters.costs(meter).items():
            key = self._line_key(
                meter.period, meter.card_id, layer.version, layer.line_id, layer.rule, USAGE
            )
            line = lines[key]
            line.units += layers[layer]
            line.amount_pico += amount_pico

    def _commit(
        self,
        account_id: str,
        currency: str,
        extent: Extent,
        until: str,
        lines: dict[LineKey, Line],
    ) -> None:
        """Add what commitments make of a month's lines."""
        commitments = Commitments()
        for key, line in lines.items():
            known = self.version(key.card_id, key.version)
            if key.kind == USAGE and known.card.commitment is not None and line.amount_pico:
                month = MonthKey(account_id, currency, key.card_id, key.month)
                commitments.charge(month, known, line.amount_pico)
        for month, (position, version) in self._closings.get(account_id, {}).items():
            if month.period <= until and self.ends.era_of(position + 1) <= extent.era:
                commitments.close(month, self.version(month.card_id, version))
        for month, found in commitments.months.items():
            if owed := commitments.owed(month):
                key = self._line_key(
                    month.period, month.card_id, found.version, "", COMMITMENT, COMMITMENT
                )
                lines[key].amount_pico += owed


def total_pico(lines: Iterable[Line]) -> int:
    """What lines come to."""
    return sum(line.amount_pico for line in lines)
