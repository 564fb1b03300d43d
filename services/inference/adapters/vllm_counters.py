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
        # Times that a running sequence's blocks were taken for another; it is computed anew.
        self.preemptions = 0
        # Tokens guessed ahead, and of these the ones that were right and became output.
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        """Add one step's figures."""
        if iteration_stats is not None:
            self.generation_tokens += iteration_stats.num_generation_tokens
            self.prompt_tokens += iteration_stats.num_prompt_tokens
            self.preemptions += iteration_stats.num_preempted_reqs
        drafts = scheduler_stats.spec_decoding_stats if scheduler_stats is not None else None
        if drafts is not None:
            self.drafted_tokens += drafts.num_draft_tokens
            self.accepted_tokens += drafts.num_accepted_tokens

    def log_engine_initialized(self) -> None:
        """Asked for by vLLM."""

    def log(self) -> None:
        """Asked for by vLLM."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Asked for by vLLM."""
