"""A list's limit is a number within its bound, however it is written."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from inference.adapters import batch_routes
from kernel import errors


def asked(limit: str) -> Request:
    return Request({"type": "http", "query_string": f"limit={limit}".encode(), "headers": []})


@pytest.mark.parametrize("limit", ["0", "10001", "-1", "x", "", "00000000199999", "1" * 5_000])
def test_a_limit_beyond_the_bound_is_refused(limit: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        batch_routes._page(asked(limit), [], 20)


def test_a_limit_within_it_gives_so_many() -> None:
    items = [{"id": str(number)} for number in range(5)]
    answer = batch_routes._page(asked("3"), items, 20)
    assert [item["id"] for item in json.loads(bytes(answer.body))["data"]] == ["0", "1", "2"]
