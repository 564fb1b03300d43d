"""What a calendar month decides: metered lines, and commitments. Integers, and no clock.

A meter counts an account's units of a month in layers: one for each version,
line and factor. Layers lie one upon the other in a fixed order, whatever the
order in which usage came; so what a month costs is a pure function of its
counts. A late event, a correction or another way of reading the logs gives the
same counts, hence the same money. Where a layer that lies lower grows, those
above cost something else: that is an adjustment.

Commitments work on a month's sum of charges in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from pricing.domain.card import Commitment
from pricing.domain.catalogue import Priced, PublishedCard
from pricing.domain.prices import Price, month_pico, price_of


class MeterKey(NamedTuple):
    """What is counted together: one account, one log."""

    account_id: str
    currency: str
    card_id: str
    meter: str
    period: str


class Layer(NamedTuple):
    """Units of one price: in this order they take their places in the month."""

    version: int
    line_id: str
    factor: Fraction
    rule: str

    def __hash__(self) -> int:
        # Without the factor, which the rule names: a fraction's own hash costs more than all else.
        return hash((self.version, self.line_id, self.rule))


class MonthKey(NamedTuple):
    """An account's month by a card."""

    account_id: str
    currency: str
    card_id: str
    period: str


def meter_of(account_id: str, currency: str, priced: Priced) -> tuple[MeterKey, Layer]:
    """Where the units of a metered line count."""
    line, card = priced.line, priced.published.card
    return (
        MeterKey(account_id, currency, card.card_id, line.meter or line.line_id, priced.period),
        Layer(priced.published.version, line.line_id, priced.price.factor, priced.rule_text),
    )


def costs(counts: Mapping[Layer, int], prices: Mapping[Layer, Price]) -> dict[Layer, int]:
    """What each layer of a meter costs in pico-units."""
    whole = sum(counts.values())
    answer: dict[Layer, int] = {}
    start = 0
    for layer in sorted(counts):
        units = counts[layer]
        answer[layer] = month_pico(prices[layer], start, units, whole)
        start += units
    return answer


class Change(NamedTuple):
    """A layer's cost after some units were counted, less what it was."""

    layer: Layer
    known: PublishedCard
    units: int
    """Counted in this layer."""
    amount_pico: int


class Meters:
    """The counts of every meter, and what prices them."""

    def __init__(self) -> None:
        self.counts: dict[MeterKey, dict[Layer, int]] = {}
        self._prices: dict[tuple[str, Layer], tuple[Price, PublishedCard]] = {}

    def put(self, key: MeterKey, layer: Layer, units: int, known: PublishedCard) -> None:
        """Put back a count as it was kept. Errors: ValueError when the version has no such line."""
        for line in known.card.lines:
            if line.line_id == layer.line_id:
                self.counts.setdefault(key, {})[layer] = units
                self._prices[key.card_id, layer] = price_of(line, layer.factor), known
                return
        raise ValueError(f"card {key.card_id!r} version {layer.version} has no {layer.line_id!r}")

    def at(self, counts: Mapping[MeterKey, Iterable[tuple[Layer, int]]]) -> Meters:
        """These prices, with meters at other counts."""
        other = Meters()
        other._prices = self._prices
        other.counts = {key: dict(layers) for key, layers in counts.items()}
        return other

    def costs(self, key: MeterKey) -> dict[Layer, int]:
        """What each layer of a meter costs."""
        counts = self.counts.get(key, {})
        return costs(counts, {layer: self._prices[key.card_id, layer][0] for layer in counts})

    def add(self, key: MeterKey, units: Mapping[Layer, tuple[int, Priced]]) -> list[Change]:
        """Count units, and give every change of cost they make, in the layers' order.

        Layers that units were counted in are all there, also where their cost is as it was.
        """
        before = self.costs(key)
        counts = self.counts.setdefault(key, {})
        for layer, (more, priced) in units.items():
            self._prices.setdefault((key.card_id, layer), (priced.price, priced.published))
            counts[layer] = counts.get(layer, 0) + more
        after = self.costs(key)
        return [
            Change(
                layer,
                self._prices[key.card_id, layer][1],
                units[layer][0] if layer in units else 0,
                cost - before.get(layer, 0),
            )
            for layer, cost in after.items()
            if layer in units or cost != before.get(layer, 0)
        ]


class Month(NamedTuple):
    """An account's month by a card with a commitment."""

    charged_pico: int
    version: int
    """Newest that charged in it, or closed it: its terms hold."""
    is_closed: bool


def owed_pico(month: Month, terms: Commitment) -> int:
    """What a commitment adds to a month's charges; below 0: what is beyond the most."""
    least = terms.minimum_pico if month.is_closed else 0
    bounded = max(month.charged_pico, least)
    if terms.maximum_pico is not None:
        bounded = min(bounded, terms.maximum_pico)
    return bounded - month.charged_pico


class Commitments:
    """The months of every account under a card with a commitment."""

    def __init__(self) -> None:
        self.months: dict[MonthKey, Month] = {}
        self._terms: dict[tuple[str, int], PublishedCard] = {}

    def _know(self, known: PublishedCard) -> None:
        """Remember a version's terms."""
        self._terms[known.card.card_id, known.version] = known

    def at(self, months: Mapping[MonthKey, Month | None]) -> Commitments:
        """These terms, with months at other sums."""
        other = Commitments()
        other._terms = self._terms
        other.months = {key: month for key, month in months.items() if month is not None}
        return other

    def owed(self, key: MonthKey) -> int:
        """What the commitment adds to a month as it stands."""
        month = self.months.get(key)
        if month is None:
            return 0
        terms = self._terms[key.card_id, month.version].card.commitment
        return owed_pico(month, terms) if terms is not None else 0

    def put(self, key: MonthKey, month: Month, known: PublishedCard) -> None:
        """Put back a month as it was kept."""
        self._know(known)
        self.months[key] = month

    def charge(
        self, key: MonthKey, known: PublishedCard, amount_pico: int
    ) -> tuple[int, PublishedCard]:
        """Count a charge; give what the commitment adds because of it, and by which version."""
        self._know(known)
        return self._move(key, known.version, amount_pico, False)

    def close(self, key: MonthKey, known: PublishedCard) -> tuple[int, PublishedCard]:
        """Close a month; give as `charge`."""
        self._know(known)
        return self._move(key, known.version, 0, True)

    def _move(
        self, key: MonthKey, version: int, amount_pico: int, closes: bool
    ) -> tuple[int, PublishedCard]:
        before = self.owed(key)
        month = self.months.get(key, Month(0, version, False))
        self.months[key] = Month(
            month.charged_pico + amount_pico,
            max(month.version, version),
            month.is_closed or closes,
        )
        now = self._terms[key.card_id, self.months[key].version]
        return self.owed(key) - before, now
