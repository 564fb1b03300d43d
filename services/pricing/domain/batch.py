"""Rating a run of usage entries at once: equal leaves are summed first and priced once.

Real traffic repeats few combinations of account, model, outcome and leaf, and
a charge is linear in the count. So each entry costs a few additions, and the
catalogue is asked once for each combination, whatever the number of runs
(price_book.py). rating.py is the reference: both give the same amounts, to the
last unit.

A long run is added up by compiled loops where they are loaded (tally.py), and
only what they do not read is read here one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kernel.clock import us_of
from pricing.domain.applications import Applied
from pricing.domain.books import NO_CONTROL
from pricing.domain.catalogue import Catalogue
from pricing.domain.charges import Charges
from pricing.domain.compiled import columns
from pricing.domain.events import (
    MAX_QUANTITY,
    UnusableLeafError,
    check_counts,
    context_of,
    event_of,
    reading_of,
    record_of,
    usage_event_of,
)
from pricing.domain.months import month_of
from pricing.domain.price_book import (
    CACHE_WRITE,
    CACHED,
    NO_TOKENS,
    OUTPUT,
    Dims,
    Prices,
    Shape,
    books_of,
)
from pricing.domain.rating import starts_of
from pricing.domain.single_leaves import Group, Kind, Owner, add_one, by_one
from pricing.domain.spending import leaf_use, minutes, use_of
from pricing.domain.state import Effects, Ignored, Totals, Use
from pricing.domain.tally import MAX_LEAVES, MIN_LEAVES, Cell, Tally, is_ready, tally
from pricing.domain.windows import MINUTE_US, minute_us
from tollbook.usage.v1 import usage_pb2 as usage


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
    run = _Run(log, currency_of, catalogue, charges)
    for start in range(0, len(data), MAX_LEAVES):
        part = data[start : start + MAX_LEAVES]
        if len(part) >= MIN_LEAVES and is_ready():
            run.add_tally(first_position + start, part)
        else:
            for position, raw in enumerate(part, first_position + start):
                run.add(position, raw)
    return run.finish()


class _Run:
    """The sums of a run while it is read."""

    def __init__(
        self,
        log: str,
        currency_of: Callable[[str], str | None],
        catalogue: Catalogue,
        charges: Charges,
    ) -> None:
        self.effects = Effects()
        self._log = log
        self._currency_of = currency_of
        self._catalogue = catalogue
        self._books = books_of(catalogue)
        self._charges = charges
        self._owners: dict[str, Owner] = {}
        self._groups: dict[tuple[str, str, Shape, Use | None], Group] = {}
        self._kinds: dict[tuple[int, Dims], tuple[Group, Kind]] = {}
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
        by_use = self._charges.sums_use
        found = tally(
            data,
            self._catalogue.segments,
            self._catalogue.context_bounds,
            minutes if by_use else None,
        )
        groups = self._groups_of(found, data)
        single: dict[int, tuple[Group, Prices, Cell]] = {}
        for number, row in enumerate(found.rows):
            kinds, text_at, text_bytes, amount, undelivered, of_group, first, end = row
            group = groups[of_group]
            attribute = found.attribute(text_at, text_bytes) if text_bytes else b""
            prices = group.book.packed(kinds, attribute)
            if prices.goes_by_one or not prices.parts:
                single[number] = group, prices, Cell._make(row)
            else:
                first, end = first_position + first, first_position + end
                self._charge(group, prices, amount, undelivered, first, end)
        counts = found.quantities_of([*single])
        waiting: set[int] = set()
        for number, (group, prices, cell) in single.items():
            by_one_pico: list[int] | None = None
            if prices.parts:
                by_one_pico = by_one(group, prices, first_position, data, counts[number])
            else:
                waiting |= {first_position + index for index, _, _ in counts[number]}
            self._charge(
                group,
                prices,
                cell.amount,
                cell.undelivered,
                first_position + cell.first,
                first_position + cell.end,
                by_one_pico,
            )
        self._unpriced += waiting
        self.effects.applied.add(
            found.events,
            lambda: found.applied(first_position),
            lambda: found.placed(first_position),
        )
        for index in found.odd():
            self.add(first_position + index, data[index])

    def _groups_of(self, found: Tally, data: Sequence[bytes]) -> list[Group]:
        """What a tally's groups are charged by, with their events counted."""
        groups: list[Group] = []
        shapes: list[tuple[Shape, int] | None] = [None] * found.shapes
        account_ids = found.texts(columns.ACCOUNT_ID)
        engine_ids = found.texts(columns.ENGINE_ID)
        by_use = self._charges.sums_use
        project_ids = found.texts(columns.PROJECT_ID) if by_use else account_ids
        key_ids = found.texts(columns.KEY_ID) if by_use else account_ids
        for number, (of_group, account_id, engine_id, project_id, key_id) in enumerate(
            zip(found.groups(), account_ids, engine_ids, project_ids, key_ids, strict=True)
        ):
            known = shapes[of_group.shape]
            if known is None:
                written = found.context(number), of_group.outcome, of_group.segment, of_group.band
                known = self._books.shape(written)
                if known is None:
                    event = _event_in(data[of_group.sample])
                    shape = self._shape(event, us_of(event.event_time), of_group.segment)
                    known = shape, _context_units(event)
                    self._books.keep_shape(written, known)
                shapes[of_group.shape] = known
            shape, length = known
            owner = self._owner(account_id)
            use = None
            if by_use:
                minute = of_group.minute * MINUTE_US
                use = use_of(account_id, project_id, key_id, shape.context, shape.outcome, minute)
            groups.append(self._counted(owner, engine_id, shape, length, use, of_group.requests))
        return groups

    def _shape(self, event: usage.UsageEvent, time_us: int, segment: int) -> Shape:
        band = bisect_right(self._catalogue.context_bounds, _context_units(event))
        return Shape(context_of(event), event.outcome, segment, band, month_of(time_us))

    def _owner(self, account_id: str) -> Owner:
        owner = self._owners.get(account_id)
        if owner is None:
            totals = self.effects.total_of(account_id)
            owner = Owner(account_id, self._currency_of(account_id), totals)
            self._owners[account_id] = owner
        return owner

    def _counted(
        self,
        owner: Owner,
        engine_id: str,
        shape: Shape,
        length: int,
        use: Use | None,
        requests: int,
    ) -> Group:
        """A group, with so many events more counted."""
        owner.totals.requests += requests
        if use is not None:
            self._charges.use(use, requests)
        book = self._books.of(owner.account_id, owner.currency, shape, length)
        return Group(owner, book, engine_id, use)

    def _charge(
        self,
        group: Group,
        prices: Prices,
        amount: int,
        undelivered: int,
        first: int,
        end: int,
        by_one_pico: Sequence[int] | None = None,
    ) -> None:
        """Charge what was added up of a kind of leaf at positions [first, end)."""
        (account_id, currency, totals), book, engine_id, use = group
        if prices.tokens is not NO_TOKENS:
            self._count(totals, prices.tokens, amount)
        if prices.is_generated and engine_id:
            self.effects.engine_of(engine_id).event_tokens += amount
        if not prices.parts or currency is None:
            if use is not None:
                self._charges.use(leaf_use(use, prices.text), amount)
            return
        charged = amount if prices.charges_all else prices.charged(amount, undelivered)
        used = amount
        of_leaf: Use | None = None
        for index, (priced, _, unit_pico, goes_by_one, of_line) in enumerate(prices.parts):
            amount_pico = charged * unit_pico
            if by_one_pico is not None and goes_by_one:
                amount_pico = by_one_pico[index]
            if use is not None:
                of_leaf = leaf_use(use, prices.text, *of_line)
            self._charges.add(
                account_id,
                currency,
                priced,
                charged,
                amount_pico,
                first,
                end,
                of_leaf,
                book.shape.month,
                NO_CONTROL,
                used,
            )
            # What was used is counted with the line that prices it, not with its surcharges.
            used = 0

    def _count(self, totals: Totals, tokens: str, amount: int) -> None:
        if tokens is OUTPUT:
            totals.output_tokens += amount
        elif tokens is CACHED:
            totals.cached_tokens += amount
        elif tokens is CACHE_WRITE:
            totals.cache_write_tokens += amount
        else:
            totals.input_tokens += amount

    def _add_event(self, position: int, record: usage.UsageRecord) -> None:
        event = usage_event_of(record)
        if not event.account_id:
            raise UnusableLeafError("a usage event without an account")
        counts: list[tuple[Dims, int, int, int]] = []
        # Counts are all checked before any is added: an entry counts whole or not at all.
        for index, item in enumerate(event.quantities):
            amount, undelivered = item.amount, item.undelivered_amount
            if not 0 <= undelivered <= amount <= MAX_QUANTITY:
                check_counts(amount, undelivered)
            if amount:
                dims: Dims = (
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
        length = _context_units(event)
        waits = False
        for dims, amount, undelivered, index in counts:
            kind = self._kind(group, dims, position)
            kind.add(amount, undelivered, position)
            if not kind.prices.parts:
                waits = True
            elif kind.prices.goes_by_one:
                start = 0
                if kind.prices.goes_by_place:
                    start = starts_of(event_of(position, event))[index]
                add_one(kind.by_one_pico, kind.prices, amount, undelivered, length, start)
        if waits:
            self._unpriced.append(position)
        self.effects.applied.append(
            Applied(position, event.account_id, event.event_id, record.trace_id, record.span_id)
        )

    def _group_of(self, event: usage.UsageEvent) -> Group:
        """The group of an event that is read by itself, with it counted."""
        time_us = us_of(event.event_time)
        shape = self._shape(event, time_us, self._catalogue.segment(time_us))
        use = None
        if self._charges.sums_use:
            minute = minute_us(time_us)
            use = use_of(
                event.account_id,
                event.project_id,
                event.key_id,
                shape.context,
                shape.outcome,
                minute,
            )
        length = _context_units(event)
        owner = self._owner(event.account_id)
        made = self._counted(owner, event.engine_id, shape, length, use, 1)
        return self._groups.setdefault((event.account_id, event.engine_id, shape, use), made)

    def _kind(self, group: Group, dims: Dims, position: int) -> Kind:
        found = self._kinds.get((id(group), dims))
        if found is None:
            # The group is held beside, so that no other has its place in memory.
            found = group, Kind(group.book.of(dims), position)
            self._kinds[id(group), dims] = found
        return found[1]

    def finish(self) -> Rated:
        """Charge what is left, and give what else the run changes."""
        for group, kind in self._kinds.values():
            self._charge(
                group,
                kind.prices,
                kind.amount,
                kind.undelivered,
                kind.first,
                kind.end,
                kind.by_one_pico,
            )
        self._kinds = {}
        return Rated(self.effects, sorted(self._unpriced))


def _event_in(raw: bytes) -> usage.UsageEvent:
    """The event in a leaf that was added up."""
    record = record_of(raw)
    if record is None:
        raise AssertionError("a leaf that was added up holds no accepted record")
    return usage_event_of(record)


def _context_units(event: usage.UsageEvent) -> int:
    return sum(
        item.amount
        for item in event.quantities
        if item.unit == usage.UNIT_TOKEN and item.direction == usage.DIRECTION_IN
    )
