"""What the logs look like now, kept fresh for all calls of a process by one listener.

Heads, pins and newest checkpoints are read when a notice comes, and every
quarter of a second besides: a notice can be lost, a poll cannot. Calls wait on
the feed instead of asking the database each.
"""

from __future__ import annotations

import asyncio
import bisect
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog

from kernel.errors import NotFound
from ledger.adapters import database
from ledger.adapters.notify import CHANNEL

log = structlog.get_logger()

_POLL_S: Final = 0.25


class SignedHead(NamedTuple):
    """A signed checkpoint."""

    size: int
    root: bytes
    note: bytes


@dataclass
class LogView:
    """A log as the last reading saw it."""

    log_id: int
    name: str
    epoch: int
    next_offset: int
    size: int
    root: bytes
    dispositions: tuple[int, int, int, int]
    pin_positions: list[int] = field(default_factory=list)
    pin_sizes: list[int] = field(default_factory=list)
    checkpoint: SignedHead | None = None

    def pin_at(self, position: int) -> tuple[int, int]:
        """(control size, first position of the next pin or a position beyond any) at a position."""
        at = bisect.bisect_right(self.pin_positions, position) - 1
        after = self.pin_positions[at + 1] if at + 1 < len(self.pin_positions) else 1 << 62
        return self.pin_sizes[at], after


class Feed:
    """The newest view of every log."""

    def __init__(self, pool: Any, dsn: str) -> None:
        self._pool = pool
        self._dsn = dsn
        self._views: dict[str, LogView] = {}
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listener: Any = None
        self._reading = asyncio.Lock()
        self._asked = self._answered = 0

    async def start(self) -> None:
        """Read once, then follow."""
        await self.refresh()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._listener is not None:
            self._listener.terminate()

    @property
    def task(self) -> asyncio.Task[None]:
        """Runs as long as the feed lives; ends only by an error."""
        if self._task is None:
            raise RuntimeError("not started")
        return self._task

    def view(self, name: str) -> LogView:
        """A log's newest view. Errors: NotFound."""
        found = self._views.get(name)
        if found is None:
            raise NotFound(
                f"there is no log {name!r}; the logs are {', '.join(sorted(self._views))}",
                reason="NO_SUCH_LOG",
                metadata={"log": name},
            )
        return found

    def views(self) -> list[LogView]:
        """All logs, in order of name."""
        return [self._views[name] for name in sorted(self._views)]

    async def changed(self) -> None:
        """Wait until something changed. Ask for the view after each wait."""
        await self._changed.wait()

    def waiter(self) -> asyncio.Event:
        """The event of the next change; take it before looking, wait for it after."""
        return self._changed

    async def refresh(self) -> None:
        """Read now; all who ask while a reading is under way share the next one.

        One reading after the other: an older one that ends later must not be taken for the newer.
        """
        self._asked += 1
        mine = self._asked
        async with self._reading:
            if self._answered >= mine:
                return
            newest = self._asked
            await self._read()
            self._answered = newest

    async def _follow(self) -> None:
        away = False
        while True:
            try:
                if self._listener is None or self._listener.is_closed():
                    self._listener = await database.connect(self._dsn)
                    await self._listener.add_listener(CHANNEL, lambda *_: self._wake.set())
                await self.refresh()
                if away:
                    log.info("database back")
                    away = False
            except database.AWAY as error:
                if not away:
                    log.warning("database away", error=repr(error))
                    away = True
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _read(self) -> None:
        rows = await self._pool.fetch(
            "SELECT h.log_id, h.name, h.epoch, h.next_offset, h.size, h.root, h.control_size,"
            " h.accepted, h.duplicate, h.conflict, h.rejected,"
            " c.size AS signed_size, c.root AS signed_root, c.note"
            " FROM log_head h LEFT JOIN LATERAL (SELECT size, root, note FROM checkpoint"
            " WHERE log_id = h.log_id ORDER BY size DESC LIMIT 1) c ON true"
        )
        changed = False
        for row in rows:
            known = self._views.get(row["name"])
            signed = row["signed_size"]
            if (
                known is not None
                and known.size == row["size"]
                and known.epoch == row["epoch"]
                and (known.checkpoint.size if known.checkpoint else None) == signed
            ):
                continue
            changed = True
            pins = await self._pins(row["log_id"], row["control_size"], known)
            self._views[row["name"]] = LogView(
                row["log_id"],
                row["name"],
                row["epoch"],
                row["next_offset"],
                row["size"],
                row["root"],
                (row["accepted"], row["duplicate"], row["conflict"], row["rejected"]),
                *pins,
                SignedHead(signed, row["signed_root"], row["note"]) if signed is not None else None,
            )
        if changed:
            event, self._changed = self._changed, asyncio.Event()
            event.set()

    async def _pins(
        self, log_id: int, newest: int, known: LogView | None
    ) -> tuple[list[int], list[int]]:
        """The log's pins, of which the newest is for a control log of size `newest`."""
        if known is not None and known.pin_sizes and known.pin_sizes[-1] == newest:
            # A follower waits for this: no question more than there must be.
            return known.pin_positions, known.pin_sizes
        # Read after the head: every pin of an entry below the head's size is committed with it.
        positions = list(known.pin_positions) if known is not None else []
        sizes = list(known.pin_sizes) if known is not None else []
        rows = await self._pool.fetch(
            "SELECT from_position, control_size FROM log_pin WHERE log_id = $1"
            " AND from_position > $2 ORDER BY from_position",
            log_id,
            positions[-1] if positions else -1,
        )
        for from_position, control_size in rows:
            positions.append(from_position)
            sizes.append(control_size)
        return positions, sizes
