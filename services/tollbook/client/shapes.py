"""What a caller gives and gets, as values. What each field means stands in full, with its limits,
in protos/tollbook/inference/v1/inference.proto; the names are the same.

Enumerations are the contract's names as text (`OUTCOME_COMPLETE`), so that a value that a later
service adds is told and not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt in token ids, taken as they are."""

    token_ids: Sequence[int]


# A text is one message of the user's.
Prompt = str | Sequence[Message] | TokenIds


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; None is the model's own default. `max_tokens` is for each of `n` choices."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    n: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted. `replayed`: it had been sent before."""

    request_id: str
    prompt_tokens: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and token ids of one choice; `cumulative_tokens` of it so far, these included."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One choice ended, with `output_tokens` in all."""

    choice: int
    finish_reason: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Quantity:
    """One leaf of the usage event: `amount` of a unit, of which `undelivered_amount` never came."""

    unit: str
    direction: str
    cache_use: str
    amount: int
    undelivered_amount: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request used, in tokens, as the log holds it and the charge is made of.

    `request_id` is the id of the event and of the receipt; `prompt_tokens` include the
    `cached_tokens`; `output_tokens` are those of all choices.
    """

    request_id: str
    account_id: str
    log: str
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    quantities: tuple[Quantity, ...]


# What a stream gives, Usage last of all.
Piece = Started | Delta | Finished | Usage


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated choice, whole."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole generation. `replayed`: it had been sent before."""

    request_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    replayed: bool


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors in order of the inputs. `replayed`: it had been sent before."""

    request_id: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    replayed: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A name to ask for. `context_tokens`: prompt and output together, at the most.

    `embeds`: it gives vectors and generates nothing; the context is then an input's.
    """

    name: str
    base_model: str
    adapter: str
    context_tokens: int
    embeds: bool = False
