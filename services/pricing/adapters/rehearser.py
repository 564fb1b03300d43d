"""The server's end of the rehearsal process: one call at a time, and none outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

from kernel import errors, grpcs
from pricing.adapters.rehearsal import work

T = TypeVar("T")
_MAX_S: Final = 900.0


class Rehearser:
    """Runs functions in a process of their own, started when it is first needed."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._busy = False

    async def run(self, remaining_s: float | None, function: Callable[..., T], *args: Any) -> T:
        """Run a function and give what it gives.

        Errors: Unavailable while another runs, or when it failed;
        DeadlinePassed. With a caller who left, the process ends too.
        """
        if self._busy:
            raise errors.Unavailable(
                "another preview or re-rating runs here; try again when it is done",
                reason="REHEARSAL_BUSY",
            )
        self._busy = True
        try:
            async with asyncio.timeout(grpcs.time_to_work_s(remaining_s, _MAX_S)):
                good, answer = await asyncio.to_thread(self._ask, function, args)
        except TimeoutError:
            self.stop()
            raise errors.DeadlinePassed(
                "there is more usage than can be rated in that time; ask with a longer deadline,"
                " or for fewer entries",
                reason="REHEARSAL_TOO_LONG",
            ) from None
        except (EOFError, OSError):
            self.stop()
            raise errors.Unavailable(
                "the process that rates usage again ended; try again", reason="REHEARSAL_ENDED"
            ) from None
        except asyncio.CancelledError:
            self.stop()
            raise
        finally:
            self._busy = False
        if not good:
            raise errors.Unavailable(f"rating again failed: {answer}", reason="REHEARSAL_FAILED")
        result: T = answer
        return result

    def _ask(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
        connection = self._connected()
        connection.send((function, args))
        answer: tuple[bool, Any] = connection.recv()
        return answer

    def _connected(self) -> Connection:
        if self._process is not None and self._process.is_alive() and self._connection is not None:
            return self._connection
        self.stop()
        # Spawned: a fork would take the server's threads' locks with it, held for ever.
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        return ours

    def stop(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
        # Closed after the process is gone: who reads from it wakes by its end.
        if self._connection is not None:
            self._connection = None
