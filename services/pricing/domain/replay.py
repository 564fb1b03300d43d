"""Books in memory: every balance from the logs alone, for the auditor, for tests and previews.

The state is a pure function of how far each log is applied. In whatever order
the logs are fed, and in runs of whatever length, it comes to the same.

    replay = Replay()
    replay.apply_control(0, leaf)            # the control log first, up to the pin ...
    replay.apply_usage("usage-0", 0, 1, [leaf, leaf])   # ... then what is pinned to it
    replay.digest()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kernel.placement import CONTROL_LOG
from pricing.domain import books
from pricing.domain.digest import balances_digest
from pricing.domain.projection import Projection
from pricing.domain.state import Effects, Engine, Ignored, Totals


class Replay:
    """All balances at `sizes`, the number of entries applied of each log."""

    def __init__(self) -> None:
        self.projection = Projection(sums_use=False)
        self.sizes: dict[str, int] = {}
        self.balances: dict[books.BalanceKey, int] = {}
        self.totals: dict[str, Totals] = {}
        self.engines: dict[str, Engine] = {}
        self.ignored: list[Ignored] = []

    def apply_control(self, position: int, raw: bytes, aside: bytes = b"") -> Effects:
        """Apply the control log's leaf at `position`, which must be the next.

        Errors: ValueError out of order; MissingAsideError when the leaf holds
        only a digest and `aside` is not its record.
        """
        effects = self.projection.apply_control(position, raw, aside)
        self._book(CONTROL_LOG, position + 1, effects)
        return effects

    def apply_usage(
        self, log: str, first_position: int, pin: int, data: Sequence[bytes]
    ) -> Effects:
        """Apply a run of a usage log's leaves that share a pin, from the next position on.

        Errors: ValueError out of order, or when the control log is not applied
        up to the pin.
        """
        if first_position != self.sizes.get(log, 0):
            raise ValueError(
                f"{log} position {first_position} is not the next, {self.sizes.get(log, 0)}"
            )
        effects = self.projection.apply_usage(log, first_position, pin, data)
        self._book(log, first_position + len(data), effects)
        return effects

    def _book(self, log: str, size: int, effects: Effects) -> None:
        books.apply(self.balances, effects.postings)
        for account_id, totals in effects.totals.items():
            self.totals.setdefault(account_id, Totals()).add(totals)
        for engine_id, engine in effects.engines.items():
            self.engines.setdefault(engine_id, Engine()).add(engine)
        self.ignored += effects.ignored
        self.sizes[log] = size

    def suspense(self) -> dict[str, int]:
        """Entries that wait for a price, for each account."""
        return dict(Counter(entry.event.account_id for entry in self.projection.suspense.values()))

    def digest(self) -> bytes:
        """The digest of all balances (32 bytes), as in a cut."""
        return balances_digest(self.balances, self.suspense())

    def balance(self, ledger_account: str, currency: str) -> int:
        """A ledger account's balance in pico-units."""
        return self.balances.get((ledger_account, currency), 0)
