"""Which worker owns which usage log: leases, fair shares, take-over of the dead one's.

Owns the rows of table `worker` and the owners in `log_head`. A worker that
lives says so every third of a lease; its share is what an even split among
the living gives it. It gives up what is beyond its share and takes over what
nobody holds. Correctness never rests on a lease: the fence in each batch does
that; a lease only says when to try.
"""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError

from kernel.placement import usage_log
from ledger.adapters import database, store
from ledger.adapters.held_log import HeldLog
from ledger.adapters.leaves import LeafReader
from ledger.adapters.notify import Notifier
from ledger.adapters.partition import PartitionWriter, partition_of
from ledger.adapters.source import KafkaTopic, PartitionSource, SourceError
from ledger.adapters.store import BrokenLogError, FencedError

log = structlog.get_logger()

TICK_S: Final = 0.5
_HALTED_PAUSE_MS: Final = 10_000
_RENEW_WORKER: Final = (
    "INSERT INTO worker VALUES ($1, now() + $2::bigint * interval '1 millisecond')"
    " ON CONFLICT (worker_id) DO UPDATE SET lease_until = excluded.lease_until"
)
# Locked in one order: two renewals at once (a tick's and the keeper's) would else wait for each
# other, for where a head's row stands changes with every batch.
_RENEW_LOGS: Final = (
    "WITH held AS (SELECT log_id FROM log_head WHERE owner = $1 AND log_id = ANY($3::int[])"
    " ORDER BY log_id FOR NO KEY UPDATE)"
    " UPDATE log_head SET lease_until = now() + $2::bigint * interval '1 millisecond',"
    " end_offset = coalesce(seen.end_offset, log_head.end_offset), end_offset_at ="
    " CASE WHEN seen.end_offset IS NULL THEN end_offset_at ELSE clock_timestamp() END"
    " FROM held JOIN unnest($3::int[], $4::bigint[]) AS seen(log_id, end_offset) USING (log_id)"
    " WHERE owner = $1 AND log_head.log_id = held.log_id RETURNING log_head.log_id, epoch"
)
_FORGET_WORKERS: Final = "DELETE FROM worker WHERE lease_until < now() - interval '1 hour'"
_TOPIC_CHECK_TICKS: Final = 20
STUCK_S: Final = 5.0
"""A database that answers nothing, or takes no batch, for so long is a broken one."""
_FAILING_S: Final = 1.0
"""A log that fails again and again for so long does not just feel a restart of the database."""
_AGAIN_S: Final = 0.25
"""How long a log that the database failed is left alone."""


