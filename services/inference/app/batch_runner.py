"""Runs batches to their end, through restarts: one batch of an account at a time.

Owns what a batch's state becomes. A line's result is on the disk before the line counts as done;
a line without one is taken up again after a restart, under the same request id, so the registry
answers with what was settled. At most `places` lines of all accounts are under way at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from inference.adapters import batch_shapes as shapes
from inference.adapters.batch_results import Results
from inference.adapters.batch_store import BatchStore, File
from inference.adapters.keys import Keys
from inference.adapters.openai_shapes import Json
from inference.app import batch_line
from inference.app.requests import Requests
from inference.domain import batches
from inference.domain.batches import Batch, Line
from kernel import errors
from kernel.clock import Clock

log = structlog.get_logger()

_LONGEST_PAUSE_MS: Final = 10_000
_CREDIT_PAUSE_MS: Final = 500
# After a failure that is none of a line's, such as a full disk.
_BROKEN_PAUSE_S: Final = 10.0

# The spec of a line's body under a request id. Errors: InvalidArgument.
Read = Callable[[str, bytes, str], Awaitable[batch_line.Spec]]
# (HTTP status, body) of a line's result, by endpoint and body.
Tell = Callable[[str, bytes, batch_line.Answered | batch_line.Refused], tuple[int, Json]]


@dataclass
class _Running:
    """A batch whose lines run. `active`: its lines that may hold credit just now."""

    batch: Batch
    results: Results
    active: int = 0
    revoked: bool = False

    def end(self, now_s: int) -> str | None:
        """The state that it is to end in without its other lines; None while it goes on."""
        if self.revoked:
            return batches.FAILED
        if batches.CANCELLING in self.batch.at:
            return batches.CANCELLED
        return batches.EXPIRED if now_s >= self.batch.expires_at else None


class BatchRunner:
    """Everything runs on one event loop; the disk is waited for in threads."""

    def __init__(
        self,
        store: BatchStore,
        requests: Requests,
        keys: Keys,
        clock: Clock,
        places: int,
        read: Read,
        tell: Tell,
    ) -> None:
        self._store = store
        self._requests = requests
        self._keys = keys
        self._clock = clock
        self._read = read
        self._tell = tell
        self._places = asyncio.Semaphore(places)
        self._accounts: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, _Running] = {}
        self._saving = asyncio.Lock()
        self._stopping = asyncio.Event()

    def resume(self) -> None:
        """Go on with what an earlier process left."""
        left = self._store.under_way()
        for account_id in {batch.account_id for batch in left}:
            self.wake(account_id)
        if left:
            log.info("going on with batches", count=len(left))

    def wake(self, account_id: str) -> None:
        """There may be something to do for an account."""
        if account_id not in self._accounts and not self._stopping.is_set():
            task = asyncio.create_task(self._run_account(account_id), name="batches")
            self._accounts[account_id] = task

    def close(self) -> None:
        """Begin no more lines."""
        self._stopping.set()

    async def stop(self) -> None:
        """Return when what was begun is written down; call it when requests are drained."""
        self.close()
        tasks = tuple(self._accounts.values())
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._store.close)

    async def save(self, batch: Batch) -> None:
        """Keep a batch as it is now."""
        async with self._saving:
            await asyncio.to_thread(self._store.save, batch, batch.to_json())

    async def cancel(self, batch: Batch) -> None:
        """Begin no more of its lines; those under way come to their end."""
        if batch.status in (batches.VALIDATING, batches.IN_PROGRESS):
            await self._enter(batch, batches.CANCELLING)
            self.wake(batch.account_id)

    def told(self, batch: Batch) -> Json:
        """The batch object as it is now."""
        running = self._running.get(batch.id)
        if running is not None and batch.status in batches.UNDER_WAY:
            return shapes.batch_of(batch, running.results.sums, False, False)
        files = self._store.files
        return shapes.batch_of(
            batch, batch.sums, batch.output_file_id in files, batch.error_file_id in files
        )

    # One account after another's turn -------------------------------------------------

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000

    async def _run_account(self, account_id: str) -> None:
        try:
            while not self._stopping.is_set():
                mine = [one for one in self._store.under_way() if one.account_id == account_id]
                if not mine:
                    return
                try:
                    await self._run(mine[0])
                except Exception:
                    log.exception("a batch could not go on; it is tried again", batch=mine[0].id)
                    await self._pause(_BROKEN_PAUSE_S)
        finally:
            del self._accounts[account_id]

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _enter(self, batch: Batch, status: str) -> None:
        batch.enter(status, self._now_s())
        await self.save(batch)

    async def _run(self, batch: Batch) -> None:
        """Take a batch from where it is to its end, or until this process stops."""
        if batch.status == batches.VALIDATING:
            lines = self._store.lines(batch.input_file_id)
            batch.total, batch.problems = await asyncio.to_thread(
                batches.check, lines, batch.endpoint
            )
            if batch.problems:
                await self._enter(batch, batches.FAILED)
                return
            # A cancellation may have come in between.
            if batch.status == batches.VALIDATING:
                await self._enter(batch, batches.IN_PROGRESS)
        paths = [self._store.path_of(name) for name in (batch.output_file_id, batch.error_file_id)]
        running = _Running(batch, await asyncio.to_thread(Results, *paths))
        self._running[batch.id] = running
        try:
            end = await self._run_lines(running)
            if end is not None:
                await self._finish(running, end)
        finally:
            del self._running[batch.id]
            await asyncio.to_thread(running.results.close)

    async def _run_lines(self, running: _Running) -> str | None:
        """Run what has no result; gives the state that the batch ends in, None when this
        process stops before.
        """
        async with asyncio.TaskGroup() as group:
            async for line in self._lines_left(running):
                await self._places.acquire()
                if self._stopping.is_set() or running.end(self._now_s()) is not None:
                    self._places.release()
                    break
                task = group.create_task(self._run_line(running, line))
                task.add_done_callback(lambda _: self._places.release())
        end = running.end(self._now_s())
        if end is batches.EXPIRED:
            await self._give_up(running)
        if end is None and len(running.results.done) < running.batch.total:
            return None
        return end or batches.COMPLETED

    async def _lines_left(self, running: _Running) -> AsyncIterator[Line]:
        """Lines that have no result, in their order; an empty one is none."""
        batch = running.batch
        lines, number = self._store.lines(batch.input_file_id), 0
        while (raw := await asyncio.to_thread(next, lines, None)) is not None:
            number += 1
            line = batches.read_line(number, raw, batch.endpoint)
            if isinstance(line, Line) and line.custom_id not in running.results.done:
                yield line

    async def _give_up(self, running: _Running) -> None:
        """Say of each line without a result that its time is over."""
        batch = running.batch
        said = "the batch's window was over before this request was run"
        async for line in self._lines_left(running):
            untried = shapes.untried(batch.id, line.custom_id, "batch_expired", said)
            await running.results.add(False, untried)

    async def _run_line(self, running: _Running, line: Line) -> None:
        """To its result; without one when this process stops, or the batch does."""
        batch = running.batch
        digest = bytes.fromhex(batch.key_digest)

        def spec_under(request_id: str) -> Awaitable[batch_line.Spec]:
            return self._read(batch.endpoint, line.body, request_id)

        while not self._stopping.is_set() and running.end(self._now_s()) is None:
            running.active += 1
            try:
                caller = await self._keys.resolve_digest(digest)
                done = await batch_line.run(
                    self._requests, caller, spec_under, batch.id, line.custom_id
                )
            except errors.Unauthenticated:
                running.revoked = True
                return
            except errors.Unavailable as error:
                pause_ms = min(error.retry_after_ms, _LONGEST_PAUSE_MS)
            else:
                # What the batch's own lines hold will be free again.
                if not _out_of_credit(done) or running.active == 1:
                    status, body = self._tell(batch.endpoint, line.body, done)
                    result = shapes.result_of(done.request_id, line.custom_id, status, body)
                    await running.results.add(isinstance(done, batch_line.Answered), result)
                    return
                pause_ms = _CREDIT_PAUSE_MS
            finally:
                running.active -= 1
            # Those who were refused together do not come back together.
            await self._pause(pause_ms * (1 + random.random()) / 1000)  # noqa: S311

    async def _finish(self, running: _Running, end: str) -> None:
        batch, results = running.batch, running.results
        if running.revoked:
            said = "the key that the batch was sent with was revoked while it ran"
            batch.problems = [batches.Problem(None, "invalid_api_key", said)]
        await self._enter(batch, batches.FINALIZING)
        for file_id, kind, size in zip(
            (batch.output_file_id, batch.error_file_id),
            ("output", "errors"),
            results.sizes,
            strict=True,
        ):
            if not size:
                await asyncio.to_thread(self._store.path_of(file_id).unlink, missing_ok=True)
                continue
            name = f"{batch.id}_{kind}.jsonl"
            file = File(file_id, batch.account_id, name, "batch_output", size, self._now_s())
            await asyncio.to_thread(self._store.publish, file)
        batch.sums = results.sums
        await self._enter(batch, end)


def _out_of_credit(done: batch_line.Answered | batch_line.Refused) -> bool:
    return isinstance(done, batch_line.Refused) and isinstance(done.error, errors.QuotaExceeded)
