"""Keys over a real gRPC server, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from inference.adapters import keys as keys_module
from inference.adapters.keys import FRESH_MS, STALE_MS, UNKNOWN_MS, Keys
from inference.app.order import Caller
from kernel import errors, grpcs
from tollbook.pricing.v1 import pricing_pb2 as pricing
from tollbook.pricing.v1 import pricing_pb2_grpc


class MovableClock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.ms = 1_000

    def now_us(self) -> int:
        return self.ms * 1_000

    def monotonic_ms(self) -> int:
        return self.ms


class Pricing(pricing_pb2_grpc.PricingServiceServicer):
    """Knows the digests in `known`; counts the questions; `down` makes it refuse."""

    def __init__(self) -> None:
        self.known: dict[bytes, pricing.ResolveKeyResponse] = {}
        self.questions = 0
        self.down = False
        self.digests: list[bytes] = []

    async def ResolveKey(  # noqa: N802
        self, request: pricing.ResolveKeyRequest, context: Any
    ) -> pricing.ResolveKeyResponse:
        self.questions += 1
        self.digests.append(request.secret_digest)
        await asyncio.sleep(0)
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        if request.secret_digest not in self.known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such key")
        return self.known[request.secret_digest]

    def grant(self, secret: str, account: str) -> None:
        self.known[hashlib.sha256(secret.encode()).digest()] = pricing.ResolveKeyResponse(
            key_id="k", account_id=account, project_id="p", control_size=1
        )


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Keys, Pricing, MovableClock]]:
    service = Pricing()  # type: ignore[abstract]
    server = grpc.aio.server()
    pricing_pb2_grpc.add_PricingServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    clock = MovableClock()
    async with grpcs.channel(f"127.0.0.1:{port}") as channel:
        yield Keys(channel, clock), service, clock
    await server.stop(None)


Pair = tuple[Keys, Pricing, MovableClock]


async def test_a_key_is_asked_for_once_while_fresh_and_only_as_a_digest(pair: Pair) -> None:
    keys, service, clock = pair
    service.grant("s3cret", "acct")
    for _ in range(5):
        assert await keys.resolve("Bearer s3cret") == Caller("acct", "p", "k")
    assert service.questions == 1
    assert service.digests == [hashlib.sha256(b"s3cret").digest()]
    clock.ms += FRESH_MS
    await keys.resolve("bearer s3cret")
    assert service.questions == 2


async def test_many_at_once_are_one_question(pair: Pair) -> None:
    keys, service, _ = pair
    service.grant("s", "acct")
    await asyncio.gather(*(keys.resolve("Bearer s") for _ in range(50)))
    assert service.questions == 1


async def test_a_caller_that_leaves_takes_nothing_from_the_others(pair: Pair) -> None:
    keys, service, _ = pair
    service.grant("s", "acct")
    leaving = asyncio.create_task(keys.resolve("Bearer s"))
    staying = asyncio.create_task(keys.resolve("Bearer s"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).account_id == "acct"


async def test_a_revoked_key_is_good_no_longer_than_fresh(pair: Pair) -> None:
    keys, service, clock = pair
    service.grant("s", "acct")
    await keys.resolve("Bearer s")
    service.known.clear()
    clock.ms += FRESH_MS
    with pytest.raises(errors.Unauthenticated):
        await keys.resolve("Bearer s")
    # And not again while pricing is away.
    service.down = True
    clock.ms += UNKNOWN_MS
    with pytest.raises(errors.Unavailable):
        await keys.resolve("Bearer s")


async def test_without_pricing_a_known_key_goes_on_until_it_is_stale(pair: Pair) -> None:
    keys, service, clock = pair
    service.grant("s", "acct")
    await keys.resolve("Bearer s")
    service.down = True
    clock.ms += STALE_MS - 1
    assert (await keys.resolve("Bearer s")).account_id == "acct"
    clock.ms += 1
    with pytest.raises(errors.Unavailable) as caught:
        await keys.resolve("Bearer s")
    assert caught.value.retry_after_ms > 0
    with pytest.raises(errors.Unavailable):
        await keys.resolve("Bearer other")


async def test_an_unknown_key_does_not_hammer_pricing(pair: Pair) -> None:
    keys, service, clock = pair
    for _ in range(5):
        with pytest.raises(errors.Unauthenticated):
            await keys.resolve("Bearer guess")
    assert service.questions == 1
    clock.ms += UNKNOWN_MS
    service.grant("guess", "acct")
    assert (await keys.resolve("Bearer guess")).account_id == "acct"


async def test_what_is_remembered_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, _, _ = pair
    monkeypatch.setattr(keys_module, "MAX_KEYS", 3)
    for number in range(10):
        with pytest.raises(errors.Unauthenticated):
            await keys.resolve(f"Bearer {number}")
    assert len(keys._known) == 3


@pytest.mark.parametrize(
    "bad", [None, "", "Bearer", "Bearer  ", "Basic x", "x" * 9, "Bearer " + "x" * 2_000]
)
async def test_what_is_no_bearer_secret_is_refused_without_a_question(
    pair: Pair, bad: str | None
) -> None:
    keys, service, _ = pair
    with pytest.raises(errors.Unauthenticated):
        await keys.resolve(bad)
    assert service.questions == 0
