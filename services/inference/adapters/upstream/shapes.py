"""OpenAI's `/v1/completions` from the caller's side: requests written, chunks read.

A prompt is sent as token ids, so that what is counted is what was sent. Two dialects:
`RICH` asks for ids with each piece (`return_token_ids`) and a cache of each tenant's own
(`cache_salt`), as vLLM has them and SGLang in part; `PLAIN` is OpenAI's and no more, for
servers that refuse fields they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from inference import engine as port
from inference.domain.claims import MAX_CLAIM, Claim
from inference.domain.outcome import FINISH_REASONS
from tollbook.usage.v1 import usage_pb2 as usage

_MAX_ID: Final = 0xFFFF_FFFF


class Garbled(Exception):
    """A chunk that is none, or an error in the middle of a stream; the message says which."""


class Dialect(Enum):
    """What a server understands."""

    RICH = "rich"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk. `token_ids` is None where the server gave text alone, `finish_reason` 0
    while the choice goes on, `claim` None where no usage stands in the chunk.
    """

    text: str
    token_ids: Sequence[int] | None
    finish_reason: int
    claim: Claim | None


def body_of(job: port.Job, model: str, choice: int, dialect: Dialect) -> dict[str, Any]:
    """The request for one choice of a job."""
    given = job.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(job.prompt.token_ids),
        "max_tokens": job.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **job.numbers(choice),
    }
    if given.stop:
        body["stop"] = list(given.stop)
    if given.ignore_eos:
        body["ignore_eos"] = True
    if given.HasField("json_schema"):
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": json.loads(given.json_schema)},
        }
    if dialect is Dialect.RICH:
        body["return_token_ids"] = True
        body["stream_options"]["continuous_usage_stats"] = True
        if job.prompt.engine_form:
            body["cache_salt"] = job.prompt.engine_form
    return body


def read_piece(data: bytes) -> Piece:
    """Read a chunk of a stream of one choice. Errors: Garbled."""
    try:
        chunk = json.loads(data)
    except ValueError:
        raise Garbled(f"a chunk that is no JSON: {data[:80]!r}") from None
    if not isinstance(chunk, dict):
        raise Garbled(f"a chunk that is no object: {data[:80]!r}")
    if chunk.get("error"):
        raise Garbled(f"the server reports: {str(chunk['error'])[:300]}")
    choices = chunk.get("choices")
    if not isinstance(choices, list) or len(choices) > 1:
        raise Garbled(f"a chunk without one choice: {data[:80]!r}")
    claim = claim_of(chunk.get("usage"))
    if not choices:
        return Piece("", None, 0, claim)
    choice = choices[0] if isinstance(choices[0], dict) else {}
    text, ids, finish = choice.get("text"), choice.get("token_ids"), choice.get("finish_reason")
    if not isinstance(text, str) or not isinstance(finish, str | None):
        raise Garbled(f"a choice without text: {data[:80]!r}")
    if ids is not None and not (
        isinstance(ids, list) and all(type(item) is int and 0 <= item <= _MAX_ID for item in ids)
    ):
        raise Garbled(f"token ids that are none: {str(ids)[:80]}")
    # A reason that nobody knows still ends the choice.
    reason = FINISH_REASONS.get(finish, usage.FINISH_REASON_STOP) if finish else 0
    return Piece(text, ids, reason, claim)


def claim_of(given: Any) -> Claim | None:
    """A usage object. Errors: Garbled, for figures that are no counts."""
    if given is None:
        return None
    details = given.get("prompt_tokens_details") if isinstance(given, dict) else None
    source = given if isinstance(given, dict) else {}
    figures: list[Any] = [
        source.get("prompt_tokens"),
        source.get("completion_tokens", 0),
        (details.get("cached_tokens") if isinstance(details, dict) else None) or 0,
    ]
    if not all(type(figure) is int and figure >= 0 for figure in figures):
        raise Garbled(f"a usage that is none: {str(given)[:200]}")
    prompt, output, cached = (min(int(figure), MAX_CLAIM) for figure in figures)
    return Claim(prompt, output, cached if isinstance(details, dict) else None)
