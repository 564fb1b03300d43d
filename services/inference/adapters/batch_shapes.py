"""OpenAI's objects of files and batches, and the lines of a batch's results.

Format: OpenAI's HTTP API, `/v1/files`, `/v1/batches`, and the batch output file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import Field

from inference.adapters.batch_store import File
from inference.adapters.openai_shapes import Json
from inference.adapters.openai_tools import Shape
from inference.domain import batches
from inference.domain.batches import Batch, Sums

_STATES: Final = (
    batches.IN_PROGRESS,
    batches.FINALIZING,
    batches.COMPLETED,
    batches.FAILED,
    batches.EXPIRED,
    batches.CANCELLING,
    batches.CANCELLED,
)


class BatchRequest(Shape):
    """Body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


def file_of(file: File) -> Json:
    """The file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_of(batch: Batch, sums: Sums, has_answers: bool, has_failures: bool) -> Json:
    """The batch object; files of results are named once they are whole."""
    problems: list[Json] = [
        {"code": one.code, "message": one.message, "line": one.line, "param": None}
        for one in batch.problems
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batches.WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id if has_answers else None,
        "error_file_id": batch.error_file_id if has_failures else None,
        "created_at": batch.at[batches.VALIDATING],
        "expires_at": batch.expires_at,
        **{f"{state}_at": batch.at.get(state) for state in _STATES},
        "request_counts": {
            "total": batch.total,
            "completed": sums.completed,
            "failed": sums.failed,
        },
        "metadata": batch.metadata,
        "usage": {
            "input_tokens": sums.input_tokens,
            "input_tokens_details": {"cached_tokens": sums.cached_tokens},
            "output_tokens": sums.output_tokens,
            "output_tokens_details": {"reasoning_tokens": sums.reasoning_tokens},
            "total_tokens": sums.input_tokens + sums.output_tokens,
        },
    }


def result_of(request_id: str, custom_id: str, status: int, body: Json) -> Json:
    """A line of the results: what the caller would have got by itself."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": request_id, "custom_id": custom_id, "response": response, "error": None}


def untried(batch_id: str, custom_id: str, code: str, message: str) -> Json:
    """A line of the results for a request that was never run."""
    request_id = batches.request_id_of(batch_id, custom_id, 1)
    error = {"code": code, "message": message}
    return {"id": request_id, "custom_id": custom_id, "response": None, "error": error}


def page_of(items: Sequence[Json], after: str | None, limit: int) -> Json:
    """A page of a list, the newest first, of what comes after an id."""
    begin = 0
    if after is not None:
        begin = next((at + 1 for at, one in enumerate(items) if one["id"] == after), len(items))
    data: list[Any] = list(items[begin : begin + limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": begin + limit < len(items),
    }
