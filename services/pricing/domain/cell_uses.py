"""What the cells of a tally are summed by besides their charges: `Use`, by the minute and the key.

Here nearly nothing is shared, so it is Python for each cell.
"""

from __future__ import annotations

from collections.abc import Sequence

from pricing.domain.charges import Charges
from pricing.domain.compiled import columns as at
from pricing.domain.price_book import Book
from pricing.domain.spending import leaf_use, use_of
from pricing.domain.state import Use
from pricing.domain.summed_cells import PricedCells
from pricing.domain.tally import Numbers, Tally
from pricing.domain.windows import MINUTE_US


def count_groups(
    charges: Charges, found: Tally, books: Sequence[Book], book_of: Numbers
) -> list[Use]:
    """What each group is summed by, with its events counted."""
    uses: list[Use] = []
    for account_id, project_id, key_id, book, minute, requests in zip(
        found.texts(at.ACCOUNT_ID),
        found.texts(at.PROJECT_ID),
        found.texts(at.KEY_ID),
        book_of.tolist(),
        found.groups(at.MINUTE).tolist(),
        found.groups(at.REQUESTS).tolist(),
        strict=True,
    ):
        shape = books[book].shape
        use = use_of(
            account_id, project_id, key_id, shape.context, shape.outcome, minute * MINUTE_US
        )
        charges.use(use, requests)
        uses.append(use)
    return uses


def count_cells(charges: Charges, priced: PricedCells, which: Numbers, uses: Sequence[Use]) -> None:
    """Count what some cells used, which `sums_of` charges; `uses` are the groups'."""
    for group, price, used, charged in zip(
        priced.cells[which, at.CELL_GROUP].tolist(),
        priced.price_of[which].tolist(),
        priced.cells[which, at.CELL_AMOUNT].tolist(),
        priced.charged[which].tolist(),
        strict=True,
    ):
        prices, use = priced.prices[price], uses[group]
        for place, part in enumerate(prices.parts):
            of_leaf = leaf_use(use, prices.text, *part.rate.of_line)
            # What was used is counted with the line that prices it, not with its surcharges.
            charges.count_use(of_leaf, part.rate, 0 if place else used, charged)
