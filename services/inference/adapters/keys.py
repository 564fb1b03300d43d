"""Who a secret belongs to: pricing's ResolveKey, remembered for a short while.

A key is fresh for FRESH_MS: after a revocation it is good for no longer than
that. While pricing does not answer, a key that was good goes on until STALE_MS;
others are refused as unavailable, never as unknown. A secret is kept and sent
as its digest alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio

from inference.app.order import Caller
from kernel import errors
from kernel.clock import Clock
from tollbook.pricing.v1 import pricing_pb2 as pricing
from tollbook.pricing.v1 import pricing_pb2_grpc

FRESH_MS: Final = 5_000
STALE_MS: Final = 60_000
UNKNOWN_MS: Final = 1_000
CALL_TIMEOUT_MS: Final = 2_000
MAX_KEYS: Final = 10_000
MAX_SECRET_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class _Known:
    """What pricing said: the caller, or None for no such key, and when."""

    caller: Caller | None
    at_ms: int


class Keys:
    """Resolves bearer secrets."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._pricing = pricing_pb2_grpc.PricingServiceStub(channel)
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def resolve(self, authorization: str | None) -> Caller:
        """The caller of an `authorization` value. Errors: Unauthenticated, Unavailable."""
        return await self.resolve_digest(self.digest_of(authorization))

    async def resolve_digest(self, digest: bytes) -> Caller:
        """The caller of a secret's digest, for who works on after the call that showed it.

        Errors: Unauthenticated, Unavailable.
        """
        caller = await self._caller_of(digest)
        if caller is None:
            raise errors.Unauthenticated("no such key, or it is revoked", reason="UNKNOWN_KEY")
        return caller

    @staticmethod
    def digest_of(authorization: str | None) -> bytes:
        """SHA-256 of the secret in an `authorization` value. Errors: Unauthenticated."""
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret or len(secret) > MAX_SECRET_BYTES:
            raise errors.Unauthenticated(
                "send metadata `authorization: Bearer SECRET`", reason="NO_KEY"
            )
        return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()

    async def _caller_of(self, digest: bytes) -> Caller | None:
        known = self._known.get(digest)
        age_ms = self._clock.monotonic_ms() - known.at_ms if known is not None else 0
        if known is not None and age_ms < (FRESH_MS if known.caller else UNKNOWN_MS):
            return known.caller
        try:
            return await self._ask_once(digest)
        except grpc.aio.AioRpcError as error:
            if known is not None and known.caller is not None and age_ms < STALE_MS:
                return known.caller
            raise errors.Unavailable(
                "keys cannot be checked now: pricing does not answer",
                reason="PRICING_UNAVAILABLE",
                metadata={"status": error.code().name},
                retry_after_ms=1_000,
            ) from error

    async def _ask_once(self, digest: bytes) -> Caller | None:
        """Ask pricing; many who ask for one key at once are one question."""
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(digest), name="resolve key")
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # Shielded: a caller that leaves must not take the answer from the others.
        return await asyncio.shield(task)

    async def _ask(self, digest: bytes) -> Caller | None:
        try:
            answer = await self._pricing.ResolveKey(
                pricing.ResolveKeyRequest(secret_digest=digest), timeout=CALL_TIMEOUT_MS / 1000
            )
            caller = Caller(answer.account_id, answer.project_id, answer.key_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            caller = None
        self._known[digest] = _Known(caller, self._clock.monotonic_ms())
        self._known.move_to_end(digest)
        while len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)
        return caller
