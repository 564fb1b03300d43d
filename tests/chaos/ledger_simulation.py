"""The ledger's owner under a seeded scheduler: crash anywhere, and the log must still be right.

Runs production's own PartitionWriter, planner and admission; only the database, the broker, the
network and the clock are simulated, in one thread and in simulated time. A seed decides
everything: what producers send, which task runs next, what fails and when. Every commit is
checked against a naive reference, and in the end the whole log is.

    python -m tests.chaos.ledger_simulation 100000              a hundred thousand seeds
    python -m tests.chaos.ledger_simulation --seed 4711         one of them again, told step by step
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import functools
import gc
import heapq
import os
import random
import sys
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import numpy as np
import structlog
from tests.unit.ledger import builders as make
from tests.unit.ledger.reference import ReferenceLog

from kernel import leaf as leaves
from kernel import merkle
from kernel.merkle import Frontier
from kernel.tiles import TILE_WIDTH, decode_bundle, tile_root
from ledger.adapters import database, partition
from ledger.adapters.source import Fetched, LastRead
from ledger.adapters.store import FencedError, Head
from ledger.domain.admission import ACCEPTED
from ledger.domain.batch import Batch, LogState, Record
from ledger.domain.columns import of_records
from ledger.domain.identities import IdentityIndex, SealedRun, fingerprints_of
from ledger.domain.scan import scan
from ledger.domain.streams import StreamState
from ledger.domain.tree import Tile, TreeBuilder

T = TypeVar("T")

LEASE_MS: Final = 3_000
TOPIC_ID: Final = bytes(range(16))
QUIET_AFTER_MS: Final = 20_000
"""Faults end by then, if not before; what is left must then get done."""
GIVE_UP_MS: Final = 600_000
MAX_STEPS: Final = 200_000
_CLOCK_RESOLUTION_S: Final = 1e-9
_FILTER_CAPACITY: Final = 16
"""So few that the index's filters are followed by larger ones in the middle of a run, too."""

# The simulation's own view of a log is worked out again at every load: mostly the same hashes.
leaf_hash = functools.lru_cache(maxsize=8_192)(merkle.leaf_hash)
_tile_root = functools.lru_cache(maxsize=64)(tile_root)


class Violation(AssertionError):
    """The log is not what it must be."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop with a clock of its own that runs ready tasks in an order the seed chooses."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self._rng = rng

    def time(self) -> float:
        return self.now

    def _process_events(self, events: Any) -> None:
        del events

    def _write_to_self(self) -> None:
        return None

    def _run_once(self) -> None:
        """What asyncio's own loop does in a step, less what it does for sockets and threads; and
        instead of waiting, time goes on.
        """
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Violation(f"no end after {MAX_STEPS} steps")
        loop: Any = self
        ready: deque[asyncio.Handle] = loop._ready
        timers: list[asyncio.TimerHandle] = loop._scheduled
        if len(ready) > 1:
            order = list(ready)
            self._rng.shuffle(order)
            ready.clear()
            ready.extend(order)
        while timers and timers[0].cancelled():
            self._take_timer(timers)
        if not ready and not loop._stopping:
            if not timers:
                raise Violation("everything waits, and nothing will ever happen")
            self.now += max(timers[0].when() - self.now, 0)
        due = self.now + _CLOCK_RESOLUTION_S
        while timers and timers[0].when() < due:
            ready.append(self._take_timer(timers))
        # Those that these make ready have their turn in the next step.
        for _ in range(len(ready)):
            handle: Any = ready.popleft()
            if not handle._cancelled:
                handle._run()

    @staticmethod
    def _take_timer(timers: list[asyncio.TimerHandle]) -> asyncio.TimerHandle:
        timer: Any = heapq.heappop(timers)
        timer._scheduled = False
        return cast(asyncio.TimerHandle, timer)


@dataclass
class Faults:
    """What may go wrong in a run, and how often: not everything in every run."""

    kill: float
    """Of each call: the process dies before it, in it, or after it."""
    pause_ms: int
    """A process may stand still for as long as this."""
    disk_full: float
    cut: float
    """The connection breaks: before the statement, or after its commit and before its answer."""
    database_crash: float
    clock_jump_ms: int
    slow_ms: int
    takeovers: float
    """Somebody takes the log although its owner lives."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Faults:
        def maybe(value: Any) -> Any:
            return value if rng.random() < 0.6 else type(value)(0)

        return cls(
            kill=maybe(rng.choice([0.01, 0.05, 0.15])),
            pause_ms=maybe(rng.choice([500, 2 * LEASE_MS, 5 * LEASE_MS])),
            disk_full=maybe(rng.choice([0.02, 0.2])),
            cut=maybe(rng.choice([0.02, 0.1, 0.3])),
            database_crash=maybe(rng.choice([0.01, 0.05])),
            clock_jump_ms=maybe(rng.choice([1_000, 10 * LEASE_MS])),
            slow_ms=maybe(rng.choice([5, 50, LEASE_MS])),
            takeovers=maybe(rng.choice([0.02, 0.1])),
        )

    def end(self) -> None:
        """No more of it."""
        self.kill = self.disk_full = self.cut = self.database_crash = self.takeovers = 0.0
        self.pause_ms = self.clock_jump_ms = self.slow_ms = 0