class Workforce:
    """This worker among the others."""

    def __init__(
        self,
        pool: Any,
        bootstrap: str,
        topic: str,
        partitions: int,
        lease_ms: int,
        batch_records: int,
        leaves: LeafReader,
    ) -> None:
        self.worker_id = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._pool = pool
        self._bootstrap = bootstrap
        self._topic = topic
        self._partitions = partitions
        self._lease_ms = lease_ms
        self._batch_records = batch_records
        self._leaves = leaves
        self._notifier = Notifier(pool)
        self._kafka = KafkaTopic(bootstrap, topic)
        self._logs: dict[int, str] = {}
        self._failures: dict[int, tuple[float, float]] = {}
        """By log that the database failed: since when again and again, and the last time."""
        self._is_good = False
        self._ticked_s = 0.0
        self._writers: dict[int, tuple[PartitionWriter, asyncio.Task[None], asyncio.Event]] = {}

    async def run(
        self, stopped: asyncio.Event, on_ready: Callable[[bool], Awaitable[None]]
    ) -> None:
        """Work until stopped; `on_ready` is told twice a second whether all is well."""
        self._notifier.start()
        reporting = asyncio.create_task(self._report(on_ready))
        keeping = asyncio.create_task(self._keep())
        tick = 0
        try:
            while not stopped.is_set():
                try:
                    if tick % _TOPIC_CHECK_TICKS == 0 or not self._logs:
                        await self._see_partitions()
                    await self._tick()
                    self._is_good = not await self._halted()
                    self._ticked_s = asyncio.get_running_loop().time()
                    tick += 1
                except database.AWAY as error:
                    log.warning("database away", error=repr(error))
                    self._is_good = False
                await self._pause(stopped)
        finally:
            reporting.cancel()
            keeping.cancel()
            await self._leave()

    def owned(self) -> list[str]:
        """The logs that it works on."""
        return sorted(writer.head.name for writer, _, _ in self._writers.values())

    async def _report(self, on_ready: Callable[[bool], Awaitable[None]]) -> None:
        """Say how it is, apart from the work: what hangs cannot say so itself."""
        loop = asyncio.get_running_loop()
        while True:
            writers = [writer for writer, _, _ in self._writers.values()]
            now_s = loop.time()
            await on_ready(
                self._is_good
                and now_s - self._ticked_s < STUCK_S
                and all(writer.committing_s < STUCK_S for writer in writers)
                and not any(
                    last_s - first_s > _FAILING_S and now_s - last_s < STUCK_S
                    for first_s, last_s in self._failures.values()
                )
            )
            await asyncio.sleep(TICK_S)

    def _committed(self, log_id: int, name: str) -> None:
        self._failures.pop(log_id, None)
        self._notifier.grew(name)

    def _failed(self, log_id: int) -> None:
        now_s = asyncio.get_running_loop().time()
        first_s, last_s = self._failures.get(log_id, (now_s, now_s))
        self._failures[log_id] = (first_s if now_s - last_s < STUCK_S else now_s, now_s)

    def _may_try(self, log_id: int) -> bool:
        _, last_s = self._failures.get(log_id, (0.0, 0.0))
        return not last_s or asyncio.get_running_loop().time() - last_s >= _AGAIN_S

    async def _pause(self, stopped: asyncio.Event) -> None:
        """Until the next tick, a stop, or the end of a writer."""
        waits = [asyncio.ensure_future(stopped.wait())]
        tasks = [task for _, task, _ in self._writers.values()]
        await asyncio.wait([*waits, *tasks], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()

    async def _see_partitions(self) -> None:
        """Open a log for every partition there is; more may come while we run."""
        count = self._partitions
        try:
            await self._kafka.open()
            found = await self._kafka.describe()
            if found is not None:
                count = len(found.leaders)
        except (KafkaError, OSError, TimeoutError):
            # The writers say so; until the brokers answer, the settings tell how many there are.
            await self._kafka.close()
        for partition in range(count):
            name = usage_log(partition)
            if name not in self._logs.values():
                self._logs[await store.open_log(self._pool, name)] = name

    async def _halted(self) -> bool:
        """Whether any log is halted: a person must look, and health says so until then."""
        found: bool = await self._pool.fetchval(
            "SELECT EXISTS (SELECT FROM log_head WHERE halted <> '')"
        )
        return found

    async def _tick(self) -> None:
        await self._reap()
        async with self._pool.acquire() as db:
            await self._renew(db)
            await db.execute(_FORGET_WORKERS)
            living = [
                row["worker_id"]
                for row in await db.fetch(
                    "SELECT worker_id FROM worker WHERE lease_until > now() ORDER BY worker_id"
                )
            ]
            share = fair_share(len(self._logs), living, self.worker_id)
            await self._give_up(db, len(self._writers) - share)
            await self._take(db, share - len(self._writers))

    async def _keep(self) -> None:
        """Renew the leases apart from the work: what a take-over loads takes as long as it does."""
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            try:
                async with self._pool.acquire() as db:
                    await self._renew(db)
            except database.AWAY:
                continue  # the next tick says so

    async def _renew(self, db: Any) -> None:
        """Say that this worker lives and works on its logs; learn which of them are another's.

        An owner learns of a fence when it writes. One that has nothing to write would never, and
        would count the log among its own while its true owner does too: then nobody has room for
        the logs that are free.
        """
        mine = {log_id: writer.head.epoch for log_id, (writer, _, _) in self._writers.items()}
        seen = [writer.high_watermark for writer, _, _ in self._writers.values()]
        await db.execute(_RENEW_WORKER, self.worker_id, self._lease_ms)
        rows = await db.fetch(_RENEW_LOGS, self.worker_id, self._lease_ms, list(mine), seen)
        held = {row["log_id"]: row["epoch"] for row in rows}
        for log_id, epoch in mine.items():
            if held.get(log_id) == epoch or log_id not in self._writers:
                continue
            writer, task, _ = self._writers[log_id]
            if writer.head.epoch == epoch and not task.done():
                log.warning("lost", log=writer.head.name, epoch=epoch, error="another owns it")
                task.cancel()

    async def _give_up(self, db: Any, count: int) -> None:
        for log_id in sorted(self._writers, reverse=True)[: max(count, 0)]:
            writer, task, stop = self._writers.pop(log_id)
            stop.set()
            await asyncio.wait([task])
            await self._ended(writer, task)
            await store.release(db, log_id, writer.head.epoch)
            log.info("gave up", log=writer.head.name, size=writer.size)

    async def _take(self, db: Any, count: int) -> None:
        if count <= 0:
            return
        free = await db.fetch(
            "SELECT log_id FROM log_head WHERE log_id = ANY($1::int[])"
            " AND (owner = $2 OR lease_until < now()) ORDER BY log_id",
            [
                log_id
                for log_id in self._logs
                if log_id not in self._writers and self._may_try(log_id)
            ],
            self.worker_id,
        )
        for row in free[:count]:
            head = await store.take_over(db, row["log_id"], self.worker_id, self._lease_ms)
            if head is None:
                continue
            writer = PartitionWriter(
                HeldLog(self._pool, head, self._lease_ms, self._leaves),
                PartitionSource(self._bootstrap, self._topic, partition_of(head)),
                self._batch_records,
                functools.partial(self._committed, head.log_id),
                self._partitions,
            )
            stop = asyncio.Event()
            self._writers[head.log_id] = (writer, asyncio.create_task(writer.run(stop)), stop)

    async def _reap(self) -> None:
        """Forget writers that ended; their logs are taken over anew, halted ones after a pause."""
        for log_id, (writer, task, _) in list(self._writers.items()):
            if task.done():
                await self._ended(writer, task)
                del self._writers[log_id]

    async def _ended(self, writer: PartitionWriter, task: asyncio.Task[None]) -> None:
        """Halt a log that trying again does not help; one bad log never stops the others.

        Errors: whatever a writer failed with that nobody foresaw.
        """
        error = None if task.cancelled() else task.exception()
        head = writer.head
        if isinstance(error, (SourceError, BrokenLogError)):
            log.error("HALTED", log=head.name, epoch=head.epoch, problem=str(error))
            await store.halt(self._pool, head, str(error), _HALTED_PAUSE_MS)
        elif isinstance(error, (FencedError, *database.AWAY)):
            log.warning("lost", log=head.name, epoch=head.epoch, error=repr(error))
            if not isinstance(error, FencedError):
                self._failed(head.log_id)
        elif error is not None:
            raise error

    async def _leave(self) -> None:
        """Finish what is under way and give everything up."""
        for _, _, stop in self._writers.values():
            stop.set()
        if self._writers:
            await asyncio.wait([task for _, task, _ in self._writers.values()])
        try:
            for log_id, (writer, _, _) in self._writers.items():
                await store.release(self._pool, log_id, writer.head.epoch)
            await self._pool.execute("DELETE FROM worker WHERE worker_id = $1", self.worker_id)
        except database.AWAY as error:
            log.warning("left without saying so", error=repr(error))
        await self._notifier.stop()
        await self._kafka.close()


def fair_share(logs: int, living: list[str], worker_id: str) -> int:
    """How many logs a worker owns when all are split evenly among the living."""
    if worker_id not in living:
        return 0
    least, rest = divmod(logs, len(living))
    return least + (1 if sorted(living).index(worker_id) < rest else 0)
