"""Asking a service of ours whether it is ready, by the protocol it serves everybody with."""

from __future__ import annotations

from tollbook.stack.errors import StackError

_ANSWER_S = 3


async def grpc_serving(address: str) -> None:
    """Asks through grpc.health.v1; raises unless the whole server says SERVING."""
    import grpc.aio
    from grpc_health.v1 import health_pb2

    # A pool of its own for each question: else a connection refused a moment ago is remembered and
    # the answer is older than the question.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise StackError(f"its health is {name}")


async def http_ok(url: str) -> None:
    """Asks over HTTP; raises unless the answer is 200."""
    import httpx

    async with httpx.AsyncClient(timeout=_ANSWER_S, trust_env=False) as client:
        answer = await client.get(url)
    if answer.status_code != httpx.codes.OK:
        raise StackError(f"{url} answers {answer.status_code}: {answer.text.strip()[:200]}")
