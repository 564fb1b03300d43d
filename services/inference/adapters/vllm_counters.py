"""vLLM's own counters, read in the process: what conservation is checked against."""

from __future__ import annotations

from typing import Any


class CounterLogger:
    """vLLM's stat logger port, holding the sums that conservation is checked against.

    The figures are vLLM's own: every token that its output processor saw,
    whether or not somebody read it.
    """

    def __init__(self) -> None:
        self.generation_tokens = 0
        self.prompt_tokens = 0

    def record(
        self,
        scheduler_stats: object,
        iteration_stats: Any,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        """Add one step's figures."""
        if iteration_stats is not None:
            self.generation_tokens += iteration_stats.num_generation_tokens
            self.prompt_tokens += iteration_stats.num_prompt_tokens

    def log_engine_initialized(self) -> None:
        """Asked for by vLLM."""

    def log(self) -> None:
        """Asked for by vLLM."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Asked for by vLLM."""
