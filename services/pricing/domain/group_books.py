"""The book of prices of each group of a tally, found once for all groups that share it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pricing.domain.compiled import columns
from pricing.domain.events import record_of, usage_event_of
from pricing.domain.price_book import Book, Books, context_units_of
from pricing.domain.single_leaves import Owner
from pricing.domain.tally import Numbers, Tally
from tollbook.usage.v1 import usage_pb2 as usage


def books_of_groups(
    found: Tally,
    owners: Sequence[Owner],
    owner_of: Numbers,
    books: Books,
    data: Sequence[bytes],
) -> tuple[list[Book], Numbers]:
    """Books, and the place among them of each group's.

    `owner_of` is the place of each group's owner, `data` what was added up.
    """
    shapes = found.shapes()
    written = found.written(shapes.samples)
    priced_as = books.catalogue.priced_as
    # Accounts that are priced alike, by a number.
    alike: dict[tuple[str, str | None], int] = {}
    of_owner = [
        alike.setdefault((priced_as(owner.account_id), owner.currency), len(alike))
        for owner in owners
    ]
    names = [*alike]
    asked = np.array(of_owner, dtype=np.int64)[owner_of] * len(written) + shapes.number_of
    pairs, samples, book_of = np.unique(asked, return_index=True, return_inverse=True)
    answer: list[Book] = []
    for pair, group in zip(pairs.tolist(), samples.tolist(), strict=True):
        who, shape = divmod(pair, len(written))
        place = *names[who], written[shape]
        book = books.found(place)
        if book is None:
            event = _event_in(data[found.groups(columns.SAMPLE)[group]])
            owner = owners[owner_of[group]]
            of_event = books.shape_of(event, int(found.groups(columns.SEGMENT)[group]))
            book = books.of(owner.account_id, owner.currency, of_event, context_units_of(event))
            books.keep(place, book)
        answer.append(book)
    return answer, book_of


def _event_in(raw: bytes) -> usage.UsageEvent:
    """The event in a leaf that was added up."""
    record = record_of(raw)
    if record is None:
        raise AssertionError("a leaf that was added up holds no accepted record")
    return usage_event_of(record)
