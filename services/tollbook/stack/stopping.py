"""Stopping parts in order, each by its own signal and in its own time, then by force.

The same for a supervisor that shuts down and for a command that cleans up after a dead one.
Blocking; every wait is bounded by the parts' own limits.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping

from tollbook.stack.parts import Part, Process, stop_waves
from tollbook.stack.processes import ProcessId, end, find_stack, wait_gone

_SWEEP_GRACE_S = 3


def stop_parts(parts: Iterable[Part], running: Mapping[str, ProcessId]) -> None:
    """Stops the parts' own processes, those first that lean on others."""
    for wave in stop_waves(parts):
        asked = [
            (part, running[part.name])
            for part in wave
            if isinstance(part, Process) and part.name in running
        ]
        for part, process in asked:
            process.send(part.stop_signal)
            # One that was paused can only obey once it goes on.
            process.send(signal.SIGCONT)
        patience_s = max((part.stop_timeout_s for part, _ in asked), default=0)
        for process in wait_gone((process for _, process in asked), patience_s):
            process.send(signal.SIGKILL)
        wait_gone((process for _, process in asked), _SWEEP_GRACE_S)


def sweep(stack_id: str, parts: Iterable[Part]) -> set[ProcessId]:
    """Ends whatever of a stack still runs: children of parts, steps, parts nobody recorded.

    Returns what even SIGKILL did not end in time.
    """
    traces = [part.trace for part in parts if isinstance(part, Process) and part.trace]
    return end(find_stack(stack_id, traces), _SWEEP_GRACE_S)