@functools.lru_cache(maxsize=4_096)
def _value(kind: str, event: int, account: int, amount: int, stream: int, seq: int) -> bytes | None:
    name = f"s{stream}"
    match kind:
        case "event":
            body = make.event(f"e{event}", f"account-{account}", quantities=[make.quantity(amount)])
            return make.wrap(body, seq, name)
        case "odd":  # usable, and left to the scan: no plain record has an attribute
            quantity = make.quantity(amount, attribute="gpu")
            return make.wrap(make.event(f"e{event}", quantities=[quantity]), seq, name)
        case "bad":
            return make.wrap(make.event(f"e{event}", quantities=[make.quantity(-1)]), seq, name)
        case "reading":
            return make.reading(seq, name, generation_tokens=amount)
        case "close":
            return make.close(seq, name)
        case "broken":
            return b"\xff\xff"
        case _:
            return None


def sent(rng: random.Random) -> Iterator[tuple[str, int, int, int, int, int]]:
    """What producers send, in order of arrival: streams, resent, out of order, gone, forged."""
    streams = rng.choice([1, 2, 4])
    kinds = ["event"] * 12 + ["odd", "bad", "reading", "broken", "none"]
    spools: list[list[tuple[str, int, int, int, int, int]]] = []
    for stream in range(streams):
        count = rng.randrange(1, 12)
        items = [
            (
                rng.choice(kinds),
                rng.randrange(12),
                rng.randrange(2),
                rng.choice([1, 1, 1, 2]),
                stream,
                seq,
            )
            for seq in range(count)
        ]
        if rng.random() < 0.5:
            items.append(("close", 0, 0, 0, stream, count))
        spools.append(items)
    for _ in range(rng.choice([0, 1, 3])):  # a producer starts again and sends its spool anew
        again = list(rng.choice(spools))
        spools.append(again[rng.randrange(len(again)) :])
    if rng.random() < 0.3:  # two records that claim one place
        kind, event, account, amount, stream, seq = rng.choice(spools[0])
        spools.append([(kind, event + 1, account, amount, stream, seq)])
    places = [number for number, items in enumerate(spools) for _ in items]
    if rng.random() < 0.7:
        rng.shuffle(places)
    heads = [iter(items) for items in spools]
    lost = rng.choice([0, 0, 0.05])
    for number in places:
        item = next(heads[number])
        if rng.random() >= lost:
            yield item


@functools.lru_cache(maxsize=8)
def history(size: int) -> tuple[list[Record], ReferenceLog, TreeBuilder, list[Tile]]:
    """A log that has `size` entries already, so that runs cross the bounds of tiles."""
    values = [make.wrap(make.event(f"old-{n}", "old"), n, "old") for n in range(size)]
    records: list[Record] = [(n, make.NOON_S * 1000, b"old", v) for n, v in enumerate(values)]
    reference = ReferenceLog()
    for record in records:
        reference.take(record)
    tree = TreeBuilder()
    tiles = tree.extend([leaf_hash(entry) for entry in reference.entries])
    return records, reference, tree, tiles


class Broker:
    """One partition. Offsets may have holes, as compaction and markers leave them."""

    def __init__(self, records: list[Record]) -> None:
        self.records = list(records)
        self.end = records[-1][0] + 1 if records else 0
        self.grown = asyncio.Event()

    def append(self, timestamp_ms: int, value: bytes | None, hole: int) -> None:
        self.end += hole
        self.records.append((self.end, timestamp_ms, b"key", value))
        self.end += 1
        self.wake()

    def wake(self) -> None:
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()

    def after(self, offset: int, most: int) -> list[Record]:
        first = bisect.bisect_left(self.records, offset, key=lambda item: item[0])
        return self.records[first : first + most]


