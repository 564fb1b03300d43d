"""When a request is sent again: how often, after which pause, and when no more.

A repeat is always under the id of the first try. Pure but for the clock of `LogicalCall`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final

from tollbook.client.failures import Failure, error_of

# Of one logical call, all its tries, where its caller says nothing.
TIMEOUT_S: Final = 600.0
_MAX_TRIES: Final = 100
_MAX_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request may be sent (`tries`, the first included), and for how long.

    A pause is what the service asks for, and on top a random part of `first_ms` doubled with each
    try up to `longest_ms`, so that callers who failed together do not come back together. No pause
    ends later than `total_ms` after the first try. Errors: ValueError for a bound that is none.
    """

    tries: int = 8
    first_ms: int = 200
    longest_ms: int = 10_000
    total_ms: int = 60_000

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= _MAX_TRIES:
            raise ValueError(f"tries is {self.tries}; give 1 to {_MAX_TRIES}")
        for name in ("first_ms", "longest_ms", "total_ms"):
            if not 0 <= getattr(self, name) <= _MAX_MS:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 to {_MAX_MS}")


def pause_ms(
    retries: Retries, tried: int, elapsed_ms: int, asked_ms: int | None, draw: float
) -> int | None:
    """Milliseconds to wait after the `tried`-th try failed, or None to give up.

    `asked_ms` is the service's RetryInfo; `draw` is random, 0 <= draw < 1.
    """
    if tried >= retries.tries:
        return None
    jitter_ms = int(min(retries.longest_ms, retries.first_ms << (tried - 1)) * draw)
    pause = max(asked_ms or 0, 0) + jitter_ms
    return pause if elapsed_ms + pause <= retries.total_ms else None


class LogicalCall:
    """One request however often it is sent: its id, its tries, and the time that is left."""

    def __init__(self, request_id: str, retries: Retries, timeout_s: float) -> None:
        self.request_id = request_id
        self.tries = 0
        self._retries = retries
        self._began_s = time.monotonic()
        self._timeout_s = timeout_s

    def begin_try(self) -> float:
        """Count a try; gives the seconds that it may take."""
        self.tries += 1
        return max(self._timeout_s - self._elapsed_s(), 0.0)

    def pause_s(self, failure: Failure) -> float:
        """Seconds to wait before the next try. Errors: CallError when there is to be none."""
        elapsed_s = self._elapsed_s()
        pause = None
        if failure.may_be_sent_again:
            draw = random.random()  # noqa: S311 - spreads callers, keeps no secret
            asked_ms = failure.retry_after_ms
            pause = pause_ms(self._retries, self.tries, int(elapsed_s * 1000), asked_ms, draw)
        # A try that could not begin before the deadline would only hide why this one failed.
        if pause is None or elapsed_s + pause / 1000 >= self._timeout_s:
            raise error_of(failure, self.request_id, self.tries)
        return pause / 1000

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s
