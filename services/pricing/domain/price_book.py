"""Prices of the kinds of leaf that like events have, found once and remembered.

Events of one shape (model, tier, outcome, stretch of time, band of context
lengths, ...) of accounts with the same prices share a book. It stays with the
catalogue it was made from, so that the next run finds it.
"""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from typing import Any, Final, NamedTuple

from kernel.clock import us_of
from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.charge_sums import Fold
from pricing.domain.compiled.columns import DIMENSION_BITS, DIMENSIONS, MAX_WORD
from pricing.domain.dimensions import EMBEDDING, Context, LeafKey, leaf_key
from pricing.domain.events import context_of
from pricing.domain.months import month_of
from pricing.domain.outcomes import DELIVERED, GENERATED
from pricing.domain.prices import Price, charge_pico
from pricing.domain.rates import Rate, rate_of
from pricing.domain.rating import outcome_word
from pricing.domain.spending import leaf_text
from tollbook.usage.v1 import usage_pb2 as usage

Dims = tuple[int, int, int, int, int, int, str]
"""A leaf's dimensions as numbers, as they stand in the event, and its attribute."""

_MAX_REMEMBERED: Final = 20_000

# What a balance shows a kind of leaf as: the place of the field in `Totals`, 0 for none.
NO_TOKENS: Final = 0
INPUT: Final = 1
CACHED: Final = 2
OUTPUT: Final = 3
CACHE_WRITE: Final = 4


class Shape(NamedTuple):
    """What selects prices, but for whose events they are."""

    context: Context
    outcome: int
    segment: int
    """Of time."""
    band: int
    """Of context lengths."""
    month: str
    """Of the segment: that which is billed for, unless a card has months of its own."""


Asked = tuple[str, str | None, bytes]
"""Accounts that are priced alike, their currency, and what selects a price as events have it."""


class Part(NamedTuple):
    """A line or a surcharge that prices a kind of leaf."""

    priced: Priced
    price: Price
    unit_pico: int
    """Of one unit, where a sum of counts costs the sum of their costs."""
    goes_by_one: bool
    """Whether single leaves matter: a sum of counts would cost something else."""
    rate: Rate


class Prices(NamedTuple):
    """What prices a kind of leaf, and what it counts as."""

    key: LeafKey
    text: str
    """The key's fields in one text."""
    tokens: int
    """The field of `Totals` that it counts in; NO_TOKENS: in none."""
    is_generated: bool
    """Whether an engine's own counter has these tokens."""
    parts: tuple[Part, ...]
    """The line's and the surcharges'. Empty: it waits."""
    charges_all: bool
    """Whether all of the amount is charged; else what was delivered, or nothing."""
    charges_delivered: bool
    goes_by_one: bool
    goes_by_place: bool
    """Whether it matters where in its context a leaf stands."""

    def charged(self, amount: int, undelivered: int) -> int:
        """How many units are charged; as `outcomes.charged_quantity`."""
        if self.charges_all:
            return amount
        return amount - undelivered if self.charges_delivered else 0


class Book:
    """Prices of one shape for accounts that are priced alike."""

    __slots__ = (
        "_account_id",
        "_books",
        "_currency",
        "_found",
        "_packed",
        "context_units",
        "shape",
    )

    def __init__(
        self,
        books: Books,
        account_id: str,
        currency: str | None,
        shape: Shape,
        context_units: int,
    ) -> None:
        self._books = books
        self._account_id = account_id
        self._currency = currency
        self._found: dict[Dims, Prices] = {}
        self._packed: dict[tuple[int, bytes], Prices] = {}
        self.shape = shape
        self.context_units = context_units
        """Of one event: within the band the price is the same."""

    def of(self, dims: Dims) -> Prices:
        """The prices of a kind of leaf."""
        found = self._found.get(dims)
        if found is None:
            found = self._found[dims] = self._look(leaf_key(*dims))
        return found

    def packed(self, kinds: int, attribute: bytes) -> Prices:
        """The same, of dimensions as the compiled loops give them, in one number."""
        found = self._packed.get((kinds, attribute))
        if found is None:
            found = self.of(dims_of(kinds, attribute))
            self._packed[kinds, attribute] = found
        return found

    def _look(self, key: LeafKey) -> Prices:
        shape = self.shape
        priced: Priced | None = None
        if self._currency is not None:
            priced = self._books.catalogue.price(
                self._account_id, self._currency, shape.segment, shape.context, key
            )
        text, tokens = leaf_text(key), _tokens(key)
        generated = key.unit == "token" and (key.direction == "out" or key.token_kind == EMBEDDING)
        if priced is None:
            return Prices(key, text, tokens, generated, (), False, False, False, False)
        rule = priced.published.card.outcome_rule(outcome_word(shape.outcome))
        currency = priced.published.card.currency
        parts = tuple(self._part(one, currency) for one in (priced, *priced.surcharges))
        return Prices(
            key,
            text,
            tokens,
            generated,
            parts,
            rule == GENERATED,
            rule == DELIVERED,
            any(part.goes_by_one for part in parts),
            any(part.price.is_graduated for part in parts),
        )

    def _part(self, priced: Priced, currency: str) -> Part:
        price = priced.price
        unit_pico = charge_pico(price, 1, self.context_units, 0) if price.is_even else 0
        return Part(
            priced,
            price,
            unit_pico,
            not (price.is_even or price.is_metered),
            self._books.rate(rate_of(currency, priced, self.shape.month, unit_pico)),
        )


