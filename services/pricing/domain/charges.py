"""Charges of a run of one log, folded by account, card line and rule into postings.

What a month decides goes through its meters and commitments (meters.py), once
for the run; the rest is added up as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pricing.domain import books
from pricing.domain.books import NO_CONTROL, Posting
from pricing.domain.catalogue import Priced, PublishedCard
from pricing.domain.charge_sums import Fold, Sums, add_to, postings_of
from pricing.domain.meters import Commitments, Layer, MeterKey, Meters, MonthKey, meter_of
from pricing.domain.rates import Rate, Summed, fold_of
from pricing.domain.state import Billed, Counted, Effects, MeterMove, MonthMove, Use


@dataclass(slots=True)
class _Units:
    """Units of one layer in a run."""

    priced: Priced
    units: int
    first: int
    end: int


class Charges:
    """Charges of a run of one log."""

    def __init__(
        self,
        log: str,
        meters: Meters,
        commitments: Commitments,
        sums_use: bool = True,
        counts_units: bool = False,
    ) -> None:
        self.sums_use = sums_use
        """Whether what was used is summed too, by the minute: that takes longer than the rest."""
        self._counts_units = counts_units
        """Whether units are counted for bills, those that cost nothing among them."""
        self._log = log
        self._meters = meters
        self._commitments = commitments
        self._sums: Sums = {}
        self._measured: Sums = {}
        """The same, of what a month decides."""
        self._units: dict[tuple[int, MeterKey], dict[Layer, _Units]] = {}
        self._months: dict[tuple[int, MonthKey, int], tuple[PublishedCard, list[int]]] = {}
        self._metered: dict[tuple[int, MeterKey, Layer], dict[Use, int]] = {}
        self._back: list[Posting] = []
        self._effects = Effects()

    def add(
        self,
        account_id: str,
        currency: str,
        priced: Priced,
        quantity: int,
        amount_pico: int,
        first: int,
        end: int,
        use: Use | None,
        month: str,
        control_position: int = NO_CONTROL,
        used: int = 0,
    ) -> None:
        """Charge a count of units at positions [first, end). What comes to 0 is no posting.

        Of a metered line the amount is found when the run is finished. `use`
        is what the charge is summed by; None where nothing is; `used` counts
        there, whatever is charged of it. `month` is that of the events, which
        the charge is billed in unless the card has months of its own.
        """
        if priced.price.is_metered:
            if use is not None and used:
                self._effects.use(use, used, 0, 0)
            if quantity:
                where = first, end, control_position
                self._measure(account_id, currency, priced, quantity, where, use)
            return
        if use is not None and (used or quantity):
            self._effects.use(use, used, quantity, amount_pico)
        if not quantity:
            return
        known = priced.published
        fold = fold_of(currency, priced, month, control_position)
        sums = self._sums.setdefault(account_id, {})
        add_to(sums, fold, amount_pico, quantity, first, end)
        if amount_pico and known.card.commitment is not None:
            where = first, end, control_position
            self._count_month((account_id, currency), known, fold.month, amount_pico, where)

    def add_summed(self, account_id: str, rows: Iterable[Summed]) -> None:
        """Charge an account for what was summed by rate; as `add`, but for what it is summed by."""
        sums = self._sums.setdefault(account_id, {})
        for rate, quantity, first, end in rows:
            fold, priced, unit_pico, is_by_month, _ = rate
            amount_pico = quantity * unit_pico
            if not is_by_month:
                add_to(sums, fold, amount_pico, quantity, first, end)
                continue
            month = fold.month
            self.add(
                account_id, fold.currency, priced, quantity, amount_pico, first, end, None, month
            )

    def _measure(
        self,
        account_id: str,
        currency: str,
        priced: Priced,
        quantity: int,
        where: tuple[int, int, int],
        use: Use | None,
    ) -> None:
        """Count units of a metered line."""
        first, end, control_position = where
        key, layer = meter_of(account_id, currency, priced)
        layers = self._units.setdefault((control_position, key), {})
        found = layers.get(layer)
        if found is None:
            layers[layer] = _Units(priced, quantity, first, end)
        else:
            found.units += quantity
            found.first = min(found.first, first)
            found.end = max(found.end, end)
        if use is not None:
            self._count_metered((control_position, key, layer), use, quantity)

    def count_use(self, use: Use, rate: Rate, used: int, quantity: int) -> None:
        """Count what was used and is charged at a rate by `add_summed`."""
        if rate.priced.price.is_metered:
            self.use(use, used)
            if quantity:
                key, layer = meter_of(use.account_id, rate.fold.currency, rate.priced)
                self._count_metered((NO_CONTROL, key, layer), use, quantity)
        elif used or quantity:
            self._effects.use(use, used, quantity, quantity * rate.unit_pico)

    def _count_metered(self, where: tuple[int, MeterKey, Layer], use: Use, quantity: int) -> None:
        uses = self._metered.setdefault(where, {})
        uses[use] = uses.get(use, 0) + quantity

    def use(self, use: Use, amount: int) -> None:
        """Count what was used, whatever it is charged."""
        if amount:
            self._effects.use(use, amount, 0, 0)

    def _share(self, uses: dict[Use, int], amount_pico: int) -> None:
        """Share what a run changed on a meter among its uses, by units, to the last unit of money.

        It may be less than 0, where more units made all of the month's cheaper.
        """
        units = shared_pico = 0
        whole = sum(uses.values())
        for use, quantity in sorted(uses.items()):
            units += quantity
            upto_pico = amount_pico * units // whole
            self._effects.use(use, 0, quantity, upto_pico - shared_pico)
            shared_pico = upto_pico

    def _charge(
        self,
        whose: tuple[str, str],
        known: PublishedCard,
        what: tuple[str, str, str],
        kind: str,
        quantity: int,
        amount_pico: int,
        where: tuple[int, int, int],
    ) -> None:
        """Add an amount, not below 0, that a month decides."""
        if not amount_pico:
            return
        account_id, currency = whose
        line_id, rule, period = what
        first, end, control_position = where
        card = known.card
        fold = Fold(
            currency,
            card.card_id,
            known.version,
            known.content_hash,
            line_id,
            kind,
            control_position,
            rule,
            period,
        )
        if card.commitment is not None and kind != books.COMMITMENT:
            self._count_month(whose, known, period, amount_pico, where)
        sums = self._measured.setdefault(account_id, {})
        add_to(sums, fold, amount_pico, quantity, first, end)

    def _count_month(
        self,
        whose: tuple[str, str],
        known: PublishedCard,
        period: str,
        amount_pico: int,
        where: tuple[int, int, int],
    ) -> None:
        first, end, control_position = where
        month = MonthKey(*whose, known.card.card_id, period)
        place = control_position, month, known.version
        sums = self._months.setdefault(place, (known, [0, first, end]))[1]
        sums[0] += amount_pico
        sums[1] = min(sums[1], first)
        sums[2] = max(sums[2], end)

    def finish(self, effects: Effects) -> None:
        """Put the postings, and how meters moved, into a step's effects. Once for a run."""
        self._through_the_months()
        effects.postings += postings_of(self._log, (self._sums, self._measured))
        effects.postings += sorted(self._back)
        effects.meter_moves += self._effects.meter_moves
        if self._counts_units:
            self._count_units(effects.counted)
        effects.month_moves += self._effects.month_moves
        if not effects.used:
            effects.used = self._effects.used
        else:
            for use, used in self._effects.used.items():
                effects.use(use, *used)

    def _count_units(self, into: dict[Counted, Billed]) -> None:
        """Count units for bills, and what they come to: those that cost nothing among them."""
        for account_id, sums in self._sums.items():
            for (fold, _), (amount_pico, units, _, _) in sums.items():
                currency, card_id, version, _, line_id, _, position, rule, month = fold
                counted = Counted(
                    account_id,
                    currency,
                    card_id,
                    version,
                    line_id,
                    rule,
                    month,
                    self._log,
                    position,
                )
                older, more = into.get(counted), Billed(units, amount_pico)
                into[counted] = more if older is None else older.plus(more)

    def _through_the_months(self) -> None:
        for (control_position, key), layers in sorted(
            self._units.items(), key=lambda item: item[0]
        ):
            self._meter(control_position, key, layers)
        for (control_position, month, _), (known, (amount_pico, first, end)) in sorted(
            self._months.items(), key=lambda item: item[0]
        ):
            self._month(month, known, amount_pico, (first, end, control_position))

    def _meter(self, control_position: int, key: MeterKey, layers: dict[Layer, _Units]) -> None:
        """Count a meter's units, and charge every change of cost they make."""
        first = min(found.first for found in layers.values())
        end = max(found.end for found in layers.values())
        before = tuple(sorted(self._meters.counts.get(key, {}).items()))
        whose = key.account_id, key.currency
        units = {layer: (found.units, found.priced) for layer, found in layers.items()}
        changed_pico = 0
        for change in self._meters.add(key, units):
            changed_pico += change.amount_pico
            layer, counted = change.layer, layers.get(change.layer)
            what = layer.line_id, layer.rule, key.period
            where = first, end, control_position
            if counted is None or change.amount_pico < 0:
                self._adjust(whose, change.known, what, change.amount_pico, where)
                continue
            kind = books.USAGE if control_position == NO_CONTROL else books.SUSPENSE
            where = counted.first, counted.end, control_position
            self._charge(whose, change.known, what, kind, change.units, change.amount_pico, where)
        uses: dict[Use, int] = {}
        for layer in layers:
            uses.update(self._metered.get((control_position, key, layer), {}))
        self._share(uses, changed_pico)
        self._effects.meter_moves.append(
            MeterMove(
                key,
                before,
                tuple(sorted((layer, found.units) for layer, found in layers.items())),
                self._log,
                first,
                end,
                control_position,
            )
        )

    def _adjust(
        self,
        whose: tuple[str, str],
        known: PublishedCard,
        what: tuple[str, str, str],
        amount_pico: int,
        where: tuple[int, int, int],
        kind: str = books.ADJUSTMENT,
    ) -> None:
        """Post what other charges cost more or less because of this run."""
        if amount_pico > 0:
            self._charge(whose, known, what, kind, 0, amount_pico, where)
            return
        if not amount_pico:
            return
        account_id, currency = whose
        line_id, rule, period = what
        first, end, control_position = where
        if known.card.commitment is not None and kind != books.COMMITMENT:
            self._count_month(whose, known, period, amount_pico, where)
        self._back.append(
            Posting(
                kind=kind,
                debit=books.revenue(account_id),
                credit=books.customer(account_id),
                currency=currency,
                amount_pico=-amount_pico,
                log=self._log,
                from_position=first,
                to_position=end,
                card_id=known.card.card_id,
                card_version=known.version,
                card_hash=known.content_hash,
                line_id=line_id,
                control_position=control_position,
                rule=rule,
                period=period,
            )
        )

    def _month(
        self, month: MonthKey, known: PublishedCard, amount_pico: int, where: tuple[int, int, int]
    ) -> None:
        """Count charges of a month with a commitment, and post what that adds."""
        before = self._commitments.months.get(month)
        added_pico, terms = self._commitments.charge(month, known, amount_pico)
        self._effects.month_moves.append(
            MonthMove(month, before, known.version, amount_pico, False)
        )
        self._commit(month, terms, added_pico, where)

    def close_month(self, month: MonthKey, known: PublishedCard, position: int) -> None:
        """Close a month by the control record at `position` of this log, the control log."""
        before = self._commitments.months.get(month)
        added_pico, terms = self._commitments.close(month, known)
        self._effects.month_moves.append(MonthMove(month, before, known.version, 0, True))
        self._commit(month, terms, added_pico, (position, position + 1, position))

    def _commit(
        self, month: MonthKey, terms: PublishedCard, added_pico: int, where: tuple[int, int, int]
    ) -> None:
        what = "", "commitment", month.period
        whose = month.account_id, month.currency
        self._adjust(whose, terms, what, added_pico, where, books.COMMITMENT)
