"""What both clients send: the request under its id, and the caller's metadata."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from kernel import ids, telemetry
from tollbook.client.failures import Failure, InvalidRequest
from tollbook.client.shapes import Prompt, Sampling, TokenIds
from tollbook.client.wire import embed_request_of, spec_of
from tollbook.inference.v1 import inference_pb2 as inference


def specified(
    prompt: Prompt, model: str, sampling: Sampling | None, request_id: str | None
) -> inference.GenerationSpec:
    """The request, under the caller's id or a new one, made once for all tries.

    Errors: InvalidRequest for a value that no message can hold.
    """
    request_id = request_id or ids.new_id("req")
    try:
        return spec_of(prompt, model, sampling or Sampling(), request_id)
    except (TypeError, ValueError, AttributeError) as error:
        raise _unwritable(error, request_id) from error


def specified_inputs(
    inputs: Sequence[str | TokenIds], model: str, dimensions: int | None, request_id: str | None
) -> inference.EmbedRequest:
    """The same for vectors."""
    request_id = request_id or ids.new_id("req")
    try:
        if isinstance(inputs, str):
            raise TypeError("inputs are a list of texts, not one text")
        return embed_request_of(inputs, model, dimensions, request_id)
    except (TypeError, ValueError, AttributeError) as error:
        raise _unwritable(error, request_id) from error


def _unwritable(error: Exception, request_id: str) -> InvalidRequest:
    failure = Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"the request cannot be written: {error}",
        reason="INVALID_FIELD",
    )
    return InvalidRequest(failure, request_id, tries=0)


def authorization(secret: str) -> tuple[str, str]:
    """The metadata that says who calls. Errors: ValueError, without the secret in it."""
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError(
            "the secret must be what `tollbook keys create` printed: ASCII, not empty, no spaces"
        )
    return "authorization", f"Bearer {secret}"


def metadata(authorized: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Of one try: who calls, and the W3C context of the caller's span where it has one."""
    return (authorized, *telemetry.carrier_of().items())