class Process:
    """A worker process: what it awaits comes back late, or never when it is dead."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.paused_until = 0.0

    def die(self) -> None:
        if not self.dead:
            self.dead = True
            self.world.say(f"{self.name} is killed")
            self.world.died(self)

    async def call(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Ask somebody outside. What was asked goes on outside even when this process dies."""
        world = self.world
        await self._gate(what)
        task = world.outside(work())
        await asyncio.wait({task})
        await self._gate(what)
        return cast(T, task.result())

    async def _gate(self, what: str) -> None:
        """A moment at which the process may die, stand still, or find that it is dead."""
        world, rng, faults = self.world, self.world.rng, self.world.faults
        if world.over:
            raise asyncio.CancelledError
        if not self.dead and rng.random() < faults.kill:
            world.say(f"dying at {what}")
            self.die()
        if faults.pause_ms and rng.random() < 0.03:
            self.paused_until = world.now_ms + rng.randrange(faults.pause_ms)
            world.say(f"{self.name} stands still at {what}")
        if self.paused_until > world.now_ms:
            await asyncio.sleep((self.paused_until - world.now_ms) / 1000)
        if self.dead:
            await world.never()


@dataclass
class Row:
    """The log's head in the database."""

    epoch: int = 0
    owner: str = ""
    lease_until_ms: float = -1
    topic_id: bytes = b""
    next_offset: int = 0
    size: int = 0
    root: bytes = b""
    frontier: bytes = b""
    counts: tuple[int, ...] = (0, 0, 0, 0)
    pin: int = 0


@dataclass
class Tables:
    """What is durable."""

    row: Row = field(default_factory=Row)
    leaves: list[bytes] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    streams: dict[str, tuple[int, list[tuple[int, int]], int | None]] = field(default_factory=dict)
    asides: dict[int, bytes] = field(default_factory=dict)
    exceptions: set[int] = field(default_factory=set)
    runs: list[SealedRun] = field(default_factory=list)


class Database:
    """One head row with its lock; statements run on after their client is gone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tables = Tables()
        self.lock = asyncio.Lock()
        self.boot = 0
        self.clock_shift_ms = 0

    @property
    def now_ms(self) -> float:
        return self.world.now_ms + self.clock_shift_ms

    def crash(self) -> None:
        """Everything that is not committed is gone, connections break."""
        self.boot += 1
        self.world.say("the database crashes")

    async def statement(self, what: str, apply: Callable[[], T], writes: bool = True) -> T:
        """One transaction: waits for the row's lock, takes its time, commits as a whole or not."""
        world, rng, faults = self.world, self.world.rng, self.world.faults
        boot = self.boot
        await world.delay()
        if rng.random() < faults.cut / 2:
            raise ConnectionResetError(f"cut before {what}")
        if not writes:
            self._alive(boot)
            return apply()
        async with self.lock:
            await world.delay()
            if rng.random() < faults.database_crash:
                self.crash()
            self._alive(boot)
            if rng.random() < faults.disk_full:
                raise OSError(28, f"no space left: {what}")
            result = apply()
        await world.delay()
        self._alive(boot)
        if rng.random() < faults.cut / 2:
            world.say(f"cut after {what} was committed")
            raise ConnectionResetError(f"cut after {what}")
        return result

    def _alive(self, boot: int) -> None:
        if boot != self.boot:
            raise ConnectionResetError("the database went away")

    def take(self, owner: str, by_force: bool) -> Head | None:
        row = self.tables.row
        if not (by_force or row.owner == owner or row.lease_until_ms < self.now_ms):
            return None
        row.epoch += 1
        row.owner = owner
        row.lease_until_ms = self.now_ms + LEASE_MS
        self.world.say(f"{owner} takes over: epoch {row.epoch}, size {row.size}")
        return Head(
            100, "usage-0", row.topic_id, row.epoch, row.next_offset, row.size, row.root,
            row.frontier,
        )  # fmt: skip

    def bind(self, head: Head, topic_id: bytes) -> None:
        if self.tables.row.epoch != head.epoch:
            raise FencedError("fenced")
        self.tables.row.topic_id = topic_id

    def holds(self, head: Head, batch: Batch) -> bool:
        """The fence."""
        row = self.tables.row
        return (row.epoch, row.next_offset, row.size) == (
            head.epoch,
            batch.first_offset,
            batch.first_position,
        )

    def write(self, head: Head, batch: Batch) -> int:
        """What store.write_usage's one statement does."""
        tables, row = self.tables, self.tables.row
        if not self.holds(head, batch):
            self.world.say(f"fenced: {head.epoch} writes at {batch.first_position}")
            raise FencedError("fenced")
        for chunk in batch.chunks:
            if chunk.first_position != len(tables.leaves):
                raise Violation(f"a chunk at {chunk.first_position} after {len(tables.leaves)}")
            part = decode_bundle(chunk.data)
            if len(part) != chunk.entries or (
                chunk.first_position % TILE_WIDTH + chunk.entries > TILE_WIDTH
            ):
                raise Violation(f"the chunk at {chunk.first_position} is misshapen")
            tables.leaves += part
        tables.tiles += batch.tiles
        tables.asides.update(batch.asides)
        tables.exceptions.update(item.position for item in batch.exceptions)
        for stream in batch.streams:
            tables.streams[stream.stream_id] = (
                stream.next_seq,
                list(stream.missing),
                stream.closed_seq,
            )
        row.next_offset, row.size = batch.next_offset, batch.size
        row.root, row.frontier = batch.root, batch.frontier
        row.counts = tuple(a + b for a, b in zip(row.counts, batch.counts, strict=True))
        row.pin = max(row.pin, self.world.control_size)
        row.lease_until_ms = max(row.lease_until_ms, self.now_ms + LEASE_MS)
        self.world.committed(batch)
        return row.pin


