"""`/v1/files` and `/v1/batches`: what a caller sends, asks for and calls off.

Owns the translation between the wire and the store. Nothing here generates anything: lines run
in app/batch_runner.py. Format: OpenAI's HTTP API.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from inference.adapters import batch_shapes, openai_shapes
from inference.adapters.batch_store import MAX_FILE_BYTES, BatchStore, File
from inference.adapters.http_guard import Guard, body_of, pieces_of
from inference.adapters.keys import Keys
from inference.app.batch_runner import BatchRunner
from inference.app.order import Caller
from inference.domain import batches
from inference.domain.batches import Batch
from kernel import errors
from kernel.clock import Clock
from kernel.ids import new_id

_FORM_BYTES: Final = 64 << 10
_MAX_PAGE: Final = 10_000
_MAX_NAME_CHARS: Final = 255
_METADATA_CHARS: Final = (64, 512)


class BatchRoutes:
    """The routes are `routes`."""

    def __init__(self, store: BatchStore, runner: BatchRunner, guard: Guard, clock: Clock) -> None:
        self._store = store
        self._runner = runner
        self._clock = clock
        guarded = guard.guarded
        self.routes = (
            Route("/v1/files", guarded(self._upload), methods=["POST"]),
            Route("/v1/files", guarded(self._files), methods=["GET"]),
            Route("/v1/files/{id}", guarded(self._file), methods=["GET"]),
            Route("/v1/files/{id}", guarded(self._delete), methods=["DELETE"]),
            Route("/v1/files/{id}/content", guarded(self._content), methods=["GET"]),
            Route("/v1/batches", guarded(self._create), methods=["POST"]),
            Route("/v1/batches", guarded(self._batches), methods=["GET"]),
            Route("/v1/batches/{id}", guarded(self._batch), methods=["GET"]),
            Route("/v1/batches/{id}/cancel", guarded(self._cancel), methods=["POST"]),
        )

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000

    # Files

    async def _upload(self, request: Request, caller: Caller) -> Response:
        self._store.room_for_file(caller.account_id)
        pieces = pieces_of(
            request,
            MAX_FILE_BYTES + _FORM_BYTES,
            f"a file has at most {MAX_FILE_BYTES} bytes",
        )
        parser = MultiPartParser(
            request.headers, pieces, max_files=1, max_fields=8, max_part_size=_FORM_BYTES
        )
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            raise errors.InvalidArgument(
                f"the body is no form with one file: {error}", reason="MALFORMED_REQUEST"
            ) from error
        try:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise errors.InvalidArgument.of_field("file", "file: the form has none")
            if form.get("purpose") != "batch":
                raise errors.InvalidArgument.of_field("purpose", "purpose: must be batch")
            file = File(
                id=new_id("file"),
                account_id=caller.account_id,
                filename=(upload.filename or "batch.jsonl")[:_MAX_NAME_CHARS],
                purpose="batch",
                bytes=upload.size or 0,
                created_at=self._now_s(),
            )
            await asyncio.to_thread(self._store.take_in, upload.file, file)
        finally:
            await form.close()
        return JSONResponse(batch_shapes.file_of(file))

    async def _files(self, request: Request, caller: Caller) -> Response:
        purpose = request.query_params.get("purpose")
        own = self._store.files_of(caller.account_id)
        told = [batch_shapes.file_of(one) for one in own if purpose in (None, one.purpose)]
        return _page(request, told, _MAX_PAGE)

    async def _file(self, request: Request, caller: Caller) -> Response:
        file = self._store.file(caller.account_id, request.path_params["id"])
        return JSONResponse(batch_shapes.file_of(file))

    async def _content(self, request: Request, caller: Caller) -> Response:
        file = self._store.file(caller.account_id, request.path_params["id"])
        return FileResponse(self._store.path_of(file.id), media_type="application/jsonl")

    async def _delete(self, request: Request, caller: Caller) -> Response:
        file = self._store.file(caller.account_id, request.path_params["id"])
        self._store.forget_file(file)
        await asyncio.to_thread(self._store.erase, file)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    # Batches

    async def _create(self, request: Request, caller: Caller) -> Response:
        asked = openai_shapes.parse(batch_shapes.BatchRequest, await body_of(request))
        if asked.endpoint not in batches.ENDPOINTS:
            known = ", ".join(batches.ENDPOINTS)
            raise errors.InvalidArgument.of_field("endpoint", f"endpoint: must be one of {known}")
        metadata = asked.metadata or {}
        if any(len(name) > _METADATA_CHARS[0] for name in metadata) or any(
            len(value) > _METADATA_CHARS[1] for value in metadata.values()
        ):
            raise errors.InvalidArgument.of_field(
                "metadata", "metadata: a name has at most 64 letters, a value 512"
            )
        file = self._store.file(caller.account_id, asked.input_file_id)
        if file.purpose != "batch":
            raise errors.InvalidArgument.of_field(
                "input_file_id", "input_file_id: that file's purpose must be batch"
            )
        self._store.room_for_batch(caller.account_id)
        now_s = self._now_s()
        batch = Batch(
            id=new_id("batch"),
            account_id=caller.account_id,
            key_digest=Keys.digest_of(request.headers.get("authorization")).hex(),
            endpoint=asked.endpoint,
            input_file_id=file.id,
            output_file_id=new_id("file"),
            error_file_id=new_id("file"),
            metadata=metadata,
            expires_at=now_s + batches.WINDOW_S,
            at={batches.VALIDATING: now_s},
        )
        with self._store.reading(file.id):
            await self._runner.save(batch)
        self._runner.wake(caller.account_id)
        return self._told(batch)

    async def _batches(self, request: Request, caller: Caller) -> Response:
        told = [self._runner.told(one) for one in self._store.batches_of(caller.account_id)]
        return _page(request, told, 20)

    async def _batch(self, request: Request, caller: Caller) -> Response:
        return self._told(self._store.batch(caller.account_id, request.path_params["id"]))

    async def _cancel(self, request: Request, caller: Caller) -> Response:
        batch = self._store.batch(caller.account_id, request.path_params["id"])
        if batch.status not in batches.UNDER_WAY:
            raise errors.FailedPrecondition(
                f"batch {batch.id} is {batch.status}: there is nothing to cancel",
                reason="BATCH_ENDED",
            )
        await self._runner.cancel(batch)
        return self._told(batch)

    def _told(self, batch: Batch) -> Response:
        return JSONResponse(self._runner.told(batch))


def _page(request: Request, items: list[dict[str, Any]], standard: int) -> Response:
    given = request.query_params.get("limit", str(standard))
    # The length first: a number of thousands of digits is refused by int() itself.
    is_number = given.isascii() and given.isdecimal() and len(given) <= 9
    if not is_number or not 1 <= int(given) <= _MAX_PAGE:
        raise errors.InvalidArgument.of_field("limit", f"limit: a number of 1 to {_MAX_PAGE}")
    after = request.query_params.get("after")
    return JSONResponse(batch_shapes.page_of(items, after, int(given)))
