"""An embedding server's answers read: what is whole comes as it is, all else is refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.adapters.upstream import vectors
from inference.adapters.upstream.shapes import Garbled

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIZE = 3


def told(values: list[list[float]], in_base64: bool, order: list[int] | None = None) -> bytes:
    items: list[dict[str, Any]] = []
    for index in order if order is not None else range(len(values)):
        one = values[index]
        packed = base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode()
        items.append({"index": index, "embedding": packed if in_base64 else one})
    return json.dumps({"data": items, "usage": {"prompt_tokens": 9}}).encode()


@given(
    st.lists(st.lists(FLOATS, min_size=SIZE, max_size=SIZE), min_size=1, max_size=5),
    st.booleans(),
    st.randoms(),
)
def test_each_vector_stands_where_its_input_does_however_it_is_told(
    values: list[list[float]], in_base64: bool, random: Any
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    found, claim = vectors.read(told(values, in_base64, order), len(values), SIZE)
    assert found == [struct.pack(f"<{SIZE}f", *one) for one in values]
    assert claim is not None
    assert claim.prompt_tokens == 9


@given(st.binary(max_size=200))
def test_nothing_that_is_no_answer_is_taken_for_one(data: bytes) -> None:
    with pytest.raises(Garbled):
        vectors.read(data, 1, SIZE)


ONE = [0.5, 0.25, 1.0]


@pytest.mark.parametrize(
    ("answer", "inputs"),
    [
        (told([ONE], True), 2),
        (told([ONE, ONE[:2]], False), 2),
        (told([ONE * 2], True), 1),
        (told([[]], True), 1),
        (told([ONE, ONE], False, [0, 0]), 2),
        (b'{"data": [{"embedding": "!"}]}', 1),
        (b'{"data": [{"embedding": [1e400, 0, 0]}]}', 1),
        (b'{"data": [{"embedding": ["x", 0, 0]}]}', 1),
        (b'{"data": [{"embedding": [NaN, 0, 0]}]}', 1),
        (b'{"data": [{"embedding": [1, 2, 3]}], "usage": {"prompt_tokens": -1}}', 1),
    ],
)
def test_what_is_spoiled_is_refused(answer: bytes, inputs: int) -> None:
    with pytest.raises(Garbled):
        vectors.read(answer, inputs, SIZE)
