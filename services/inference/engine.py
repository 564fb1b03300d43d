"""The port to an engine: what serving and metering ask of whatever generates tokens.

Owns the shapes; knows no engine. A backend turns one logical request, with all
its choices, into events: Admitted, then Tokens of any choice, Finished once for
each choice, and Ended last of all. Whatever happens, generate() either ends
with Ended or raises; after abort() it still goes on to Ended, and what it
yields until then is counted.

Errors of generate(): errors.InvalidArgument before Admitted (nothing was
generated), EngineFailed (this request alone), EngineLost (the engine is gone).

An engine does one of two things, as its capabilities say: it generates, or it embeds. One
that embeds turns a job's inputs into Vectors, and its counter of generated tokens is of the
tokens that became vectors. Errors of embed(): the same, errors.InvalidArgument before the first
Vectors. After abort() no more inputs are begun; those in the engine are read out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from inference.domain import counting
from inference.domain.claims import NO_DOUBT, Doubt
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

UNKNOWN: Final = counting.UNKNOWN
_NUMBERS: Final = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")


class EngineFailed(Exception):
    """The engine failed on this request and goes on with others."""


class EngineLost(Exception):
    """The engine is dead: every request in it is over."""


@dataclass(frozen=True, slots=True)
class Target:
    """What serves a request: the base model, or one of its adapters.

    `adapter` is the adapter's name, or empty.
    """

    served_name: str
    base_name: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt: its ids, and the engine's own form of it."""

    token_ids: Sequence[int]
    engine_form: Any


@dataclass(frozen=True, slots=True)
class Job:
    """One logical request for the engine.

    `engine_request_id` is new for each attempt. `max_tokens` is the cap of each
    choice, already bounded by the context.
    """

    engine_request_id: str
    target: Target
    prompt: Prompt
    sampling: inference.SamplingParams
    choices: int
    max_tokens: int
    trace_headers: Mapping[str, str]

    def numbers(self, choice: int) -> dict[str, Any]:
        """What the caller set of a choice's sampling, under the names that engines have for it."""
        given = self.sampling
        numbers = {name: getattr(given, name) for name in _NUMBERS if given.HasField(name)}
        if given.HasField("seed"):
            # The same seed for all would make all choices the same.
            numbers["seed"] = given.seed + choice
        return numbers


@dataclass(frozen=True, slots=True)
class Admitted:
    """The engine took the request in."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of a choice, counted once each, and their text.

    `cached_tokens`: how much of the prompt the choice found in the cache; UNKNOWN while
    the engine has not said. `text` may come later than its tokens, and then without any.
    """

    choice: int
    token_ids: Sequence[int]
    text: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice ended.

    `finish_reason` is a usage.FinishReason. `surplus_tokens`: what the engine's
    counter holds beyond the tokens handed out, waste of `surplus_kind`.
    `doubt`: what the engine's own statement leaves in doubt, which is never billed unseen.
    """

    choice: int
    finish_reason: int
    surplus_tokens: int
    surplus_kind: int = usage.WASTE_KIND_AFTER_STOP
    doubt: Doubt = NO_DOUBT


@dataclass(frozen=True, slots=True)
class Ended:
    """Every choice is finished; nothing follows."""


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Inputs for an engine that embeds, each as its ids.

    `dimensions`: components of each vector, 0 for all. `at_once`: inputs in the engine at one
    time.
    """

    engine_request_id: str
    target: Target
    inputs: Sequence[Sequence[int]]
    dimensions: int
    at_once: int
    trace_headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of inputs that stand side by side, the first of them at `first`.

    `values`: components of each, float32 little-endian. `tokens`: of these inputs together.
    `doubt`: as in Finished; `prompt_tokens` of it are part of `tokens`.
    """

    first: int
    values: Sequence[bytes]
    tokens: int
    doubt: Doubt = NO_DOUBT


Event = Admitted | Tokens | Finished | Ended


@dataclass(frozen=True, slots=True)
class Counters:
    """The engine's own counters since it started.

    `preemptions`: times that it took a running sequence's memory for another, and computed it
    anew. `drafted_tokens`: guessed ahead, `accepted_tokens`: of these, what became output; the
    others are in no count. All 0 of an engine that does not say.
    """

    generation_tokens: int
    prompt_tokens: int
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the engine can do. `sleeps`: suspend() frees its memory, resume() brings it back.

    `vector_size`: components of a vector; 0 of an engine that generates.
    """

    context_tokens: int
    adapters: bool
    sleeps: bool = False
    vector_size: int = 0

    @property
    def embeds(self) -> bool:
        """True when it gives vectors and generates nothing."""
        return self.vector_size > 0


class Engine(Protocol):
    """An engine, started once and dead for ever when it is lost."""

    async def start(self) -> int:
        """Load, and warm up. Gives the tokens counted for the warm-up (waste)."""
        ...

    async def stop(self) -> None:
        """End the engine; running requests are lost."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do; true once started."""
        ...

    def counters(self) -> Counters:
        """Its own counters now. They may be behind or ahead of events for a loop turn."""
        ...

    async def render(self, spec: inference.GenerationSpec, cache_salt: str) -> Prompt:
        """Render the prompt. Errors: InvalidArgument (over-length, unknown ids)."""
        ...

    async def encode(self, text: str) -> list[int]:
        """A text's ids, with what the tokenizer adds of itself."""
        ...

    def check_ids(self, token_ids: Sequence[int], field: str) -> None:
        """Errors: InvalidArgument of `field`, for ids that the vocabulary has not."""
        ...

    def check_dimensions(self, dimensions: int) -> None:
        """Errors: InvalidArgument, where it knows that its vectors cannot be cut to so many."""
        ...

    def embed(self, job: EmbedJob) -> AsyncIterator[Vectors]:
        """Turn inputs into vectors; see the module's docstring."""
        ...

    def generate(self, job: Job) -> AsyncIterator[Event]:
        """Run one logical request; see the module's docstring."""
        ...

    async def abort(self, engine_request_id: str) -> None:
        """Stop a request; its generate() still runs to Ended."""
        ...

    async def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter. Errors: InvalidArgument when it cannot be loaded."""
        ...

    async def remove_adapter(self, name: str) -> None:
        """Unload an adapter."""
        ...

    async def suspend(self) -> None:
        """Free what it holds; nothing may be under way. Only where it sleeps."""
        ...

    async def resume(self) -> int:
        """Bring it back, with its adapters and its counters; gives the warm-up's tokens."""
        ...

    async def wait_lost(self) -> None:
        """Return when the engine is found dead, and not merely asleep."""
        ...
