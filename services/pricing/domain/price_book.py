"""Prices of the kinds of leaf that like events have, found once and remembered.

Events of one shape (model, tier, outcome, stretch of time, band of context
lengths, ...) of accounts with the same prices share a book. It stays with the
catalogue it was made from, so that the next run finds it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pricing.domain.catalogue import Catalogue, Priced
from pricing.domain.compiled.columns import DIMENSION_BITS, DIMENSIONS, MAX_WORD
from pricing.domain.dimensions import EMBEDDING, Context, LeafKey, leaf_key
from pricing.domain.outcomes import DELIVERED, GENERATED
from pricing.domain.prices import Price, charge_pico
from pricing.domain.rating import outcome_word
from pricing.domain.spending import leaf_text

Dims = tuple[int, int, int, int, int, int, str]
"""A leaf's dimensions as numbers, as they stand in the event, and its attribute."""

# What a balance shows a kind of leaf as.
NO_TOKENS: Final = ""
OUTPUT: Final = "output_tokens"
CACHED: Final = "cached_tokens"
CACHE_WRITE: Final = "cache_write_tokens"
INPUT: Final = "input_tokens"


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


Written = tuple[tuple[str, ...], int, int, int]
"""A shape as events have it, nothing filled in: texts, outcome, segment and band."""


class Part(NamedTuple):
    """A line or a surcharge that prices a kind of leaf."""

    priced: Priced
    price: Price
    unit_pico: int
    """Of one unit, where a sum of counts costs the sum of their costs."""
    goes_by_one: bool
    """Whether single leaves matter: a sum of counts would cost something else."""
    of_line: tuple[str, int, str]
    """(card, version, line) that what is charged is summed by."""


class Prices(NamedTuple):
    """What prices a kind of leaf, and what it counts as."""

    key: LeafKey
    text: str
    """The key's fields in one text."""
    tokens: str
    """The field of `Totals` that it counts in; NO_TOKENS: in none."""
    is_generated: bool
    """Whether an engine's own counter has these tokens."""
    parts: tuple[Part, ...]
    """The line's and the surcharges'. Empty: it waits."""
    charges_all: bool
    """Whether all of the amount is charged; else what was delivered, or nothing."""
    charges_delivered: bool
    rule: str
    """The outcome's rule by its name."""
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
        "_catalogue",
        "_currency",
        "_found",
        "_packed",
        "context_units",
        "shape",
    )

    def __init__(
        self,
        catalogue: Catalogue,
        account_id: str,
        currency: str | None,
        shape: Shape,
        context_units: int,
    ) -> None:
        self._catalogue = catalogue
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
            priced = self._catalogue.price(
                self._account_id, self._currency, shape.segment, shape.context, key
            )
        text, tokens = leaf_text(key), _tokens(key)
        generated = key.unit == "token" and (key.direction == "out" or key.token_kind == EMBEDDING)
        if priced is None:
            return Prices(key, text, tokens, generated, (), False, False, "", False, False)
        rule = priced.published.card.outcome_rule(outcome_word(shape.outcome))
        parts = tuple(self._part(one) for one in (priced, *priced.surcharges))
        return Prices(
            key,
            text,
            tokens,
            generated,
            parts,
            rule == GENERATED,
            rule == DELIVERED,
            rule,
            any(part.goes_by_one for part in parts),
            any(part.price.is_graduated for part in parts),
        )

    def _part(self, priced: Priced) -> Part:
        price = priced.price
        unit_pico = charge_pico(price, 1, self.context_units, 0) if price.is_even else 0
        known = priced.published
        return Part(
            priced,
            price,
            unit_pico,
            not (price.is_even or price.is_metered),
            (known.card.card_id, known.version, priced.line.line_id),
        )


class Books:
    """The books of one catalogue. Bounded, and only ever a memory: it never changes an answer."""

    _MAX_REMEMBERED: Final = 20_000

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._made: dict[tuple[str, str | None, Shape], Book] = {}
        self._shapes: dict[Written, tuple[Shape, int]] = {}

    def shape(self, written: Written) -> tuple[Shape, int] | None:
        """The shape that events are of, and the context's length of one; None: not kept.

        So no event has to be read to know it: within segment and band all are alike.
        """
        return self._shapes.get(written)

    def keep_shape(self, written: Written, found: tuple[Shape, int]) -> None:
        """Remember a shape, and the context's length of an event of it."""
        if len(self._shapes) >= self._MAX_REMEMBERED:
            self._shapes.clear()
        self._shapes[written] = found

    def of(self, account_id: str, currency: str | None, shape: Shape, context_units: int) -> Book:
        """The book for an account's events of a shape; `context_units` of one of these."""
        asked = self.catalogue.priced_as(account_id), currency, shape
        book = self._made.get(asked)
        if book is None:
            if len(self._made) >= self._MAX_REMEMBERED:
                self._made.clear()
            book = Book(self.catalogue, account_id, currency, shape, context_units)
            self._made[asked] = book
        return book


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


def _tokens(key: LeafKey) -> str:
    if key.unit != "token":
        return NO_TOKENS
    if key.direction == "out":
        return OUTPUT
    if key.direction != "in":
        return NO_TOKENS
    if key.cache_use == "read":
        return CACHED
    return CACHE_WRITE if key.cache_use == "write" else INPUT
