"""The ledger's gRPC as commands use it: where it is, and every error as one line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc.aio

from kernel import grpcs
from tollbook.cli.pricing_calls import RefusedError
from tollbook.ledger.v1 import ledger_pb2_grpc
from tollbook.stack.control import Stack

TIMEOUT_S: Final = 15.0

T = TypeVar("T")
Call = Callable[["ledger_pb2_grpc.LedgerServiceAsyncStub"], Awaitable[T]]


def address() -> str:
    """HOST:PORT of the ledger: $TOLLBOOK_LEDGER_ADDRESS, else the running local stack's.

    Errors: StackError when neither is there.
    """
    return os.environ.get("TOLLBOOK_LEDGER_ADDRESS") or Stack.at().address("ledger-server")


def ask(call: Call[T]) -> T:
    """Make a call, or several. Errors: RefusedError with the one line that the user is told."""
    return asyncio.run(_ask(address(), call))


async def _ask(where: str, call: Call[T]) -> T:
    async with grpcs.channel(where) as channel:
        try:
            return await call(ledger_pb2_grpc.LedgerServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            raise RefusedError(where, error, "ledger") from None
