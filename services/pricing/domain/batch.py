"""Rating a run of usage entries at once: equal leaves are summed first and priced once.

Real traffic repeats few combinations of account, model, outcome and leaf, and
a charge is linear in the count. So each entry costs a few additions, and the
catalogue is asked once for each combination. rating.py is the reference:
both give the same amounts, to the last unit.

A long run is added up by compiled loops where they are loaded (tally.py), and
only what they do not read is read here one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from kernel.clock import us_of
from pricing.domain import books
from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.dimensions import LeafKey, leaf_key
from pricing.domain.events import (
    MAX_QUANTITY,
    UnusableLeafError,
    check_counts,
    context_of,
    reading_of,
    record_of,
    usage_event_of,
)
from pricing.domain.rating import outcome_word
from pricing.domain.state import Applied, Effects, Ignored, Totals
from pricing.domain.tally import MAX_LEAVES, MIN_LEAVES, Tally, is_ready, tally
from tollbook.usage.v1 import usage_pb2 as usage

_Dims = tuple[int, int, int, int, int, int, str]
_AMOUNT: Final = 0
_UNDELIVERED: Final = 1
_FIRST: Final = 2
_END: Final = 3


class _Group:
    """All entries of a run that one price rules for each kind of leaf."""

    __slots__ = ("account_id", "currency", "engine_id", "leaves", "requests", "sample", "segment")

    def __init__(self, event: usage.UsageEvent, currency: str | None, segment: int) -> None:
        self.account_id = event.account_id
        self.engine_id = event.engine_id
        self.currency = currency
        self.segment = segment
        self.sample = event
        self.requests = 0
        self.leaves: dict[_Dims, _Sum] = {}


class _Sum(NamedTuple):
    """A kind of leaf in a group: its key, its price, and its counts so far."""

    key: LeafKey
    priced: Priced | None
    rule: str
    counts: list[int]
    """[amount, undelivered, first position, position after the last]"""

    def add(self, amount: int, undelivered: int, first: int, end: int) -> None:
        """Add counts of the entries in [first, end)."""
        counts = self.counts
        counts[_AMOUNT] += amount
        counts[_UNDELIVERED] += undelivered
        counts[_FIRST] = min(counts[_FIRST], first)
        counts[_END] = max(counts[_END], end)


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
) -> Rated:
    """Rate a run of leaves that share a pin.

    `currency_of` answers for every account known at the pin. An entry that
    does not read as the contract says is named in `ignored` and counts for
    nothing.
    """
    run = _Run(log, currency_of, catalogue)
    for start in range(0, len(data), MAX_LEAVES):
        part = data[start : start + MAX_LEAVES]
        if len(part) >= MIN_LEAVES and is_ready():
            run.add_tally(first_position + start, part, tally(part, catalogue.edges_us))
        else:
            for position, raw in enumerate(part, first_position + start):
                run.add(position, raw)
    return run.finish()


class _Run:
    """The sums of a run while it is read."""

    def __init__(
        self, log: str, currency_of: Callable[[str], str | None], catalogue: Catalogue
    ) -> None:
        self.effects = Effects()
        self._log = log
        self._currency_of = currency_of
        self._catalogue = catalogue
        self._groups: dict[tuple[str | int, ...], _Group] = {}
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

    def add_tally(self, first_position: int, data: Sequence[bytes], found: Tally) -> None:
        """Add leaves that were added up, and one by one those that were not."""
        groups: list[_Group] = []
        for of_group in found.groups():
            record = record_of(data[of_group.sample])
            if record is None:
                raise AssertionError("a leaf that was added up holds no accepted record")
            group = self._group_of(usage_event_of(record))
            group.requests += of_group.requests
            groups.append(group)
        unpriced: list[int] = []
        for number, cell in enumerate(found.cells()):
            group = groups[cell.group]
            first, end = first_position + cell.first, first_position + cell.end
            of_leaf = group.leaves.get(cell.dimensions)
            if of_leaf is None:
                of_leaf = group.leaves[cell.dimensions] = self._price(group, cell.dimensions, first)
            of_leaf.add(cell.amount, cell.undelivered, first, end)
            if of_leaf.priced is None:
                unpriced.append(number)
        self._unpriced += (first_position + index for index in found.events_of(unpriced))
        self.effects.applied += found.applied(
            first_position, [group.account_id for group in groups]
        )
        odd = found.odd()
        for index in odd:
            self.add(first_position + index, data[index])
        if odd:
            self.effects.applied.sort(key=itemgetter(0))

    def _add_event(self, position: int, record: usage.UsageRecord) -> None:
        event = usage_event_of(record)
        if not event.account_id:
            raise UnusableLeafError("a usage event without an account")
        counts: list[tuple[_Dims, int, int]] = []
        # Counts are all checked before any is added: an entry counts whole or not at all.
        for item in event.quantities:
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
                counts.append((dims, amount, undelivered))
        group = self._group_of(event)
        group.requests += 1
        waits = False
        for dims, amount, undelivered in counts:
            found = group.leaves.get(dims)
            if found is None:
                found = group.leaves[dims] = self._price(group, dims, position)
            found.add(amount, undelivered, position, position + 1)
            if found.priced is None:
                waits = True
        if waits:
            self._unpriced.append(position)
        self.effects.applied.append(
            Applied(position, event.account_id, event.event_id, record.trace_id, record.span_id)
        )

    def _group_of(self, event: usage.UsageEvent) -> _Group:
        segment = self._catalogue.segment(us_of(event.event_time))
        key = (
            event.account_id,
            event.served_model,
            event.base_model,
            event.adapter,
            event.service_tier,
            event.region,
            event.outcome,
            event.engine_id,
            segment,
        )
        group = self._groups.get(key)
        if group is None:
            currency = self._currency_of(event.account_id)
            group = self._groups[key] = _Group(event, currency, segment)
        return group

    def _price(self, group: _Group, dims: _Dims, position: int) -> _Sum:
        key = leaf_key(*dims)
        priced: Priced | None = None
        rule = ""
        if group.currency is not None:
            priced = self._catalogue.price(
                group.account_id, group.currency, group.segment, context_of(group.sample), key
            )
        if priced is not None:
            rule = priced.published.card.outcome_rule(outcome_word(group.sample.outcome))
        return _Sum(key, priced, rule, [0, 0, position, position])

    def finish(self) -> Rated:
        charges = books.Charges(self._log)
        for group in self._groups.values():
            totals = self.effects.total_of(group.account_id)
            totals.requests += group.requests
            for found in group.leaves.values():
                amount, undelivered, first, end = found.counts
                self._count(group, totals, found.key, amount)
                if found.priced is not None and group.currency is not None:
                    charges.add(
                        group.account_id,
                        group.currency,
                        found.priced,
                        found.rule,
                        amount,
                        undelivered,
                        first,
                        end,
                    )
        self.effects.postings = charges.postings()
        return Rated(self.effects, sorted(self._unpriced))

    def _count(self, group: _Group, totals: Totals, key: LeafKey, amount: int) -> None:
        if key.unit != "token":
            return
        if key.direction == "out":
            totals.output_tokens += amount
            if group.engine_id:
                self.effects.engine_of(group.engine_id).event_tokens += amount
        elif key.direction == "in":
            if key.cache_use == "read":
                totals.cached_tokens += amount
            elif key.cache_use == "write":
                totals.cache_write_tokens += amount
            else:
                totals.input_tokens += amount
