"""The usage event of one logical request: begun at admission, completed at settlement.

Owns what stands in a UsageEvent and in the UsageSummary that the caller gets.
An event is completed from a template, so that a restart, which has only the
template and the recorded ids, writes the same event as the process that died
would have.
"""

from __future__ import annotations

import hashlib
from typing import Final

from inference.domain.counting import Tally, input_tokens_of, output_tokens_of
from inference.domain.embedding import EmbeddingTally
from inference.domain.outcome import OURS, End, finish_reason_of, outcome_of
from kernel.clock import timestamp_of
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

# The tier of a batch's lines, by which rate cards know them.
BATCH_TIER: Final = "batch"


def body_digest(spec: inference.GenerationSpec | inference.EmbedRequest) -> bytes:
    """SHA-256 of a request without its id: tells the same request from another one.

    Compared only with digests of this service, so this process's own
    deterministic serialization is canonical enough. Of embeddings the kind goes before it: two
    messages of different kinds may have the same bytes.
    """
    body = type(spec)()
    body.CopyFrom(spec)  # type: ignore[arg-type]
    body.ClearField("request_id")
    kind = b"" if isinstance(spec, inference.GenerationSpec) else b"embed\n"
    return hashlib.sha256(kind + body.SerializeToString(deterministic=True)).digest()


def complete(
    template: usage.UsageEvent,
    tally: Tally | EmbeddingTally,
    end: End,
    first_token_us: int,
    end_us: int,
) -> usage.UsageEvent:
    """The settled event. `first_token_us` is 0 when no token came."""
    event = usage.UsageEvent()
    event.CopyFrom(template)
    event.ClearField("quantities")
    event.quantities.extend(tally.quantities())
    if end in OURS and tally.nothing_delivered:
        # Whoever asks again, the caller or for a batch the service, is to pay one prompt.
        for leaf in event.quantities:
            leaf.undelivered_amount = leaf.amount
    event.outcome = outcome_of(end, tally.made_tokens)  # type: ignore[assignment]
    reasons = [choice.finish_reason for choice in tally.choices]
    event.finish_reason = finish_reason_of(reasons)  # type: ignore[assignment]
    if first_token_us:
        event.first_token_time.CopyFrom(timestamp_of(first_token_us))
    event.end_time.CopyFrom(timestamp_of(end_us))
    event.output_digest = tally.output_digest()
    event.choice_count = len(tally.choices)
    return event


def summary_of(event: usage.UsageEvent, log: str) -> inference.UsageSummary:
    """What the caller is told: the event's own leaves and their sums."""
    prompt, cached = input_tokens_of(event.quantities)
    return inference.UsageSummary(
        request_id=event.event_id,
        quantities=event.quantities,
        outcome=event.outcome,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output_tokens_of(event.quantities),
        account_id=event.account_id,
        log=log,
    )
