"""InferenceService over gRPC: who calls, which request, and how it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container
from typing import Any, cast

import grpc.aio

from inference.adapters.keys import Keys
from inference.app.books import Books
from inference.app.embedding import EmbeddingReader
from inference.app.reader import Answer_co, Reader, Whole
from inference.app.requests import Requests, answer_of, embedded_of, messages_of
from inference.app.shelf import Shelf
from inference.domain.outcome import End
from inference.engine import Capabilities
from kernel import errors, grpcs
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.inference.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """The methods. A call that is cancelled leaves its request, which goes on to
    its settlement by itself.
    """

    def __init__(
        self,
        requests: Requests,
        keys: Keys,
        books: Books,
        shelf: Shelf,
        can: Capabilities,
        house: Container[str],
    ) -> None:
        self._requests = requests
        self._keys = keys
        self._books = books
        self._shelf = shelf
        self._can = can
        # Accounts whose keys may see what all engines counted, for all callers together.
        self._house = house

    async def Generate(  # noqa: N802
        self, request: inference.GenerateRequest, context: Context
    ) -> AsyncIterator[inference.GenerateResponse]:
        """Stream a generation."""
        caller = await self._keys.resolve(authorization_of(context))
        found = self._requests.find(caller, request.spec)
        if not isinstance(found, Reader):
            answer = answer_of(found)
            for message in messages_of(answer):
                yield message
            await self._end(context, answer.failure, answer.summary)
            return
        visit = _Visit(found, context)
        try:
            async for message in found.stream():
                yield message
        except errors.TollbookError as error:
            await self._end(context, error, found.summary)
        finally:
            visit.end()
        await self._end(context, None, found.summary)

    async def GenerateOnce(  # noqa: N802
        self, request: inference.GenerateOnceRequest, context: Context
    ) -> inference.GenerateOnceResponse:
        """Generate and answer once."""
        caller = await self._keys.resolve(authorization_of(context))
        found = self._requests.find(caller, request.spec)
        if not isinstance(found, Reader):
            answer = answer_of(found)
            await self._end(context, answer.failure, answer.summary)
            return inference.GenerateOnceResponse(
                request_id=answer.request_id,
                choices=answer.choices,
                usage=answer.summary,
                replayed=True,
            )
        return await self._whole(found, context)

    async def CountTokens(  # noqa: N802
        self, request: inference.CountTokensRequest, context: Context
    ) -> inference.CountTokensResponse:
        """Render, and count."""
        caller = await self._keys.resolve(authorization_of(context))
        tokens = await self._requests.count(caller, request.spec)
        return inference.CountTokensResponse(
            prompt_tokens=tokens, room_tokens=self._can.context_tokens - tokens
        )

    async def Embed(  # noqa: N802
        self, request: inference.EmbedRequest, context: Context
    ) -> inference.EmbedResponse:
        """Vectors, all at once."""
        caller = await self._keys.resolve(authorization_of(context))
        found = self._requests.embed(caller, request)
        if not isinstance(found, EmbeddingReader):
            settled, failure = embedded_of(found)
            await self._end(context, failure, settled.usage)
            return settled
        return await self._whole(found, context)

    async def ListModels(  # noqa: N802
        self, _request: inference.ListModelsRequest, context: Context
    ) -> inference.ListModelsResponse:
        """What is served."""
        caller = await self._keys.resolve(authorization_of(context))
        visible = self._shelf.visible(caller.account_id, caller.project_id)
        return inference.ListModelsResponse(
            models=[
                inference.Model(
                    name=name,
                    base_model=served.target.base_name,
                    adapter=served.target.adapter,
                    context_tokens=self._can.context_tokens,
                    provenance=served.provenance,
                    embeds=self._can.embeds,
                )
                for name, served in visible.items()
            ]
        )

    async def GetConservation(  # noqa: N802
        self, _request: inference.GetConservationRequest, context: Context
    ) -> inference.GetConservationResponse:
        """Every engine's account, to a key of the house alone: it is of all tenants together."""
        caller = await self._keys.resolve(authorization_of(context))
        if caller.account_id not in self._house:
            raise errors.PermissionDenied(
                f"a key of account {caller.account_id!r} may not see what the engines counted for"
                " everybody: ask with one of an account that the instance names in"
                " TOLLBOOK_HOUSE_ACCOUNTS",
                reason="NOT_OF_THE_HOUSE",
            )
        return await self._books.conservation()

    async def _whole(self, reader: Whole[Answer_co], context: Context) -> Answer_co:
        """The answer at once, and what it costs beside it, also when there is none."""
        visit = _Visit(reader, context)
        try:
            response = await reader.whole()
        except errors.TollbookError as error:
            await self._end(context, error, reader.summary)
            raise
        finally:
            visit.end()
        await self._end(context, None, reader.summary)
        return response

    @staticmethod
    async def _end(
        context: Context,
        error: errors.TollbookError | None,
        summary: inference.UsageSummary | None,
    ) -> None:
        """Put the usage into the trailing metadata, and abort when there is an error."""
        trailing = (
            ((grpcs.USAGE_TRAILER, summary.SerializeToString()),) if summary is not None else ()
        )
        if error is not None:
            await grpcs.abort(context, error, trailing)
        if trailing:
            context.set_trailing_metadata(trailing)


class _Visit:
    """A caller's stay at a request. Ends when the call does, whatever ends it: the
    handler's own end, or gRPC's word that the call is over while the handler
    waits for a slow reader.
    """

    def __init__(self, reader: Whole[object], context: Context) -> None:
        self._reader = reader
        # None when the caller set no deadline, whatever the stub says.
        remaining_s: float | None = context.time_remaining()
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._deadline_s = loop.time() + remaining_s if remaining_s else None
        context.add_done_callback(cast(Any, self._over))

    def _over(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The caller is gone: at its deadline, or before."""
        # gRPC's timer and this clock may differ by a few milliseconds.
        late = self._deadline_s is not None and self._loop.time() >= self._deadline_s - 0.02
        self._reader.leave(End.DEADLINE if late else End.CALLER_LEFT)


def authorization_of(context: Context) -> str | None:
    """The `authorization` metadata of a call."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return None
