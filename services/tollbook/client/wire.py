"""Between the shapes and the contract's messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tollbook.client.shapes import (
    Answer,
    Choice,
    Delta,
    Embeddings,
    Finished,
    Message,
    Model,
    Piece,
    Prompt,
    Quantity,
    Sampling,
    Started,
    TokenIds,
    Usage,
)
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2


def spec_of(
    prompt: Prompt, model: str, sampling: Sampling, request_id: str
) -> inference.GenerationSpec:
    """The request. Errors: ValueError or TypeError for a value that no message can hold; all
    else that is wrong with it the service tells.
    """
    spec = inference.GenerationSpec(
        request_id=request_id, model=model, sampling=_sampling_of(sampling)
    )
    match prompt:
        case TokenIds():
            spec.tokens.token_ids.extend(prompt.token_ids)
            # An empty list is still the kind of prompt that was chosen.
            spec.tokens.SetInParent()
        case str():
            spec.chat.messages.add(role="user", content=prompt)
        case _:
            spec.chat.SetInParent()
            for message in prompt:
                _add(spec, message)
    return spec


def embed_request_of(
    inputs: Sequence[str | TokenIds], model: str, dimensions: int | None, request_id: str
) -> inference.EmbedRequest:
    """The request. Errors: ValueError or TypeError, for a value that no message can hold, or for
    texts and token ids in one request.
    """
    request = inference.EmbedRequest(request_id=request_id, model=model, dimensions=dimensions)
    for one in inputs:
        if isinstance(one, TokenIds):
            request.inputs.add(token_ids=one.token_ids)
        else:
            request.texts.append(one)
    if request.inputs and request.texts:
        raise ValueError("inputs are either texts or token ids, not both in one request")
    return request


def embeddings_of(message: inference.EmbedResponse) -> Embeddings:
    """Vectors."""
    vectors = tuple(tuple(one.values) for one in message.embeddings)
    return Embeddings(message.request_id, vectors, usage_of(message.usage), message.replayed)


def _add(spec: inference.GenerationSpec, message: Message) -> None:
    spec.chat.messages.add(role=message.role, content=message.content)


def _sampling_of(sampling: Sampling) -> inference.SamplingParams:
    # Unset and zero are not the same: zero tokens is refused, zero temperature is greedy.
    given: dict[str, Any] = {
        field.name: value
        for field in fields(sampling)
        if (value := getattr(sampling, field.name)) is not None
    }
    return inference.SamplingParams(**given)


def piece_of(message: inference.GenerateResponse) -> Piece | None:
    """One message of the stream; None for a kind that this client does not know."""
    match message.WhichOneof("event"):
        case "started":
            started = message.started
            return Started(started.request_id, started.prompt_tokens, started.replayed)
        case "delta":
            delta = message.delta
            return Delta(delta.choice, delta.text, tuple(delta.token_ids), delta.cumulative_tokens)
        case "finished":
            finished = message.finished
            return Finished(
                finished.choice, _finish_reason(finished.finish_reason), finished.output_tokens
            )
        case "usage":
            return usage_of(message.usage)
        case _:
            return None


def answer_of(message: inference.GenerateOnceResponse) -> Answer:
    """A whole answer."""
    choices = tuple(
        Choice(
            choice.index,
            choice.text,
            tuple(choice.token_ids),
            _finish_reason(choice.finish_reason),
        )
        for choice in message.choices
    )
    return Answer(message.request_id, choices, usage_of(message.usage), message.replayed)


def usage_of(message: inference.UsageSummary) -> Usage:
    """What was used."""
    quantities = tuple(
        Quantity(
            _name(usage_pb2.Unit, quantity.unit),
            _name(usage_pb2.Direction, quantity.direction),
            _name(usage_pb2.CacheUse, quantity.cache_use),
            quantity.amount,
            quantity.undelivered_amount,
        )
        for quantity in message.quantities
    )
    return Usage(
        request_id=message.request_id,
        account_id=message.account_id,
        log=message.log,
        outcome=_name(usage_pb2.Outcome, message.outcome),
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        output_tokens=message.output_tokens,
        quantities=quantities,
    )


def models_of(message: inference.ListModelsResponse) -> tuple[Model, ...]:
    """What is served, in order of name."""
    return tuple(
        Model(model.name, model.base_model, model.adapter, model.context_tokens, model.embeds)
        for model in message.models
    )


def _finish_reason(number: int) -> str:
    return _name(usage_pb2.FinishReason, number)


def _name(kind: Any, number: int) -> str:
    """The contract's name of a value; the number where this client is older than it."""
    try:
        name: str = kind.Name(number)
    except ValueError:
        return str(number)
    return name
