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

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernel.clock import us_of
from pricing.domain.applications import Applied
from pricing.domain.books import NO_CONTROL
from pricing.domain.catalogue import Catalogue
from pricing.domain.cell_uses import count_cells, count_groups
from pricing.domain.charges import Charges
from pricing.domain.compiled import columns
from pricing.domain.events import (
    MAX_QUANTITY,
    UnusableLeafError,
    check_counts,
    event_of,
    reading_of,
    record_of,
    usage_event_of,
)
from pricing.domain.group_books import books_of_groups
from pricing.domain.price_book import Dims, Prices, Shape, books_of, context_units_of
from pricing.domain.rating import starts_of
from pricing.domain.single_leaves import Group, Kind, Owner, add_one, by_one
from pricing.domain.spending import leaf_use, minutes, use_of
from pricing.domain.state import Effects, Ignored, Use
from pricing.domain.summed_cells import (
    PricedCells,
    generated_of,
    priced_cells,
    sums_by,
    sums_of,
    totals_of,
)
from pricing.domain.tally import MAX_LEAVES, MIN_LEAVES, Cell, Numbers, Tally, is_ready, tally
from pricing.domain.windows import minute_us
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
        self._unpriced: set[int] = set()

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
        accounts, engines = found.accounts(), found.engines()
        owners = [
            self._owner(account_id)
            for account_id in found.texts(columns.ACCOUNT_ID, accounts.samples)
        ]
        engine_ids = found.texts(columns.ENGINE_ID, engines.samples)
        books, book_of = books_of_groups(found, owners, accounts.number_of, self._books, data)
        priced = priced_cells(found, books, book_of)
        group_of = found.cells[:, columns.CELL_GROUP]
        account_of = accounts.number_of[group_of]

        requests = sums_by(accounts.number_of, found.groups(columns.REQUESTS), len(owners))
        totals = totals_of(priced, account_of, requests)
        for owner, counts in zip(owners, totals.tolist(), strict=True):
            owner.totals.add_counts(*counts)
        generated = generated_of(priced, engines.number_of[group_of], len(engine_ids))
        for engine_id, tokens in zip(engine_ids, generated.tolist(), strict=True):
            if engine_id and tokens:
                self.effects.engine_of(engine_id).event_tokens += tokens

        apart = priced.column(_goes_apart) > 0
        together = np.flatnonzero(~apart)
        for number, rows in sums_of(priced, account_of, together, first_position):
            self._charges.add_summed(owners[number].account_id, rows)
        uses: list[Use] | None = None
        if by_use:
            uses = count_groups(self._charges, found, books, book_of)
            count_cells(self._charges, priced, together, uses)
        groups = {
            group: Group(
                owners[accounts.number_of[group]],
                books[book_of[group]],
                engine_ids[engines.number_of[group]],
                uses[group] if uses is not None else None,
            )
            for group in np.unique(group_of[apart]).tolist()
        }
        self._charge_apart(found, priced, np.flatnonzero(apart), groups, first_position, data)
        self.effects.applied.add(
            found.events,
            lambda: found.applied(first_position),
            lambda: found.placed(first_position),
        )
        for index in found.odd():
            self.add(first_position + index, data[index])

    def _charge_apart(
        self,
        found: Tally,
        priced: PricedCells,
        which: Numbers,
        groups: Mapping[int, Group],
        first_position: int,
        data: Sequence[bytes],
    ) -> None:
        """Charge cells by their single leaves, or have the events wait that have them."""
        counts = found.quantities_of(which.tolist())
        for number, price in zip(counts, priced.price_of[which].tolist(), strict=True):
            prices, cell = priced.prices[price], Cell._make(priced.cells[number].tolist())
            group = groups[cell.group]
            by_one_pico: list[int] | None = None
            if prices.parts:
                by_one_pico = by_one(group, prices, first_position, data, counts[number])
            else:
                self._unpriced.update(first_position + index for index, _, _ in counts[number])
            self._charge(
                group,
                prices,
                cell.amount,
                cell.undelivered,
                first_position + cell.first,
                first_position + cell.end,
                by_one_pico,
            )

    def _owner(self, account_id: str) -> Owner:
        owner = self._owners.get(account_id)
        if owner is None:
            totals = self.effects.total_of(account_id)
            owner = Owner(account_id, self._currency_of(account_id), totals)
            self._owners[account_id] = owner
        return owner

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
        (account_id, currency, _), book, _, use = group
        if not prices.parts or currency is None:
            if use is not None:
                self._charges.use(leaf_use(use, prices.text), amount)
            return
        charged = prices.charged(amount, undelivered)
        used = amount
        of_leaf: Use | None = None
        for index, (priced, _, unit_pico, goes_by_one, rate) in enumerate(prices.parts):
            amount_pico = charged * unit_pico
            if by_one_pico is not None and goes_by_one:
                amount_pico = by_one_pico[index]
            if use is not None:
                of_leaf = leaf_use(use, prices.text, *rate.of_line)
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

    def _count(self, group: Group, prices: Prices, amount: int) -> None:
        """Count what was added up of a kind of leaf, whatever it is charged."""
        if prices.tokens:
            group.owner.totals.add_tokens(prices.tokens, amount)
        if prices.is_generated and group.engine_id:
            self.effects.engine_of(group.engine_id).event_tokens += amount

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
        length = context_units_of(event)
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
            self._unpriced.add(position)
        self.effects.applied.append(
            Applied(position, event.account_id, event.event_id, record.trace_id, record.span_id)
        )

    def _group_of(self, event: usage.UsageEvent) -> Group:
        """The group of an event that is read by itself, with it counted."""
        time_us = us_of(event.event_time)
        shape = self._books.shape_of(event, self._catalogue.segment(time_us))
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
        length = context_units_of(event)
        owner = self._owner(event.account_id)
        owner.totals.requests += 1
        if use is not None:
            self._charges.use(use, 1)
        asked = event.account_id, event.engine_id, shape, use
        group = self._groups.get(asked)
        if group is None:
            book = self._books.of(owner.account_id, owner.currency, shape, length)
            group = self._groups[asked] = Group(owner, book, event.engine_id, use)
        return group

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
            self._count(group, kind.prices, kind.amount)
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


def _goes_apart(prices: Prices) -> bool:
    """Whether a cell cannot be summed with others before it is charged."""
    return prices.goes_by_one or not prices.parts