class SimulatedLog:
    """The port to the database."""

    def __init__(self, process: Process, head: Head) -> None:
        self.head = head
        self._process = process
        self._db = process.world.database

    async def _ask(self, what: str, apply: Callable[[], T], writes: bool = False) -> T:
        return await self._process.call(what, lambda: self._db.statement(what, apply, writes))

    async def last_leaf(self) -> bytes | None:
        size = self.head.size
        return await self._ask(
            "last leaf", lambda: self._db.tables.leaves[size - 1] if size else None
        )

    async def bind_topic(self, topic_id: bytes) -> None:
        await self._ask("bind topic", lambda: self._db.bind(self.head, topic_id), writes=True)

    async def load(self) -> LogState:
        return await self._ask("load", lambda: restored(self._db.tables, self.head))

    async def leaves_at(self, positions: Iterable[int]) -> dict[int, bytes]:
        wanted = list(positions)
        stored = self._db.tables.leaves
        return await self._ask("leaves", lambda: {at: stored[at] for at in wanted})

    async def load_streams(self, stream_ids: Iterable[str]) -> dict[str, StreamState]:
        wanted = sorted(stream_ids)
        stored = self._db.tables.streams

        def read() -> dict[str, StreamState]:
            return {
                name: StreamState(stored[name][0], list(stored[name][1]), stored[name][2])
                for name in wanted
                if name in stored
            }

        return await self._ask("streams", read)

    async def write(self, batch: Batch) -> int:
        return await self._ask("write", lambda: self._db.write(self.head, batch), writes=True)


