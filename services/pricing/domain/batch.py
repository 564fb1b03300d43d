"""Rating a run of usage entries at once: equal leaves are summed first and priced once.

Real traffic repeats few combinations of account, model, outcome and leaf, and
a charge is linear in the count. So each entry costs a few additions, and the
catalogue is asked once for each combination. rating.py is the reference:
both give the same amounts, to the last unit.

A long run is added up by compiled loops where they are loaded (tally.py), and
only what they do not read is read here one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kernel.clock import us_of
from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.charges import Charges
from pricing.domain.dimensions import EMBEDDING, LeafKey, leaf_key
from pricing.domain.events import (
    MAX_QUANTITY,
    UnusableLeafError,
    check_counts,
    context_of,
    event_of,
    read_event,
    reading_of,
    record_of,
    usage_event_of,
)
from pricing.domain.months import month_of
from pricing.domain.outcomes import charged_quantity
from pricing.domain.prices import charge_pico
from pricing.domain.rating import context_units, outcome_word, starts_of
from pricing.domain.spending import leaf_text, leaf_use, line_use, minutes, use_of
from pricing.domain.state import Applied, Effects, Ignored, Totals, Use
from pricing.domain.tally import MAX_LEAVES, MIN_LEAVES, is_ready, tally
from pricing.domain.windows import minute_us
from tollbook.usage.v1 import usage_pb2 as usage

# More than there are minutes up to the last year that a calendar has.
_MINUTES: Final = 2**33
_Dims = tuple[int, int, int, int, int, int, str]


class _Group:
    """All entries of a run that one price rules for each kind of leaf."""

    __slots__ = (
        "account_id",
        "context_units",
        "currency",
        "engine_id",
        "kinds",
        "month",
        "prices",
        "requests",
        "sample",
        "segment",
        "use",
    )

    def __init__(
        self,
        event: usage.UsageEvent,
        currency: str | None,
        segment: int,
        month: str,
        context_units: int,
        prices: dict[_Dims, _Prices],
        use: Use | None,
    ) -> None:
        self.account_id = event.account_id
        self.engine_id = event.engine_id
        self.currency = currency
        self.segment = segment
        self.month = month
        self.context_units = context_units
        """Of one of them: of all of them the price is the same."""
        self.sample = event
        self.requests = 0
        self.prices = prices
        self.use = use
        """What it is summed by; None where nothing is."""
        self.kinds: dict[_Dims, _Kind] = {}


class _Prices(NamedTuple):
    """What prices a kind of leaf, for all groups that are alike but for whose they are."""

    key: LeafKey
    leaf: str
    """The key as a use names it."""
    each: tuple[Priced, ...]
    """The line's and the surcharges'. Empty: it waits."""
    rule: str
    goes_by_one: bool
    """Whether single leaves matter: a sum of counts would cost something else."""
    goes_by_place: bool
    """Whether it matters where in its context a leaf stands."""


def _prices(key: LeafKey, priced: Priced | None, outcome: int) -> _Prices:
    if priced is None:
        return _Prices(key, leaf_text(key), (), "", False, False)
    each = (priced, *priced.surcharges)
    return _Prices(
        key,
        leaf_text(key),
        each,
        priced.published.card.outcome_rule(outcome_word(outcome)),
        any(not (one.price.is_even or one.price.is_metered) for one in each),
        any(one.price.is_graduated for one in each),
    )


class _Kind:
    """A kind of leaf in a group: its prices, and its counts so far."""

    __slots__ = ("amount", "by_one_pico", "context_units", "end", "first", "prices", "undelivered")

    def __init__(self, prices: _Prices, first: int, context_units: int) -> None:
        self.prices = prices
        self.context_units = context_units
        self.amount = 0
        self.undelivered = 0
        self.first = first
        self.end = first
        self.by_one_pico = [0] * len(prices.each)
        """What is charged of single leaves."""

    def add(self, amount: int, undelivered: int, first: int, end: int) -> None:
        """Add counts of the entries in [first, end)."""
        self.amount += amount
        self.undelivered += undelivered
        self.first = min(self.first, first)
        self.end = max(self.end, end)

    def add_one(
        self, amount: int, undelivered: int, context_units: int, start: int, times: int = 1
    ) -> None:
        """Charge a leaf by itself, where that matters."""
        charged = charged_quantity(amount, undelivered, self.prices.rule)
        for index, one in enumerate(self.prices.each):
            if not (one.price.is_even or one.price.is_metered):
                amount_pico = charge_pico(one.price, charged, context_units, start)
                self.by_one_pico[index] += times * amount_pico

    def charge(self, group: _Group, charges: Charges) -> None:
        """Charge what was added up."""
        uses: list[Use | None] = [None] * len(self.prices.each)
        if group.use is not None:
            leaf = self.prices.leaf
            made = [line_use(group.use, leaf, one) for one in self.prices.each]
            charges.use(made[0] if made else leaf_use(group.use, leaf), self.amount)
            uses = [*made]
        if group.currency is None:
            return
        charged = charged_quantity(self.amount, self.undelivered, self.prices.rule)
        for one, by_one_pico, use in zip(self.prices.each, self.by_one_pico, uses, strict=True):
            amount_pico = by_one_pico
            if one.price.is_even:
                amount_pico = charge_pico(one.price, charged, group.context_units, 0)
            charges.add(
                group.account_id,
                group.currency,
                one,
                charged,
                amount_pico,
                self.first,
                self.end,
                use,
                group.month,
            )


class Rated(NamedTuple):
    """What a run gives, but for what waits: that is `unpriced`."""

    effects: Effects
    unpriced: list[int]
    """Positions of events with a leaf that has no price under the pin."""


def rate_run(
    log: str,
    first_position: int,
    data: Sequence[bytes],
    currency_of: Callable[[str], str | None],
    catalogue: Catalogue,
    charges: Charges,
) -> Rated:
    """Rate a run of leaves that share a pin, into `charges`.

    `currency_of` answers for every account known at the pin. An entry that
    does not read as the contract says is named in `ignored` and counts for
    nothing.
    """
    run = _Run(log, currency_of, catalogue, charges.sums_use)
    for start in range(0, len(data), MAX_LEAVES):
        part = data[start : start + MAX_LEAVES]
        if len(part) >= MIN_LEAVES and is_ready():
            run.add_tally(first_position + start, part)
        else:
            for position, raw in enumerate(part, first_position + start):
                run.add(position, raw)
    return run.finish(charges)


class _Run:
    """The sums of a run while it is read."""

    def __init__(
        self,
        log: str,
        currency_of: Callable[[str], str | None],
        catalogue: Catalogue,
        sums_use: bool = True,
    ) -> None:
        self.effects = Effects()
        self._sums_use = sums_use
        self._log = log
        self._currency_of = currency_of
        self._catalogue = catalogue
        self._groups: dict[tuple[str | int, ...], _Group] = {}
        self._priced: dict[tuple[str | int | None, ...], dict[_Dims, _Prices]] = {}
        self._unpriced: list[int] = []

    def add(self, position: int, raw: bytes) -> None:
        """Add one leaf."""
        try:
            record = record_of(raw)
            if record is None:
                return
            body = record.WhichOneof("body")
            if body == "usage_event":
                self._add_event(position, record)
            elif body == "engine_reading":
                reading = reading_of(position, record.engine_reading)
                self.effects.engine_of(reading.engine_id).read(reading)
        except UnusableLeafError as error:
            self.effects.ignored.append(Ignored(self._log, position, str(error)))

    def add_tally(self, first_position: int, data: Sequence[bytes]) -> None:
        """Add leaves by the compiled loops, and one by one those that these do not read."""
        of_time = self._stretch_of_time if self._sums_use else self._catalogue.segments
        found = tally(data, of_time, self._catalogue.context_bounds, self._sums_use)
        groups: list[_Group] = []
        for of_group in found.groups():
            record = record_of(data[of_group.sample])
            if record is None:
                raise AssertionError("a leaf that was added up holds no accepted record")
            group = self._group_of(usage_event_of(record))
            group.requests += of_group.requests
            groups.append(group)
        by_one: dict[int, _Kind] = {}
        unpriced: list[int] = []
        for number, cell in enumerate(found.cells()):
            group = groups[cell.group]
            first, end = first_position + cell.first, first_position + cell.end
            kind = self._kind(group, cell.dimensions, first)
            kind.add(cell.amount, cell.undelivered, first, end)
            if not kind.prices.each:
                unpriced.append(number)
            elif kind.prices.goes_by_one:
                by_one[number] = kind
        single = found.quantities_of([*unpriced, *by_one])
        waiting = {first_position + index for cell in unpriced for index, _, _ in single[cell]}
        self._unpriced += waiting
        for number, kind in by_one.items():
            self._add_single(kind, first_position, data, single[number])
        account_ids = [group.account_id for group in groups]
        self.effects.applied.add(
            found.events,
            lambda: found.applied(first_position, account_ids),
            lambda: found.places(first_position, account_ids),
        )
        odd = found.odd()
        for index in odd:
            self.add(first_position + index, data[index])

    def _stretch_of_time(self, times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A number for each instant, the same for those of one segment and one minute."""
        return self._catalogue.segments(times_us) * _MINUTES + minutes(times_us)

    def _add_single(
        self,
        kind: _Kind,
        first_position: int,
        data: Sequence[bytes],
        quantities: Sequence[tuple[int, int, int]],
    ) -> None:
        """Charge a kind's leaves one by one: (index of the event, amount, undelivered)."""
        if not kind.prices.goes_by_place:
            # The context's length is within one band: any of the group's is as good.
            counts = Counter((amount, undelivered) for _, amount, undelivered in quantities)
            for (amount, undelivered), times in counts.items():
                kind.add_one(amount, undelivered, kind.context_units, 0, times)
            return
        for index in dict.fromkeys(index for index, _, _ in quantities):
            event = read_event(first_position + index, data[index])
            length = context_units(event)
            for leaf, start in zip(event.leaves, starts_of(event), strict=True):
                if leaf.key == kind.prices.key:
                    kind.add_one(leaf.amount, leaf.undelivered, length, start)

    def _add_event(self, position: int, record: usage.UsageRecord) -> None:
        event = usage_event_of(record)
        if not event.account_id:
            raise UnusableLeafError("a usage event without an account")
        counts: list[tuple[_Dims, int, int, int]] = []
        # Counts are all checked before any is added: an entry counts whole or not at all.
        for index, item in enumerate(event.quantities):
            amount, undelivered = item.amount, item.undelivered_amount
            if not 0 <= undelivered <= amount <= MAX_QUANTITY:
                check_counts(amount, undelivered)
            if amount:
                dims: _Dims = (
                    item.unit,
                    item.direction,
                    item.modality,
                    item.cache_use,
                    item.cache_ttl,
                    item.token_kind,
                    item.attribute,
                )
                counts.append((dims, amount, undelivered, index))
        group = self._group_of(event)
        group.requests += 1
        length = _context_units(event)
        waits = False
        for dims, amount, undelivered, index in counts:
            kind = self._kind(group, dims, position)
            kind.add(amount, undelivered, position, position + 1)
            if not kind.prices.each:
                waits = True
            elif kind.prices.goes_by_one:
                start = 0
                if kind.prices.goes_by_place:
                    start = starts_of(event_of(position, event))[index]
                kind.add_one(amount, undelivered, length, start)
        if waits:
            self._unpriced.append(position)
        self.effects.applied.append(
            Applied(position, event.account_id, event.event_id, record.trace_id, record.span_id)
        )

    def _group_of(self, event: usage.UsageEvent) -> _Group:
        time_us = us_of(event.event_time)
        segment = self._catalogue.segment(time_us)
        length = _context_units(event)
        prices_by: tuple[str | int, ...] = (
            event.served_model,
            event.base_model,
            event.adapter,
            event.service_tier,
            event.region,
            event.outcome,
            segment,
            bisect_right(self._catalogue.context_bounds, length),
        )
        sums_by: tuple[str | int, ...] = ()
        if self._sums_use:
            sums_by = event.project_id, event.key_id, minute_us(time_us)
        key = (event.account_id, event.engine_id, *prices_by, *sums_by)
        group = self._groups.get(key)
        if group is None:
            currency = self._currency_of(event.account_id)
            alike = (self._catalogue.priced_as(event.account_id), currency, *prices_by)
            prices = self._priced.setdefault(alike, {})
            use = use_of(event, minute_us(time_us)) if self._sums_use else None
            group = self._groups[key] = _Group(
                event, currency, segment, month_of(time_us), length, prices, use
            )
        return group

    def _kind(self, group: _Group, dims: _Dims, position: int) -> _Kind:
        kind = group.kinds.get(dims)
        if kind is None:
            prices = group.prices.get(dims)
            if prices is None:
                prices = group.prices[dims] = self._price(group, dims)
            kind = group.kinds[dims] = _Kind(prices, position, group.context_units)
        return kind

    def _price(self, group: _Group, dims: _Dims) -> _Prices:
        key = leaf_key(*dims)
        priced: Priced | None = None
        if group.currency is not None:
            priced = self._catalogue.price(
                group.account_id, group.currency, group.segment, context_of(group.sample), key
            )
        return _prices(key, priced, group.sample.outcome)

    def finish(self, charges: Charges) -> Rated:
        """Charge everything, and give what else the run changes."""
        for group in self._groups.values():
            totals = self.effects.total_of(group.account_id)
            totals.requests += group.requests
            if group.use is not None:
                charges.use(group.use, group.requests)
            for kind in group.kinds.values():
                self._count(group, totals, kind.prices.key, kind.amount)
                kind.charge(group, charges)
        return Rated(self.effects, sorted(self._unpriced))

    def _count(self, group: _Group, totals: Totals, key: LeafKey, amount: int) -> None:
        if key.unit != "token":
            return
        if group.engine_id and (key.direction == "out" or key.token_kind == EMBEDDING):
            self.effects.engine_of(group.engine_id).event_tokens += amount
        if key.direction == "out":
            totals.output_tokens += amount
        elif key.direction == "in":
            if key.cache_use == "read":
                totals.cached_tokens += amount
            elif key.cache_use == "write":
                totals.cache_write_tokens += amount
            else:
                totals.input_tokens += amount


def _context_units(event: usage.UsageEvent) -> int:
    return sum(
        item.amount
        for item in event.quantities
        if item.unit == usage.UNIT_TOKEN and item.direction == usage.DIRECTION_IN
    )
