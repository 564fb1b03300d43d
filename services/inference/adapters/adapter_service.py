"""gRPC for whoever runs the house: adapters loaded, unloaded and listed at run time."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import grpc.aio

from inference.adapters.grpc_service import authorization_of
from inference.app.adapters import Adapter, Adapters
from kernel import errors
from tollbook.inference.v1 import adapters_pb2 as messages
from tollbook.inference.v1 import adapters_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class AdapterService(adapters_pb2_grpc.AdapterServiceServicer):
    """The three methods. `secret_digest`: SHA-256 of the secret that opens them."""

    def __init__(self, adapters: Adapters, secret_digest: bytes) -> None:
        self._adapters = adapters
        self._secret_digest = secret_digest

    async def LoadAdapter(  # noqa: N802
        self, request: messages.LoadAdapterRequest, context: Context
    ) -> messages.LoadAdapterResponse:
        """Load a folder and serve it."""
        self._check(context)
        return messages.LoadAdapterResponse(
            adapter=_told(await self._adapters.load(request.folder))
        )

    async def UnloadAdapter(  # noqa: N802
        self, request: messages.UnloadAdapterRequest, context: Context
    ) -> messages.UnloadAdapterResponse:
        """Serve it no more and unload it."""
        self._check(context)
        return messages.UnloadAdapterResponse(
            adapter=_told(await self._adapters.unload(request.name))
        )

    async def ListAdapters(  # noqa: N802
        self, _request: messages.ListAdaptersRequest, context: Context
    ) -> messages.ListAdaptersResponse:
        """What is loaded."""
        self._check(context)
        return messages.ListAdaptersResponse(
            adapters=[_told(adapter) for adapter in self._adapters.loaded()]
        )

    def _check(self, context: Context) -> None:
        scheme, _, secret = (authorization_of(context) or "").partition(" ")
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._secret_digest):
            raise errors.Unauthenticated(
                "send metadata `authorization: Bearer SECRET`, the secret of who runs the house",
                reason="NOT_ADMIN",
            )


def _told(adapter: Adapter) -> messages.Adapter:
    return messages.Adapter(
        name=adapter.name,
        digest=adapter.digest,
        account_id=adapter.account_id,
        project_id=adapter.project_id,
        rank=adapter.rank,
    )
