"""What the commands, the tests and the demo do with a stack: up, down, look, disturb.

Owns orders.json and the life of the supervisor; everything else it reads. The one place outside the
supervisor that ends a stack's processes, and only when no supervisor is there to do it.

    with running_stack(parts=("kafka", "postgres")) as stack:
        stack.environment()             settings for a client or a service, TOLLBOOK_...
        killed = stack.kill("kafka")    kill -9; the supervisor starts it again
        stack.wait_ready("kafka", timeout_s=30)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tollbook.stack import postgres
from tollbook.stack.catalogue import (
    CHECKOUT,
    GIVEN_BY,
    Wiring,
    catalogue_of,
    given_parts,
    python_path,
)
from tollbook.stack.errors import NotReady, PartFailed, StackError
from tollbook.stack.files import locked
from tollbook.stack.home import Home
from tollbook.stack.logs import tail
from tollbook.stack.parts import Catalogue, Part
from tollbook.stack.processes import (
    MARKER,
    ProcessId,
    find_stack,
    process_id,
    wait_gone,
)
from tollbook.stack.state import (
    Orders,
    PartState,
    StackState,
    read_orders,
    read_state,
    write_orders,
)
from tollbook.stack.stopping import stop_parts, sweep

UP_TIMEOUT_S = 300
DOWN_TIMEOUT_S = 90
_POLL_S = 0.05
_SUPERVISOR_START_S = 60
_KILL_S = 60
_READY_S = 240

Watcher = Callable[[str, PartState], None]  # called with each part's name and its new state


@dataclass(frozen=True)
class Stack:
    """One stack, running or not, by its home."""

    home: Home
    given: Mapping[str, str]

    @classmethod
    def at(cls, root: Path | str | None = None) -> Stack:
        """The stack of a home; see Home.open for which one."""
        home = Home.open(root)
        state = read_state(home.state_file)
        if state is None:
            return cls(home, given_parts(os.environ))
        return cls(home, Wiring.of(home, state.base_port, {}).brought(os.environ))

    # -- looking ---------------------------------------------------------------------------

    def state(self) -> StackState | None:
        """What the supervisor last wrote, or None when the stack never ran."""
        return read_state(self.home.state_file)

    def running(self) -> StackState:
        """The state of a stack that runs. Raises StackError when it does not."""
        state = self.state()
        if state is None or not state.is_supervised():
            raise StackError(f"the stack in {self.home.root} does not run; start it: tollbook up")
        return state

    def wiring(self) -> Wiring:
        """Where everything of the running stack is."""
        state = self.running()
        return replace(Wiring.of(self.home, state.base_port, os.environ), given=state.given)

    def environment(self) -> dict[str, str]:
        """All settings of the running stack, to hand to a process that is to stand beside it."""
        return {**self.wiring().client(), "PYTHONPATH": python_path()}

    def address(self, part: str) -> str:
        """HOST:PORT of a part of the running stack."""
        return self.wiring().address(part)

    def log_file(self, part: str) -> Path:
        """Where a part's output is."""
        return self.home.log_file(part)

    def process(self, part: str) -> ProcessId:
        """The process of a part. Raises StackError when it has none just now."""
        state = self.running().parts.get(part)
        if state is None or state.process is None or not state.process.is_alive():
            raise StackError(f"{part} has no process just now")
        return state.process

    def parts(self) -> tuple[Part, ...]:
        """Every part of the stack, every need listed before what needs it."""
        return self._catalogue().parts

    def processes(self) -> set[ProcessId]:
        """Every process of the stack, the supervisor among them, whoever knows of it."""
        return find_stack(self.home.stack_id, [postgres.trace_of(self.home)])

    def _catalogue(self) -> Catalogue:
        state = self.state()
        base = state.base_port if state is not None else 0
        return catalogue_of(replace(Wiring.of(self.home, base, {}), given=self.given))

    # -- up and down -----------------------------------------------------------------------

    def up(
        self,
        only: Sequence[str] = (),
        *,
        timeout_s: float = UP_TIMEOUT_S,
        owner: ProcessId | None = None,
        watch: Watcher | None = None,
    ) -> bool:
        """Starts the stack, or the parts in `only` with what they need; waits until all is ready.

        Repeatable: a running stack gets what it lacks, and what gave up is tried again. After a
        crash, what is left of the last run is ended first. With an `owner` the stack stops when
        that process does. Returns whether anything had to be done. Raises PartFailed, NotReady or
        Unusable; the stack is then left as it is, to be looked at.
        """
        with locked(self.home.control_lock):
            self._catalogue().select(only)  # a name that is no part is refused before anything
            state = self.state()
            if state is not None and state.stopping:
                wait_gone([state.supervisor], DOWN_TIMEOUT_S)
            if state is not None and state.is_supervised():
                self._refuse_other_given(state)
                if self._has_all(state, only):
                    return False
                orders = self._order(lambda old: _more(old, only))
                state.supervisor.send(signal.SIGHUP)
            else:
                self._clean_up()
                orders = self._order(lambda old: Orders(old.serial, tuple(only)))
                self._start_supervisor(owner)
        self._wait_settled(orders.serial, timeout_s, watch)
        return True

    def down(self) -> bool:
        """Stops everything, in order, and by force what does not stop in time.

        Works as well when the supervisor is gone. Returns whether anything ran. Raises StackError
        if something outlived even SIGKILL.
        """
        with locked(self.home.control_lock):
            before = self.processes()
            state = self.state()
            if state is not None and state.is_supervised():
                state.supervisor.send(signal.SIGTERM)
                if wait_gone([state.supervisor], DOWN_TIMEOUT_S):
                    state.supervisor.send(signal.SIGKILL)
            self._clean_up()
        return bool(before)

    def remove(self) -> None:
        """Stops the stack and deletes its home, the database's data with it."""
        self.down()
        postgres.remove(self.home)
        shutil.rmtree(self.home.root, ignore_errors=True)

    def _clean_up(self) -> None:
        """Ends what is left of a stack that nobody supervises."""
        catalogue = self._catalogue()
        state = self.state()
        if state is not None:
            recorded = {
                name: part.process
                for name, part in state.parts.items()
                if part.process is not None and part.process.is_alive()
            }
            stop_parts(catalogue.parts, recorded)
        left = sweep(self.home.stack_id, catalogue.parts)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise StackError(f"processes {pids} of the stack do not end, not even by SIGKILL")

    def _refuse_other_given(self, state: StackState) -> None:
        if dict(self.given) != state.given:
            raise StackError(
                "the stack runs with other settings for TOLLBOOK_KAFKA, TOLLBOOK_POSTGRES or "
                "TOLLBOOK_MODEL than are set now; stop it first: tollbook down"
            )

    def _has_all(self, state: StackState, only: Sequence[str]) -> bool:
        wanted = [part.name for part in self._catalogue().select(only)]
        return all(name in state.parts and _is_up(state.parts[name]) for name in wanted)

    def _order(self, change: Callable[[Orders], Orders]) -> Orders:
        old = read_orders(self.home.orders_file)
        new = replace(change(old), serial=old.serial + 1)
        write_orders(self.home.orders_file, new)
        return new

    def _start_supervisor(self, owner: ProcessId | None) -> None:
        command = [sys.executable, "-m", "tollbook.stack.supervisor", str(self.home.root)]
        if owner is not None:
            command += ["--owner", f"{owner.pid}:{owner.start_tick}"]
        log = self.home.log_file("supervisor")
        not_given = {setting for part, setting in GIVEN_BY.items() if part not in self.given}
        environment = {name: value for name, value in os.environ.items() if name not in not_given}
        environment |= {MARKER: self.home.stack_id, "PYTHONPATH": python_path()}
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=environment,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SUPERVISOR_START_S
        while time.monotonic() < deadline:
            state = self.state()
            if state is not None and state.supervisor == process_id(child.pid):
                return
            if child.poll() is not None:
                raise StackError(f"the supervisor did not start: {' '.join(tail(log, 1))}")
            time.sleep(_POLL_S)
        raise StackError(f"the supervisor wrote no state in {_SUPERVISOR_START_S} s; see {log}")

    def _wait_settled(self, serial: int, timeout_s: float, watch: Watcher | None) -> None:
        deadline = time.monotonic() + timeout_s
        seen: dict[str, tuple[str, str]] = {}
        while True:
            state = self.running()
            if watch is not None:
                for name, part in state.parts.items():
                    if seen.get(name) != (part.status, part.detail):
                        seen[name] = (part.status, part.detail)
                        watch(name, part)
            if state.serial >= serial:
                self._raise_failed(state)
                if all(_is_up(part) or part.status == "held" for part in state.parts.values()):
                    return
            if time.monotonic() > deadline:
                late = [
                    f"{name} ({part.status}{': ' + part.detail if part.detail else ''})"
                    for name, part in state.parts.items()
                    if not _is_up(part)
                ]
                raise NotReady(f"not ready after {timeout_s:.0f} s: {', '.join(late)}")
            time.sleep(_POLL_S)

    def _raise_failed(self, state: StackState, names: Iterable[str] | None = None) -> None:
        for name in state.parts if names is None else names:
            part = state.parts[name]
            if part.status == "failed":
                raise PartFailed(f"{name} gave up: {part.detail} [log: {self.log_file(name)}]")

    # -- disturbing ------------------------------------------------------------------------

    def kill(self, part: str, signal_number: int = signal.SIGKILL) -> ProcessId:
        """Sends a part's process a signal, SIGKILL by default, and waits for its end if it is that.

        Returns the process that was hit. The supervisor will start the part again.
        """
        process = self.process(part)
        process.send(signal_number)
        if signal_number == signal.SIGKILL and wait_gone([process], _KILL_S):
            raise StackError(f"{part} (process {process.pid}) does not end, not even by SIGKILL")
        return process

    def kill_all(self) -> set[ProcessId]:
        """kill -9 of everything at once, the supervisor first. Returns what was killed."""
        supervisor = self.running().supervisor
        supervisor.send(signal.SIGKILL)
        killed = {supervisor}
        left = self.processes() | killed
        # Again, for what was forked between a look and the kill of who forked it.
        while left:
            for process in left:
                process.send(signal.SIGKILL)
            if stuck := wait_gone(left, _KILL_S):
                pids = ", ".join(str(process.pid) for process in stuck)
                raise StackError(f"processes {pids} of the stack do not end, not even by SIGKILL")
            killed |= left
            left = self.processes()
        return killed

    def wait_ready(self, part: str, timeout_s: float = _READY_S) -> ProcessId | None:
        """Waits until a part is ready in a process that lives; returns it (None for a step).

        Raises PartFailed when it gives up, NotReady when the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.running()
            found = state.parts.get(part)
            if found is None:
                raise StackError(f"{part} is no part of the running stack")
            self._raise_failed(state, [part])
            if _is_up(found):
                return found.process
            if time.monotonic() > deadline:
                raise NotReady(f"{part} is {found.status} after {timeout_s:.0f} s: {found.detail}")
            time.sleep(_POLL_S)

    def hold(self, part: str, timeout_s: float = _READY_S) -> None:
        """Stops one part gracefully and keeps it stopped until `release`."""
        self._change_held(lambda held: held | {part})
        deadline = time.monotonic() + timeout_s
        while self.running().parts[part].status != "held":
            if time.monotonic() > deadline:
                raise NotReady(f"{part} did not stop in {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def release(self, part: str, timeout_s: float = _READY_S) -> None:
        """Lets a held part run again and waits until it is ready."""
        self._change_held(lambda held: held - {part})
        self.wait_ready(part, timeout_s)

    def _change_held(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        with locked(self.home.control_lock):
            state = self.running()
            orders = self._order(
                lambda old: replace(old, held=tuple(sorted(change(frozenset(old.held)))))
            )
            state.supervisor.send(signal.SIGHUP)
        deadline = time.monotonic() + _SUPERVISOR_START_S
        while self.running().serial < orders.serial:
            if time.monotonic() > deadline:
                raise NotReady("the supervisor did not take up its orders")
            time.sleep(_POLL_S)


def _is_up(part: PartState) -> bool:
    return part.status == "ready" and (part.process is None or part.process.is_alive())


def _more(old: Orders, only: Sequence[str]) -> Orders:
    """Orders for what runs and `only` besides; nothing that runs is ever stopped by an `up`."""
    everything = not only or not old.only
    return replace(old, only=() if everything else tuple(dict.fromkeys((*old.only, *only))))


@contextmanager
def running_stack(
    home: Path | str | None = None,
    parts: Sequence[str] = (),
    *,
    timeout_s: float = UP_TIMEOUT_S,
    watch: Watcher | None = None,
) -> Iterator[Stack]:
    """A stack for as long as the block runs; stopped after it, also if this process is killed.

    Without a `home` it gets one of its own, deleted afterwards with the data.
    """
    own = home is None
    root = Path(tempfile.mkdtemp(prefix="tollbook-")) if home is None else Path(home)
    stack = Stack.at(root)
    try:
        stack.up(parts, timeout_s=timeout_s, owner=process_id(os.getpid()), watch=watch)
        yield stack
    finally:
        if own:
            stack.remove()
        else:
            stack.down()
