"""What a server says of a deadline, on a machine that may be too busy to carry it in time.

A caller's own gRPC ends its call at the deadline, answer or none: a test that
wants the server's answer must give a longer deadline when the machine was too
slow for a short one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2

from kernel import grpcs


async def told_in_time(
    call: Callable[[float], Awaitable[Any]], first_s: float = 0.7
) -> grpc.aio.AioRpcError:
    """The server's own refusal of a call that takes a deadline, in seconds."""
    cut_off = []
    for timeout_s in (first_s, 4 * first_s, 16 * first_s, 64 * first_s):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(timeout_s)
        if grpcs.details_of(caught.value, error_details_pb2.ErrorInfo) is not None:
            return caught.value
        cut_off.append(f"after {timeout_s} s: {caught.value.details()}")
    raise AssertionError(f"the server itself says nothing: {cut_off}")
