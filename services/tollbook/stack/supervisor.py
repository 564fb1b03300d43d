"""The supervisor: starts the parts in order of need, keeps them running, stops them all.

`python -m tollbook.stack.supervisor HOME [--owner PID:TICK]`, detached, one a home. It alone writes
stack.json. SIGHUP: take up new orders, try again what gave up. SIGTERM: stop everything and leave.
With an owner it also stops everything when that process is gone. When it is itself killed, the
parts run on; the next `up` or `down` finds them.

A part that dies is started again. It gives up after a few lives in a row that got nowhere; a
SIGKILL from outside is never the part's own failure once it had been ready.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path

from tollbook.stack import ports
from tollbook.stack.catalogue import Wiring, catalogue_of, child_environment
from tollbook.stack.errors import StackError, Unusable
from tollbook.stack.home import Home
from tollbook.stack.logs import bound, last_line
from tollbook.stack.parts import Catalogue, Part, Process, Step
from tollbook.stack.postgres import run_as
from tollbook.stack.processes import ProcessId, process_id
from tollbook.stack.state import (
    PartState,
    PartStatus,
    StackState,
    read_orders,
    read_state,
    write_state,
)
from tollbook.stack.stopping import stop_parts, sweep

MAX_FAILURES = 5  # starts in a row that led nowhere, before a part gives up
STABLE_S = 10  # a part that was ready this long did get somewhere
MAX_BACKOFF_S = 5.0
STEP_TRIES = 3
_PROBE_S = 5.0
_PROBE_PAUSE_S = 0.1
_LOG_CHECK_S = 2.0

log = logging.getLogger("supervisor")


class Supervisor:
    """Everything the supervisor does, for one stack, on one event loop."""

    def __init__(self, home: Home, catalogue: Catalogue, base: int) -> None:
        me = process_id(os.getpid())
        if me is None:
            raise Unusable("/proc does not show this process; the stack needs Linux with /proc")
        self._home = home
        self._catalogue = catalogue
        self._selected: dict[str, Part] = {}
        self._held: frozenset[str] = frozenset()
        self._ready: dict[str, asyncio.Event] = {
            part.name: asyncio.Event() for part in catalogue.parts
        }
        self._orders_changed = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._state = StackState(
            stack_id=home.stack_id,
            supervisor=me,
            base_port=base,
            given=dict(catalogue.given),
            versions=dict(catalogue.versions),
        )

    # -- the outside -----------------------------------------------------------------------

    async def run(self, owner: ProcessId | None) -> None:
        """Runs until told to stop, then stops every part."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._take_orders)
        if owner is not None:
            self._watch(owner, loop)
        self._take_orders()
        bounding = asyncio.create_task(self._bound_logs())
        await self._stop.wait()
        bounding.cancel()
        await self._shut_down()

    def _watch(self, owner: ProcessId, loop: asyncio.AbstractEventLoop) -> None:
        """Stops the stack when the owner is gone, as the kernel tells it."""
        try:
            descriptor = os.pidfd_open(owner.pid)
        except ProcessLookupError:
            self._stop.set()
            return
        if not owner.is_alive():
            self._stop.set()
        loop.add_reader(descriptor, self._stop.set)

    def _take_orders(self) -> None:
        orders = read_orders(self._home.orders_file)
        for part in self._catalogue.select(orders.only):
            self._selected.setdefault(part.name, part)
        newly_held = set(orders.held) - self._held
        self._held = frozenset(orders.held)
        for name in newly_held:
            self._spawn(self._hold(name))
        for name, part in self._selected.items():
            self._state.parts.setdefault(name, PartState(address=_address(part)))
            task = self._tasks.get(name)
            if task is None or (task.done() and self._state.parts[name].status == "failed"):
                self._set(name, "waiting", "")
                work = self._keep(part) if isinstance(part, Process) else self._do(part)
                self._tasks[name] = asyncio.create_task(self._guard(name, work), name=name)
        self._state.serial = orders.serial
        self._orders_changed.set()
        self._orders_changed = asyncio.Event()
        self._write()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _hold(self, name: str) -> None:
        part = self._selected.get(name)
        process = self._state.parts[name].process if name in self._state.parts else None
        if part is not None and process is not None:
            await asyncio.to_thread(stop_parts, [part], {name: process})

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            for path in self._home.logs.glob("*.log"):
                bound(path)

    async def _shut_down(self) -> None:
        self._state.stopping = True
        self._write()
        for part in self._selected.values():
            if isinstance(part, Step):
                self._tasks[part.name].cancel()
        running = {
            name: state.process
            for name, state in self._state.parts.items()
            if state.process is not None
        }
        await asyncio.to_thread(stop_parts, list(self._selected.values()), running)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.to_thread(sweep, self._home.stack_id, list(self._selected.values()))
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for name in self._selected:
            self._set(name, "stopped", "")

    # -- one part --------------------------------------------------------------------------

    async def _guard(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Makes an error that nobody foresaw the part's failure, not a silence."""
        try:
            await work
        except Exception as error:
            log.exception("%s: the supervisor's own error", name)
            self._set(name, "failed", f"the supervisor failed: {describe(error)}")

    async def _needs(self, part: Part) -> None:
        for need in part.needs:
            await self._ready[need].wait()

    async def _do(self, step: Step) -> None:
        """Does a step once, trying again what may pass by itself."""
        await self._needs(step)
        for attempt in range(1, STEP_TRIES + 1):
            self._set(step.name, "starting", "")
            try:
                async with asyncio.timeout(step.timeout_s):
                    detail = await step.action()
            except Exception as error:
                final = attempt == STEP_TRIES or isinstance(error, Unusable)
                log.warning("%s failed (try %d): %s", step.name, attempt, describe(error))
                if final:
                    self._set(step.name, "failed", describe(error))
                    return
                await asyncio.sleep(backoff_s(attempt))
            else:
                self._ready[step.name].set()
                self._set(step.name, "ready", detail)
                return

    async def _keep(self, part: Process) -> None:
        """Keeps a process running until the stack stops or the part gives up."""
        failures = 0
        await self._needs(part)
        while not self._stop.is_set():
            if part.name in self._held:
                self._set(part.name, "held", "")
                await self._orders_changed.wait()
                continue
            life = await self._live(part)
            self._ready[part.name].clear()
            self._state.parts[part.name].process = None
            if self._stop.is_set() or part.name in self._held:
                continue
            failures = failures_after(failures, life)
            log.warning("%s ended: %s", part.name, life.end)
            if failures >= MAX_FAILURES:
                self._set(part.name, "failed", f"{life.end} ({failures} times in a row)")
                return
            self._set(part.name, "waiting", life.end)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(failures)):
                    await self._stop.wait()

    async def _live(self, part: Process) -> Life:
        """One life of a process, from its start to its end."""
        try:
            if part.prepare is not None:
                self._set(part.name, "starting", "")
                await part.prepare()
            if self._stop.is_set() or part.name in self._held:
                return Life("not started")
            child = await self._start(part)
        except (StackError, OSError) as error:
            return Life(describe(error))
        try:
            problem = await self._until_ready(part, child)
            if problem is not None:
                return Life(problem)
            self._ready[part.name].set()
            self._set(part.name, "ready", "")
            ready_at = time.monotonic()
            code = await child.wait()
            return Life(
                self._obituary(part, code),
                ready_s=time.monotonic() - ready_at,
                by_force=code == -signal.SIGKILL,
            )
        finally:
            # Its own children go with it: the next life must not meet them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    async def _start(self, part: Process) -> asyncio.subprocess.Process:
        with self._home.log_file(part.name).open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *part.command,
                env=child_environment(self._home, part.environment),
                cwd=part.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **run_as(part.account() if part.account is not None else None),
            )
        state = self._state.parts[part.name]
        state.process = process_id(child.pid)
        state.starts += 1
        self._set(part.name, "starting", "")
        return child

    async def _until_ready(self, part: Process, child: asyncio.subprocess.Process) -> str | None:
        """Asks the part until it answers. Returns what went wrong when it never does."""
        deadline = time.monotonic() + part.start_timeout_s
        ended = asyncio.create_task(child.wait())
        try:
            while True:
                try:
                    async with asyncio.timeout(_PROBE_S):
                        await part.probe()
                    return None
                except Exception as error:
                    answer = describe(error)
                await asyncio.wait([ended], timeout=_PROBE_PAUSE_S)
                if ended.done():
                    return self._obituary(part, ended.result())
                if time.monotonic() > deadline:
                    await self._end_child(part)
                    return f"not ready after {part.start_timeout_s:.0f} s: {answer}"
        finally:
            ended.cancel()

    async def _end_child(self, part: Process) -> None:
        process = self._state.parts[part.name].process
        if process is not None:
            await asyncio.to_thread(stop_parts, [part], {part.name: process})

    def _obituary(self, part: Process, code: int) -> str:
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit {code}: {last_line(self._home.log_file(part.name))}"

    # -- the state -------------------------------------------------------------------------

    def _set(self, name: str, status: PartStatus, detail: str) -> None:
        state = self._state.parts[name]
        state.status, state.detail, state.since_s = status, detail, time.time()
        log.info("%s %s %s", name, status, detail)
        self._write()

    def _write(self) -> None:
        write_state(self._home.state_file, self._state)


