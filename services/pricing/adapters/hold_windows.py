"""The edges of spend limits' windows, which the database is told with each batch of asks.

Which window an instant falls in takes a time zone's clock, and the domain has it
(`domain/windows.py`); the limits themselves, what is spent and what is held in them are the
database's, read in the statement that decides. What is remembered here is no state of an account,
only of what kinds of windows its limits were when it was last looked at closer: where that is out
of date, or was never learnt, a window is not told, and the account is looked at closer again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pricing.adapters.hold_ops import Op, Reserving
from pricing.domain.state import Limit
from pricing.domain.windows import stretch_of

MAX_ACCOUNTS: Final = 100_000
_MAX_KINDS: Final = 10_000


class Kind(NamedTuple):
    """A kind of window, as limits name it."""

    span: str
    time_zone: str


class Columns(NamedTuple):
    """Windows as the database takes them: of each kind one, all instants of [start, end)."""

    spans: Sequence[str]
    zones: Sequence[str]
    starts_us: Sequence[int]
    ends_us: Sequence[int]


class Windows:
    """The kinds of windows of the accounts that were looked at closer, and their edges."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[str, frozenset[Kind]] = OrderedDict()
        self._edges: dict[Kind, tuple[int, int]] = {}

    def learn(self, account_id: str, limits: Iterable[Limit]) -> None:
        """Remember of what kinds the windows of an account's limits are."""
        kinds = frozenset(Kind(limit.window, limit.time_zone) for limit in limits)
        self._kinds.pop(account_id, None)
        if kinds:
            self._kinds[account_id] = kinds
        while len(self._kinds) > MAX_ACCOUNTS:
            self._kinds.popitem(last=False)

    def columns(self, batch: Sequence[Op]) -> Columns:
        """The windows that the asks of a batch fall in, as far as they are known. Of a kind it is
        the one that the first ask falls in.

        One that grows only guesses when its event was, so it comes after those that know.
        """
        told: dict[Kind, tuple[int, int]] = {}
        asks = [op for op in batch if isinstance(op, Reserving)]
        for op in sorted(asks, key=lambda op: op.grows):
            for kind in self._kinds.get(op.ask.account_id, ()):
                if kind not in told and (edges := self._edges_of(kind, op.ask.event_time_us)):
                    told[kind] = edges
        return Columns(
            [kind.span for kind in told],
            [kind.time_zone for kind in told],
            [start_us for start_us, _ in told.values()],
            [end_us for _, end_us in told.values()],
        )

    def _edges_of(self, kind: Kind, at_us: int) -> tuple[int, int] | None:
        edges = self._edges.get(kind)
        if edges is None or not edges[0] <= at_us < edges[1]:
            edges = stretch_of(kind.span, kind.time_zone, at_us)
            if edges is not None:
                if len(self._edges) >= _MAX_KINDS:
                    self._edges.clear()
                self._edges[kind] = edges
        return edges