def restored(tables: Tables, head: Head) -> LogState:
    """A log's state out of what is durable, up to the head that the owner was given."""
    size = head.size
    partial: list[list[bytes]] = []
    first = size // TILE_WIDTH * TILE_WIDTH
    partial.append([leaf_hash(entry) for entry in tables.leaves[first:size]])
    tree = TreeBuilder(first, [[], *_upper(tables, size // TILE_WIDTH)])
    tree.extend(partial[0])
    if head.size and tree.root() != head.root:
        raise Violation(f"at size {size} the leaves do not give the root of the head")
    index = IdentityIndex(_FILTER_CAPACITY)
    found = [
        (identity, position)
        for position, identity in enumerate(map(_identity_of, tables.leaves[:size]))
        if identity
    ]
    if found:
        index.add(
            fingerprints_of([identity for identity, _ in found]),
            np.array([position for _, position in found], dtype=np.int64),
            size,
        )
    return LogState(tree, head.next_offset, index)


@functools.lru_cache(maxsize=4_096)
def _identity_of(entry: bytes) -> bytes:
    """Identity that an accepted leaf sets; empty for others."""
    leaf = leaves.decode(entry)
    return scan(leaf.value).identity if leaf.disposition == ACCEPTED else b""


def _upper(tables: Tables, tiles: int) -> list[list[bytes]]:
    if not tiles:
        return []
    return [[_tile_root(tile.hashes) for tile in tables.tiles if tile.level == 0][:tiles]]


class SimulatedSource:
    """The port to the broker."""

    def __init__(self, process: Process, most: int) -> None:
        self._process = process
        self._world = process.world
        self._most = most

    async def start(self, known_topic_id: bytes, last: LastRead | None) -> bytes:
        broker = self._world.broker

        async def look() -> bytes:
            await self._world.delay()
            if known_topic_id not in (b"", TOPIC_ID):
                raise Violation(f"bound to another topic: {known_topic_id.hex()}")
            if last is not None:
                [record] = broker.after(last.offset, 1)
                if not last.is_same(record):
                    raise Violation(f"the log's last leaf is not the record at {last.offset}")
            return TOPIC_ID

        return await self._process.call("start", look)

    async def fetch(self, offset: int) -> Fetched:
        world, rng, broker = self._world, self._world.rng, self._world.broker

        async def read() -> Fetched:
            await world.delay()
            grown = broker.grown
            found = broker.after(offset, rng.randrange(1, self._most + 1))
            if not found:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(grown.wait(), 2)
                found = broker.after(offset, rng.randrange(1, self._most + 1))
            end = found[-1][0] + 1 if found else offset
            if found and found[-1] == broker.records[-1]:
                end = max(end, broker.end)  # past the markers at the end as well
            return Fetched(offset, of_records(found), end, broker.end)

        return await self._process.call("fetch", read)

    async def close(self) -> None:
        await self._process._gate("close")


class World:
    """One run."""

    def __init__(
        self, seed: int, breaks: str = "", trace: bool = False, kill: float | None = None
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = Faults.drawn(self.rng)
        if kill is not None:
            self.faults.kill = kill
        self.loop = SimulatedLoop(self.rng)
        self.trace: list[str] = []
        self._tell = trace
        self.over = False
        self.control_size = self.rng.randrange(3)
        self.breaks = breaks
        self.tasks: set[asyncio.Future[Any]] = set()
        self.problem: BaseException | None = None
        self.commits = 0
        self.produced = False

    # -- the world's own means -----------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        return self.loop.now * 1000

    def say(self, text: str) -> None:
        line = f"{self.now_ms:10.1f} {text}"
        self.trace.append(line)
        if self._tell:
            print(line)

    async def delay(self) -> None:
        """As long as a network or a disk may take."""
        slow = self.faults.slow_ms
        if slow and self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.random() * slow / 1000)
        elif self.rng.random() < 0.5:
            await asyncio.sleep(0)

    async def never(self) -> Any:
        """What a dead process waits for."""
        return await self.loop.create_future()

    def outside(self, work: Any) -> asyncio.Future[Any]:
        """Let something go on, whoever asked for it."""
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._seen)
        return task

    def _seen(self, task: asyncio.Future[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, FencedError):
            return
        if isinstance(error, _UNFORESEEN) and self.problem is None:
            self.problem = error
            self.done.set()

    def committed(self, batch: Batch) -> None:
        """Check a commit in the instant it is made."""
        self.commits += 1
        row, stored = self.database.tables.row, self.database.tables.leaves
        for entry in stored[self.frontier.size :]:
            record = self.broker.records[self.frontier.size]
            self.reference.take(record)
            expected = self.reference.entries[-1]
            if entry != expected:
                raise Violation(
                    f"position {self.frontier.size}: {leaves.decode(entry)} stands where"
                    f" {leaves.decode(expected)} belongs"
                )
            self.frontier.append(leaf_hash(entry))
        if (row.size, row.root, row.frontier) != (
            self.frontier.size,
            self.frontier.root(),
            self.frontier.to_bytes(),
        ):
            raise Violation(f"the head's tree at {row.size} is not the one of its leaves")
        before = bisect.bisect_left(self.broker.records, row.next_offset, key=lambda item: item[0])
        if before != row.size:
            raise Violation(f"offset {row.next_offset} is next, but {row.size} of {before} are in")
        self.say(f"committed [{batch.first_position}, {batch.size}) by epoch {row.epoch}")
        self._check_done()

    # -- the run -------------------------------------------------------------------------------

    def died(self, process: Process) -> None:
        self.processes.remove(process)
        self.outside(self._start(process.name.split(".")[0]))

    async def _start(self, name: str) -> None:
        """A worker process: take the log when it is free, work until something goes wrong."""
        await asyncio.sleep(self.rng.random() * 2)
        self.started += 1
        process = Process(self, f"{name}.{self.started}")
        self.processes.append(process)
        while True:
            by_force = self.rng.random() < self.faults.takeovers
            try:
                head = await process.call(
                    "take over",
                    functools.partial(
                        self.database.statement,
                        "take over",
                        functools.partial(self.database.take, process.name, by_force),
                    ),
                )
                if head is not None:
                    writer = partition.PartitionWriter(
                        SimulatedLog(process, head),
                        SimulatedSource(process, self.rng.choice([1, 5, 10, 40])),
                        self.rng.choice([2, 100, 100]),
                        lambda name: None,
                    )
                    await writer.run(asyncio.Event())
            except (FencedError, *database.AWAY) as error:
                self.say(f"{process.name} lost it: {error!r}")
            await asyncio.sleep(self.rng.random() * 3)

    async def _produce(self) -> None:
        rng = self.rng
        timestamp_ms = make.NOON_S * 1000
        for item in sent(rng):
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * rng.choice([0.01, 0.5, 3]))
            timestamp_ms += rng.choice([0, 1, 1_000, -86_400_000, 86_400_000])
            self.broker.append(timestamp_ms, _value(*item), rng.choice([0, 0, 0, 0, 1, 7]))
            self.control_size += rng.choice([0, 0, 1])
        self.produced = True
        self._check_done()

    async def _disturb(self) -> None:
        """What comes from outside: clocks jump, somebody is killed, the database goes down."""
        rng, faults = self.rng, self.faults
        end_ms = rng.randrange(QUIET_AFTER_MS)
        while self.now_ms < end_ms:
            await asyncio.sleep(rng.random() * 2)
            if faults.clock_jump_ms and rng.random() < 0.1:
                self.database.clock_shift_ms += rng.randrange(
                    -faults.clock_jump_ms, faults.clock_jump_ms
                )
            if self.processes and rng.random() < faults.kill:
                rng.choice(self.processes).die()
            if rng.random() < faults.database_crash:
                self.database.crash()
        faults.end()
        self.database.clock_shift_ms = 0
        self.database.tables.row.lease_until_ms = min(
            self.database.tables.row.lease_until_ms, self.now_ms + LEASE_MS
        )
        self.say("quiet")

    def _check_done(self) -> None:
        if self.produced and self.database.tables.row.size == len(self.broker.records):
            self.done.set()

    async def _watch(self) -> None:
        await asyncio.sleep(GIVE_UP_MS / 1000)
        size = self.database.tables.row.size
        raise Violation(f"stuck at {size} of {len(self.broker.records)}")

    async def _run(self) -> None:
        size = self.rng.choice([0, 0, 0, 200, 254, 255, 256])
        records, reference, tree, tiles = history(size)
        self.broker = Broker(records)
        self.database = (_BROKEN.get(self.breaks) or Database)(self)
        self.reference = ReferenceLog(
            list(reference.entries),
            dict(reference.accepted),
            {name: set(numbers) for name, numbers in reference.seen.items()},
        )
        self.frontier = Frontier.from_bytes(size, tree.frontier())
        tables = self.database.tables
        tables.leaves += reference.entries
        tables.tiles += tiles
        if size:
            tables.streams["old"] = (size, [], None)
            tables.row = Row(
                next_offset=size,
                size=size,
                root=tree.root(),
                frontier=tree.frontier(),
                topic_id=TOPIC_ID,
                counts=(size, 0, 0, 0),
            )
        self.processes: list[Process] = []
        self.started = 0
        self.done = asyncio.Event()
        for worker in range(self.rng.choice([1, 2, 3])):
            self.outside(self._start(f"w{worker}"))
        for part in (self._produce(), self._disturb(), self._watch()):
            self.outside(part)
        await self.done.wait()
        self.over = True
        if self.problem is not None:
            raise self.problem
        self._check_end()

    def _check_end(self) -> None:
        """Everything that was sent is in, and what is derived from it agrees."""
        tables, reference = self.database.tables, self.reference
        if tables.leaves != reference.entries:
            raise Violation("the log is not the reference's")
        if list(tables.row.counts) != reference.counts():
            raise Violation(f"{tables.row.counts} are counted, {reference.counts()} are there")
        full = len(reference.entries) // TILE_WIDTH * TILE_WIDTH
        expected = TreeBuilder().extend([leaf_hash(entry) for entry in reference.entries[:full]])
        if sorted(tables.tiles) != sorted(expected):
            raise Violation("the tiles are not those of the leaves")
        for name, numbers in reference.seen.items():
            next_seq, missing, closed = tables.streams[name]
            gaps = {number for first, end in missing for number in range(first, end)}
            if next_seq != max(numbers) + 1 or gaps != reference.missing(name):
                raise Violation(f"stream {name}: {tables.streams[name]}")
            if closed is not None and closed not in numbers:
                raise Violation(f"stream {name} is closed by {closed}, which never came")
        not_accepted = {
            position for position, entry in enumerate(tables.leaves) if entry[2] in (3, 4)
        }
        if tables.exceptions != not_accepted:
            raise Violation("the list of exceptions is not that of the log")

    def run(self) -> None:
        """Errors: Violation, or whatever the code under test failed with."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run())
        finally:
            self.over = True
            rest = asyncio.all_tasks(self.loop)
            for task in rest:
                task.cancel()
            self.loop.steps = 0
            if rest:
                self.loop.run_until_complete(asyncio.wait(rest))
            asyncio.set_event_loop(None)
            self.loop.close()


# An error that nobody foresaw ends the run; those that the code must live with do not.
_UNFORESEEN: Final = (
    AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError,
)  # fmt: skip


class _NoFence(Database):
    """A database whose fence was forgotten: what the simulation must notice."""

    def holds(self, head: Head, batch: Batch) -> bool:
        del head, batch
        return True


class _HalfCommits(Database):
    """A database that keeps a batch's leaves without its streams."""

    def write(self, head: Head, batch: Batch) -> int:
        if self.world.rng.random() < 0.3:
            batch.streams = []
        return super().write(head, batch)


class _NoDuplicates(Database):
    """A database that lies about old leaves: a repeat looks new."""

    async def statement(self, what: str, apply: Callable[[], T], writes: bool = True) -> T:
        found = await super().statement(what, apply, writes)
        if what == "load" and isinstance(found, LogState):
            found.index = IdentityIndex()
        return found


_BROKEN: Final[dict[str, type[Database]]] = {
    "fence": _NoFence,
    "atomicity": _HalfCommits,
    "identities": _NoDuplicates,
}


def simulate(
    seed: int, breaks: str = "", trace: bool = False, kill: float | None = None
) -> list[str]:
    """Run one seed; gives what happened. `kill`: that fault's rate, whatever the seed says.

    Errors: Violation.
    """
    world = World(seed, breaks, trace, kill)
    world.run()
    return world.trace


def quiet() -> None:
    """Say nothing, and collect garbage rarely: for a process that does nothing else."""
    gc.freeze()
    gc.set_threshold(50_000)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def _part(seeds: range) -> tuple[int, int, str] | None:
    """The first seed that fails, and why."""
    quiet()
    for seed in seeds:
        try:
            simulate(seed)
        except Exception:
            return seed, len(seeds), traceback.format_exc()
    return None


def simulate_many(first: int, count: int, processes: int = 0) -> tuple[int, str] | None:
    """Run many seeds on all cores; gives the first one that failed, with the reason."""
    workers = processes or os.cpu_count() or 1
    step = max(1, min(250, count // workers))
    parts = [range(at, min(at + step, first + count)) for at in range(first, first + count, step)]
    with ProcessPoolExecutor(workers) as pool:
        for found in pool.map(_part, parts):
            if found is not None:
                pool.shutdown(cancel_futures=True)
                return found[0], found[2]
    return None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.ledger_simulation", description="Simulate the ledger's owner."
    )
    parser.add_argument("count", nargs="?", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    if given.seed is not None:
        quiet()
        simulate(given.seed, trace=True)
        return
    begun = time.perf_counter()
    failed = simulate_many(given.first, given.count)
    if failed is not None:
        print(failed[1])
        sys.exit(f"seed {failed[0]} fails; see it: --seed {failed[0]}")
    print(f"{given.count} seeds hold, {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
