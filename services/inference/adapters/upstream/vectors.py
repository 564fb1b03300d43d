"""OpenAI's `/v1/embeddings` from the caller's side: inputs sent as ids, vectors read and checked.

Inputs go in pieces, one request after another, so that what a caller that leaves has not had
begun is not paid. What a server says that it used is held against the ids that were sent.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from array import array
from collections.abc import Sequence
from typing import Any, Final

from inference.adapters.upstream.shapes import Garbled, claim_of
from inference.domain.claims import Claim

# Inputs of one request to the server.
PIECE: Final = 32
_BYTES: Final = 4
# Of an answer for each component that was asked for, JSON's digits included, and besides.
_MOST_BYTES: Final = 32
_BESIDES_BYTES: Final = 65_536


def body_of(model: str, inputs: Sequence[Sequence[int]], dimensions: int) -> dict[str, Any]:
    """The request for vectors of some inputs."""
    body: dict[str, Any] = {
        "model": model,
        "input": [list(ids) for ids in inputs],
        "encoding_format": "base64",
    }
    if dimensions:
        body["dimensions"] = dimensions
    return body


def most_bytes(inputs: int, size: int) -> int:
    """What an answer may have at the most."""
    return inputs * size * _MOST_BYTES + _BESIDES_BYTES


def read(data: bytes, inputs: int, most: int) -> tuple[list[bytes], Claim | None]:
    """(vectors in order of their inputs, float32 little-endian; what is claimed) of an answer.

    `most`: components that a vector may have. Errors: Garbled, also where vectors are missing,
    are of several sizes, or have a component that is no number.
    """
    try:
        answer = json.loads(data)
    except ValueError:
        raise Garbled(f"an answer that is no JSON: {data[:80]!r}") from None
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) != inputs:
        raise Garbled(f"an answer without {inputs} vectors: {data[:80]!r}")
    vectors: dict[int, bytes] = {}
    for place, item in enumerate(items):
        given = item if isinstance(item, dict) else {}
        index = given.get("index", place)
        if type(index) is not int or not 0 <= index < inputs or index in vectors:
            raise Garbled(f"a vector in the place {index!r} of {inputs}")
        vectors[index] = _vector_of(given.get("embedding"))
    sizes = {len(vector) for vector in vectors.values()}
    if len(sizes) != 1 or not 0 < sizes.pop() // _BYTES <= most:
        raise Garbled(f"vectors of several sizes, or of more than {most} components")
    return [vectors[place] for place in range(inputs)], claim_of(answer.get("usage"))


def _vector_of(given: Any) -> bytes:
    try:
        if isinstance(given, str):
            values = array("f", base64.b64decode(given, validate=True))
        elif isinstance(given, list):
            values = array("f", given)
        else:
            raise Garbled("an embedding that is none")
    except (binascii.Error, ValueError, TypeError, OverflowError) as error:
        raise Garbled(f"a vector that is none: {error}") from None
    if not all(map(math.isfinite, values)):
        raise Garbled("a vector with a component that is no number")
    return values.tobytes()
