"""Tokens out of the engines against tokens in the log: nothing lost, nothing invented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from audit.cuts import CutAt
from audit.findings import Finding
from kernel.placement import CUT_LOG
from pricing.domain.state import Engine


class EngineLine(NamedTuple):
    """One engine process: output tokens by its own counter, in accepted events, itemised waste."""

    engine_id: str
    generated: int
    settled: int
    waste: int
    final: bool

    @property
    def residual(self) -> int:
        """What its counter has more than events and waste."""
        return self.generated - self.settled - self.waste


def lines_of(engines: Mapping[str, Engine]) -> list[EngineLine]:
    """All engines, by id."""
    return [
        EngineLine(
            engine_id,
            engine.generation_tokens,
            engine.event_tokens,
            engine.waste_tokens,
            engine.final,
        )
        for engine_id, engine in sorted(engines.items())
    ]


def check(last: CutAt, lines: list[EngineLine]) -> Iterator[Finding]:
    """Hold the cut's sums against the logs, and every stopped engine's counter against its events.

    An engine that still runs may have tokens in flight that no event has yet.
    """
    said = last.cut.conservation
    sums = (
        ("event_tokens", said.event_tokens, sum(line.settled for line in lines)),
        ("engine_tokens", said.engine_tokens, sum(line.generated for line in lines)),
        ("waste_tokens", said.waste_tokens, sum(line.waste for line in lines)),
    )
    for name, claimed, computed in sums:
        if claimed != computed:
            yield Finding(
                CUT_LOG,
                f"conservation: it says {name} {claimed}, the logs give {computed}",
                last.position,
            )
    for line in lines:
        if line.final and line.residual:
            yield Finding(
                f"conservation of engine {line.engine_id!r}",
                f"it generated {line.generated} tokens; events have {line.settled} and waste"
                f" {line.waste}: {line.residual} are unaccounted for",
            )