class Books:
    """The books of one catalogue. Bounded, and only ever a memory: it never changes an answer."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._made: dict[tuple[str, str | None, Shape], Book] = {}
        self._asked: dict[Asked, Book] = {}
        self._rates: dict[tuple[Fold, int, Fraction], Rate] = {}

    def found(self, asked: Asked) -> Book | None:
        """The book for what the compiled loops read of events; None: not kept.

        So no event has to be read to know it: within segment and band all are alike.
        """
        return self._asked.get(asked)

    def keep(self, asked: Asked, book: Book) -> None:
        """Remember a book for what was read."""
        _bound(self._asked)
        self._asked[asked] = book

    def of(self, account_id: str, currency: str | None, shape: Shape, context_units: int) -> Book:
        """The book for an account's events of a shape; `context_units` of one of these."""
        asked = self.catalogue.priced_as(account_id), currency, shape
        book = self._made.get(asked)
        if book is None:
            _bound(self._made)
            book = Book(self, account_id, currency, shape, context_units)
            self._made[asked] = book
        return book

    def shape_of(self, event: usage.UsageEvent, segment: int) -> Shape:
        """What selects an event's prices; `segment` is that of its time."""
        band = bisect_right(self.catalogue.context_bounds, context_units_of(event))
        month = month_of(us_of(event.event_time))
        return Shape(context_of(event), event.outcome, segment, band, month)

    def rate(self, rate: Rate) -> Rate:
        """The one object there is for equal rates, as long as it is remembered."""
        asked = rate.fold, rate.unit_pico, rate.priced.price.factor
        _bound(self._rates)
        return self._rates.setdefault(asked, rate)


def context_units_of(event: usage.UsageEvent) -> int:
    """Length of an event's context; as `rating.context_units`, of an event as it is written."""
    return sum(
        item.amount
        for item in event.quantities
        if item.unit == usage.UNIT_TOKEN and item.direction == usage.DIRECTION_IN
    )


def _bound(remembered: dict[Any, Any]) -> None:
    if len(remembered) >= _MAX_REMEMBERED:
        remembered.clear()


def books_of(catalogue: Catalogue) -> Books:
    """The books that stay with a catalogue."""
    found = catalogue.remembered.get(Books)
    if not isinstance(found, Books):
        found = catalogue.remembered[Books] = Books(catalogue)
    return found


def dims_of(kinds: int, attribute: bytes) -> Dims:
    """Dimensions that stand in one number."""
    unit, direction, modality, cache_use, cache_ttl, token_kind = (
        kinds >> DIMENSION_BITS * place & MAX_WORD for place in reversed(range(DIMENSIONS))
    )
    text = attribute.decode("ascii")
    return unit, direction, modality, cache_use, cache_ttl, token_kind, text


def _tokens(key: LeafKey) -> int:
    if key.unit != "token":
        return NO_TOKENS
    if key.direction == "out":
        return OUTPUT
    if key.direction != "in":
        return NO_TOKENS
    if key.cache_use == "read":
        return CACHED
    return CACHE_WRITE if key.cache_use == "write" else INPUT
