"""Pricing's gRPC as commands use it: where it is, one call, and every error as one line.

All calls may be repeated: what they change is found again by its ids. So a
service that is away is asked again for a while, and nothing happens twice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from kernel import grpcs
from kernel.errors import TollbookError
from tollbook.pricing.v1 import cards_pb2_grpc, pricing_pb2_grpc
from tollbook.stack.control import Stack

WAIT_S: Final = 15.0
REHEARSAL_S: Final = 600.0
"""For what rates the log's usage again."""
_RETRY_S: Final = 0.25

T = TypeVar("T")


class Services(NamedTuple):
    """Clients of pricing's services."""

    pricing: pricing_pb2_grpc.PricingServiceAsyncStub
    control: pricing_pb2_grpc.ControlServiceAsyncStub
    cards: cards_pb2_grpc.RateCardServiceAsyncStub
    operators: cards_pb2_grpc.OperatorServiceAsyncStub


Call = Callable[[Services, float], Awaitable[T]]


def address() -> str:
    """HOST:PORT of pricing: $TOLLBOOK_PRICING_ADDRESS, else the running local stack's.

    Errors: StackError when neither is there.
    """
    return os.environ.get("TOLLBOOK_PRICING_ADDRESS") or Stack.at().address("pricing-server")


def operator_key() -> tuple[tuple[str, str], ...]:
    """Metadata of a call with the secret in $TOLLBOOK_OPERATOR_KEY; empty without one."""
    secret = os.environ.get("TOLLBOOK_OPERATOR_KEY", "")
    return (("authorization", f"Bearer {secret}"),) if secret else ()


def ask(call: Call[T], wait_s: float = WAIT_S) -> T:
    """Make a call, given the clients and a timeout in seconds.

    Errors: TollbookError with the one line that the user is told; `violations`
    of it has what google.rpc.BadRequest named.
    """
    return asyncio.run(_ask(address(), call, wait_s))


async def _ask(where: str, call: Call[T], wait_s: float) -> T:
    end = time.monotonic() + wait_s
    async with grpcs.channel(where) as channel:
        services = Services(
            pricing_pb2_grpc.PricingServiceStub(channel),
            pricing_pb2_grpc.ControlServiceStub(channel),
            cards_pb2_grpc.RateCardServiceStub(channel),
            cards_pb2_grpc.OperatorServiceStub(channel),
        )
        while True:
            try:
                return await call(services, max(0.1, end - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise RefusedError(where, error) from None
            await asyncio.sleep(_RETRY_S)


class RefusedError(TollbookError):
    """A call that failed, in words for its user."""

    def __init__(self, where: str, error: grpc.aio.AioRpcError, service: str = "pricing") -> None:
        info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
        bad = grpcs.details_of(error, error_details_pb2.BadRequest)
        self.violations = [
            (broken.field, broken.description) for broken in (bad.field_violations if bad else ())
        ]
        said = error.details() or error.code().name
        more = [f"{field}: {what}" for field, what in self.violations[1:]]
        words = " ".join("; ".join([said, *more]).split())
        if info is None:
            # Not one of our services' own words: say at least who was asked.
            super().__init__(f"{service} at {where}: {words}")
        else:
            super().__init__(f"{words} [{info.reason}]", info.reason)


def as_json(message: Message) -> str:
    """A message for programs, fields with nothing in them included."""
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
