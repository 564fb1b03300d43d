"""Conservation: every token that an engine counted is settled, in flight or itemised waste.

One EngineBook for each engine process. It is folded from what the process saw,
or, after the process died, from what it had recorded; either way its final
reading has residual 0 or says by how much it has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernel.clock import timestamp_of
from tollbook.usage.v1 import usage_pb2 as usage


@dataclass
class EngineBook:
    """One engine process's tokens; all figures cumulative since it started."""

    engine_id: str
    generation_tokens: int = 0
    prompt_tokens: int = 0
    settled_tokens: int = 0
    waste: dict[int, int] = field(default_factory=dict)
    inferred_tokens: int = 0
    final: bool = False

    def count(self, generation_tokens: int, prompt_tokens: int) -> None:
        """Take the engine's counters; they only grow."""
        self.generation_tokens = max(self.generation_tokens, generation_tokens)
        self.prompt_tokens = max(self.prompt_tokens, prompt_tokens)

    def discard(self, kind: int, tokens: int) -> None:
        """Itemise tokens that nobody pays."""
        if tokens < 0:
            raise ValueError(f"waste of {tokens} tokens")
        if tokens:
            self.waste[kind] = self.waste.get(kind, 0) + tokens

    def settle(self, output_tokens: int) -> None:
        """A usage event of this engine was settled."""
        self.settled_tokens += output_tokens

    @property
    def accounted_tokens(self) -> int:
        """Settled and wasted."""
        return self.settled_tokens + sum(self.waste.values())

    def residual(self, in_flight_tokens: int = 0) -> int:
        """Counted by the engine and by nobody else; anything but 0 is an alarm."""
        return self.generation_tokens - self.accounted_tokens - in_flight_tokens

    def close_lost(self) -> None:
        """The engine is dead and all its requests are settled.

        What its counter had beyond them died with it: waste of its own kind.
        A record proves that the counter had at least reached it, also where the
        counter's last recorded value is older; by how much is told apart, so that
        a token counted twice does not hide in it.
        """
        self.discard(usage.WASTE_KIND_ENGINE_LOST, max(0, self.residual()))
        self.inferred_tokens = self.accounted_tokens - self.generation_tokens
        self.generation_tokens = self.accounted_tokens
        self.final = True

    def reading(self, now_us: int) -> usage.EngineReading:
        """The record of all this."""
        return usage.EngineReading(
            engine_id=self.engine_id,
            generation_tokens=self.generation_tokens,
            prompt_tokens=self.prompt_tokens,
            waste=waste_items(self.waste),
            reading_time=timestamp_of(now_us),
            final=self.final,
            inferred_tokens=self.inferred_tokens,
        )


def waste_items(waste: Mapping[int, int]) -> list[usage.Waste]:
    """Waste by kind, in order of kind."""
    return [
        usage.Waste(kind=kind, tokens=tokens)  # type: ignore[arg-type]
        for kind, tokens in sorted(waste.items())
    ]
