"""A draft tried on the log's own usage: what would be charged otherwise, or not at all. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from pricing.domain.card import Card
from pricing.domain.catalogue import PublishedCard
from pricing.domain.control import ControlState
from pricing.domain.price_list import leaf_words
from pricing.domain.state import Suspended
from pricing.domain.what_if import (
    DRAFT_VERSION,
    ChargeKey,
    Difference,
    NamingCatalogue,
    as_charged,
    fold_by,
    with_draft,
)

_MAX_UNPRICED: Final = 1_000


class Amounts(NamedTuple):
    """What a name (model or account) is charged, before and after, in pico-units."""

    name: str
    currency: str
    before_pico: int
    after_pico: int

    @property
    def change_pico(self) -> int:
        """How much more."""
        return self.after_pico - self.before_pico


class Unpriced(NamedTuple):
    """Usage without a price: of which model, what in words, and how many entries have it."""

    model: str
    leaf: str
    entries: int


class Preview:
    """Usage rated as it was charged, and as a draft would have it."""

    def __init__(self, state: ControlState, control_size: int, draft: Card) -> None:
        self.events = 0
        self._draft = draft
        self._difference = Difference()
        self._catalogues: list[NamingCatalogue] = []
        self._before = fold_by(as_charged(state, control_size, NamingCatalogue))
        self._after = fold_by(with_draft(state, control_size, draft, self._catalogue))

    def _catalogue(self, published: Sequence[PublishedCard]) -> NamingCatalogue:
        made = NamingCatalogue(published)
        self._catalogues.append(made)
        return made

    def add(self, log: str, first_position: int, pin: int, data: Sequence[bytes]) -> None:
        """Rate a run of leaves that share a pin, from the next position of its log on."""
        before = self._before.apply_usage(log, first_position, pin, data)
        after = self._after.apply_usage(log, first_position, pin, data)
        self.events += sum(totals.requests for totals in before.totals.values())
        self._difference.add_before(before.postings)
        self._difference.add_after(after.postings)

    def totals(self) -> list[Amounts]:
        """All charges, one for each currency."""
        return self._by(lambda key: "")

    def accounts(self) -> list[Amounts]:
        """Charges of each account that changes."""
        return self._by(lambda key: key.account_id)

    def models(self) -> list[Amounts]:
        """Charges of each model that changes."""
        return self._by(lambda key: key.model)

    def unmatched_lines(self) -> list[str]:
        """Lines of the draft that priced nothing."""
        used = {place for made in self._catalogues for place in made.used}
        return [
            line.line_id
            for line in self._draft.lines
            if (self._draft.card_id, DRAFT_VERSION, line.line_id) not in used
        ]

    def newly_unpriced(self) -> list[Unpriced]:
        """What has a price and would have none."""
        before = self._before.suspense
        return _unpriced(
            (place, entry)
            for place, entry in self._after.suspense.items()
            if place not in before or len(before[place].waiting) < len(entry.waiting)
        )

    def still_unpriced(self) -> list[Unpriced]:
        """What has no price, and would have none either."""
        before = self._before.suspense
        return _unpriced(
            (place, entry) for place, entry in self._after.suspense.items() if place in before
        )

    def _by(self, name_of: Callable[[ChargeKey], str]) -> list[Amounts]:
        """Charges by a name, the largest change first; of those that change, but for totals."""
        sums: dict[tuple[str, str], list[int]] = {}
        for key, found in self._difference.sums.items():
            of_name = sums.setdefault((name_of(key), key.currency), [0, 0])
            of_name[0] += found.before_pico
            of_name[1] += found.after_pico
        amounts = [
            Amounts(name, currency, before, after)
            for (name, currency), (before, after) in sums.items()
        ]
        return sorted(amounts, key=lambda one: (-abs(one.change_pico), one))


def _unpriced(entries: Iterable[tuple[tuple[str, int], Suspended]]) -> list[Unpriced]:
    counts: Counter[tuple[str, str]] = Counter()
    for _, entry in entries:
        for part in entry.unpriced:
            counts[entry.event.context.model, leaf_words(part.key)] += 1
    return [Unpriced(*name, entries) for name, entries in counts.most_common(_MAX_UNPRICED)]
