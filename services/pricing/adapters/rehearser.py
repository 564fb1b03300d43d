"""The server's end of the rehearsal process: one call at a time, and none outlives its caller."""

from __future__ import annotations

import asyncio
import threading
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
        self._lock = threading.Lock()
        """Held to begin a process and to end one: who leaves meanwhile ends what was begun."""

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
        left = threading.Event()
        try:
            async with asyncio.timeout(grpcs.time_to_work_s(remaining_s, _MAX_S)):
                good, answer = await asyncio.to_thread(self._ask, left, function, args)
        except TimeoutError:
            self._leave(left)
            raise errors.DeadlinePassed(
                "there is more usage than can be rated in that time; ask with a longer deadline,"
                " or for fewer entries",
                reason="REHEARSAL_TOO_LONG",
            ) from None
        except (EOFError, OSError):
            self._leave(left)
            raise errors.Unavailable(
                "the process that rates usage again ended; try again", reason="REHEARSAL_ENDED"
            ) from None
        except asyncio.CancelledError:
            self._leave(left)
            raise
        finally:
            self._busy = False
        if not good:
            raise errors.Unavailable(f"rating again failed: {answer}", reason="REHEARSAL_FAILED")
        result: T = answer
        return result

    def _ask(
        self, left: threading.Event, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[bool, Any]:
        """In a thread, which a caller who leaves does not stop: it must not use the next one's
        process. Errors: EOFError, OSError.
        """
        with self._lock:
            if left.is_set():
                raise EOFError
            connection = self._connected()
        connection.send((function, args))
        answer: tuple[bool, Any] = connection.recv()
        return answer

    def _connected(self) -> Connection:
        if self._process is not None and self._process.is_alive() and self._connection is not None:
            return self._connection
        self._end()
        # Spawned: a fork would take the server's threads' locks with it, held for ever.
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, ours
        return ours

    def _leave(self, left: threading.Event) -> None:
        """End a call, and its process."""
        # What is waited for here is the begin of a process, some hundredths of a second.
        with self._lock:
            left.set()
            self._end()

    def stop(self) -> None:
        """End the process, whatever it does."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
        # Closed after the process is gone: who reads from it wakes by its end.
        self._connection = None