@dataclass(frozen=True)
class Life:
    """How one life of a process went."""

    end: str
    ready_s: float = 0.0  # how long it was ready; 0 when it never was
    by_force: bool = False  # whether somebody sent it SIGKILL


def failures_after(failures: int, life: Life) -> int:
    """How many lives in a row got nowhere, after one more."""
    if life.ready_s == 0:
        return failures + 1
    # It worked and was killed from outside, or it worked for long: that is no failing of its own.
    return 0 if life.by_force or life.ready_s >= STABLE_S else failures + 1


def backoff_s(failures: int) -> float:
    """How long to wait before the next start after so many lives in a row that got nowhere."""
    return min(0.05 * 2.0**failures, MAX_BACKOFF_S)


def describe(error: BaseException) -> str:
    """An error in one line; its kind when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _address(part: Part) -> str:
    return part.address if isinstance(part, Process) else ""


def _owner(text: str) -> ProcessId:
    pid, _, tick = text.partition(":")
    return ProcessId(int(pid), int(tick))


def main() -> int:
    """Becomes the supervisor of a home, unless it has one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--owner", type=_owner)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    # Parts that do not answer yet are what probes are for; their clients' complaints are noise.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    home = Home.open(arguments.home)
    with (home.root / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"the stack in {home.root} has a supervisor already")
        earlier = read_state(home.state_file)
        kept = earlier.base_port if earlier is not None else None
        try:
            base, claim = ports.claim(home.stack_id, kept)
            catalogue = catalogue_of(Wiring.of(home, base, os.environ))
            supervisor = Supervisor(home, catalogue, base)
        except StackError as error:
            sys.exit(str(error))
        with claim:
            asyncio.run(supervisor.run(arguments.owner))
    return 0


if __name__ == "__main__":
    sys.exit(main())
