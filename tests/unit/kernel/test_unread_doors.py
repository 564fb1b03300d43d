"""Every method of every service: what it would not read it refuses, but among services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from tests.integration.free_port import free_port

from kernel import errors, grpcs
from ledger.entrypoints import server as ledger_server
from pricing.entrypoints import server as pricing_server
from tollbook.inference.v1 import adapters_pb2, inference_pb2
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import cards_pb2, pricing_pb2

NEWER = b"\xf2\x3f\x01x"  # field 1022, which no message of the contract has
FILES = (adapters_pb2, inference_pb2, ledger_pb2, cards_pb2, pricing_pb2)
AMONG = (*ledger_server.AMONG, *pricing_server.AMONG)


def methods() -> Iterator[MethodDescriptor]:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


UNARY = {path_of(one): one for one in methods() if not one.client_streaming}


class Reached(grpc.GenericRpcHandler):
    """Stands behind the door: whoever comes so far is told so."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = UNARY.get(details.method)
        if method is None:
            return None
        kind = message_factory.GetMessageClass(method.input_type)

        async def unary(_request: Any, _context: Any) -> Any:
            raise errors.NotFound("reached", reason="REACHED")

        async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
            nothings: tuple[Any, ...] = ()
            for nothing in nothings:
                yield nothing
            raise errors.NotFound("reached", reason="REACHED")

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, kind.FromString)
        return grpc.unary_unary_rpc_method_handler(unary, kind.FromString)


async def refusals(data: bytes) -> dict[str, str]:
    """What each method's caller is told of a request of these bytes."""
    address = f"127.0.0.1:{free_port()}"
    door = grpcs.Server("doors", address, among=AMONG)
    door.grpc.add_generic_rpc_handlers((Reached(),))
    await door.start()
    told = {}
    try:
        async with grpcs.channel(address) as channel:
            for path, method in UNARY.items():
                call: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
                answer = call(path)(data, timeout=30)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (answer.read() if method.server_streaming else answer)
                told[path] = caught.value.details() or ""
    finally:
        await door.stop(0)
    return told


async def test_no_method_but_those_among_services_passes_a_newer_field_over() -> None:
    told = await refusals(NEWER)
    assert len(told) > 40
    for path, said in told.items():
        refused = said.startswith("the request has a field 1022 that this version does not know")
        assert refused == (path.split("/")[1] not in AMONG), (path, said)


def test_among_services_are_these_alone_and_they_alone_take_streams() -> None:
    # A service of people named here would pass over what it was asked for.
    assert set(AMONG) == {"tollbook.ledger.v1.LedgerService", "tollbook.pricing.v1.PricingService"}
    streams = {one.containing_service.full_name for one in methods() if one.client_streaming}
    assert streams <= set(AMONG)
