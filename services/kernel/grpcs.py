"""The gRPC plumbing that every service shares: server, channel, errors, health.

Owns: turning TollbookError into google.rpc.Status, having requests checked
against the rules beside their fields (kernel/rules.py), tracing, health,
reflection, graceful drain. Knows nothing of any service.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Iterable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry import trace

from kernel import errors, rules, telemetry
from kernel.unread import refuse_unread

log = structlog.get_logger()

DOMAIN: Final = "tollbook"
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
DRAIN_MS: Final = 10_000
# A tollbook.inference.v1.UsageSummary in a failed call's trailing metadata.
USAGE_TRAILER: Final = "tollbook-usage-bin"

# A status travels in trailing metadata, of which gRPC's default limit is 8 KiB;
# beyond it the caller would get a status of gRPC's own and never ours. Text
# counts up to four times: percent-encoded in grpc-message, and in the details.
_MAX_TEXT_BYTES: Final = 1_000
_MAX_DETAILS_BYTES: Final = 2_400
_MAX_DESCRIPTION_BYTES: Final = 300

# Of what is left until a caller's deadline, the part kept for the answer's way to the caller: a
# busy machine needs more than an idle one, a caller in a hurry can spare less than a patient one.
_ANSWER_SHARE: Final = 0.2
_ANSWER_MOST_S: Final = 1.0

# Keepalive finds a peer whose host went away without a word; the limits keep a
# server from answering pings with GOAWAY.
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
_SERVER_OPTIONS: Final = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)
_CLIENT_OPTIONS: Final = (
    *_OPTIONS,
    # A restarted server is found again within a second, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Not a pause, for all its name, but the time an attempt has: a busy server's first frame may
    # take a while, and one that is not there refuses at once.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

_CODES: Final[dict[type[errors.TollbookError], int]] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.OutOfRange: code_pb2.OUT_OF_RANGE,
    errors.QuotaExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unimplemented: code_pb2.UNIMPLEMENTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlinePassed: code_pb2.DEADLINE_EXCEEDED,
    errors.Internal: code_pb2.INTERNAL,
}

_RULES: Final = rules.Validator()

M = TypeVar("M", bound=Message)


def time_to_work_s(remaining_s: float | None, most_s: float) -> float:
    """For how long a server may work or wait for a caller so that its answer still arrives.

    An answer that says what was not reached beats a call that gRPC cut off at
    its deadline. `remaining_s` is ServicerContext.time_remaining(): None, or
    very long, for a caller without a deadline.
    """
    if remaining_s is None:
        return most_s
    kept_s = min(_ANSWER_MOST_S, remaining_s * _ANSWER_SHARE)
    return min(most_s, max(0.0, remaining_s - kept_s))


def _short(text: str, limit_bytes: int = _MAX_DESCRIPTION_BYTES) -> str:
    """Cut a text to a number of UTF-8 bytes, and show that it was cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: limit_bytes - 3].decode("utf-8", "ignore") + "..."


def _code_of(error: errors.TollbookError) -> int:
    """Code of the error's class, or of the nearest one above it in the tree."""
    code: int = next(
        (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), code_pb2.UNKNOWN
    )
    return code


def _bad_request(violations: Sequence[errors.FieldViolation]) -> Any:
    """The violations that fit, the first ones first, and how many more there are."""
    bad: Any = error_details_pb2.BadRequest()
    for told, broken in enumerate(violations):
        if bad.ByteSize() > _MAX_DETAILS_BYTES - 2 * _MAX_DESCRIPTION_BYTES:
            bad.field_violations.add(
                field=_short(broken.field),
                description=f"and at least {len(violations) - told} more",
            )
            break
        bad.field_violations.add(field=_short(broken.field), description=_short(broken.description))
    return bad


def _details_of(error: errors.TollbookError) -> list[Message]:
    details: list[Message] = []
    if error.reason:
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
        for name, value in error.metadata.items():
            info.metadata[name] = _short(value)
        details.append(info)
    match error:
        case errors.InvalidArgument() if error.violations:
            details.append(_bad_request(error.violations))
        case errors.QuotaExceeded():
            quota = error_details_pb2.QuotaFailure()
            for limit in error.violations:
                quota.violations.add(
                    subject=_short(limit.subject), description=_short(limit.description)
                )
            details.append(quota)
        case errors.Unavailable():
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(error.retry_after_ms)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        case _:
            pass
    return details


def status_of(error: errors.TollbookError) -> status_pb2.Status:
    """Give the google.rpc.Status of an error, with the details that fit it."""
    status = status_pb2.Status(code=_code_of(error), message=_short(error.message, _MAX_TEXT_BYTES))
    for detail in _details_of(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


Trailing = Sequence[tuple[str, str | bytes]]


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: errors.TollbookError,
    trailing: Trailing = (),
) -> NoReturn:
    """End the call with the error; `trailing` metadata goes with it."""
    rich = rpc_status.to_status(status_of(error))
    own = tuple(rich.trailing_metadata or ())
    await context.abort(rich.code, rich.details or "", (*own, *trailing))
    raise AssertionError("abort returns never")


def check(message: Message) -> None:
    """Check a message against the rules beside its fields. Errors: InvalidArgument."""
    violations = tuple(_RULES.violations(message))
    if not violations:
        return
    first = violations[0]
    name = message.DESCRIPTOR.name
    raise errors.InvalidArgument(
        f"{name}.{first.field}: {first.description}"
        if first.field
        else f"{name}: {first.description}",
        reason="INVALID_FIELD",
        violations=violations,
    )


def unforeseen(method: str, error: Exception) -> errors.TollbookError:
    """Tell what no method foresaw: a part that is away, or else a defect.

    A defect is logged whole; the caller learns that there is one, never our insides.
    """
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
        log.warning("a service that this one needs is away", method=method, exc_info=error)
        return errors.Unavailable(
            "a service that this one needs is away; try again", reason="DEPENDENCY_AWAY"
        )
    log.error("a method failed unexpectedly", method=method, exc_info=error)
    return errors.Internal(
        "an unexpected failure; it is in the service's log, please report it", reason="DEFECT"
    )


class Unreadable:
    """Stands for a request whose bytes are not its message, on their way to the answer."""

    def __init__(self, error: DecodeError) -> None:
        self.error = error


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Have bytes that cannot be read come in all the same: gRPC itself would tell the caller
    that the service failed.
    """

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Unreadable(error)

    return read


def readable(request: Message | Unreadable) -> None:
    """Refuse what cannot be read. Errors: InvalidArgument."""
    if isinstance(request, Unreadable):
        raise errors.InvalidArgument(
            f"the request cannot be read: {request.error}", reason="MALFORMED_REQUEST"
        )


def _accept(request: Message | Unreadable, newer: bool) -> None:
    """Refuse what cannot be read or breaks a rule, and fields of a later contract unless `newer`
    callers may come. Errors: InvalidArgument.
    """
    readable(request)
    message = cast(Message, request)
    if not newer:
        refuse_unread(message)
    check(message)


@asynccontextmanager
async def _told(method: str, context: Any) -> AsyncIterator[None]:
    """Have the caller told what goes wrong within, by a status of ours."""
    try:
        yield
    except errors.TollbookError as error:
        await abort(context, error)
    except grpc.aio.BaseError:
        raise
    except Exception as error:  # what no method foresaw must not leak
        await abort(context, unforeseen(method, error))


class _Door(grpc.aio.ServerInterceptor):
    """Reads and checks each request, opens its span, and turns errors into statuses.

    One place for all of it, so that no method of any service goes without.
    """

    def __init__(self, service: str, among: Container[str]) -> None:
        self._tracer = telemetry.tracer(service)
        self._among = among

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        method = details.method
        if handler is None or not method.startswith("/tollbook."):
            return handler
        read = _reading(cast(Any, handler.request_deserializer))
        carrier = {
            str(key): str(value)
            for key, value in details.invocation_metadata
            if isinstance(value, str)
        }
        parent = telemetry.context_from(carrier)
        tracer = self._tracer
        newer = method.split("/")[1] in self._among
        if handler.request_streaming:
            if not handler.response_streaming:
                raise AssertionError(f"{method}: no method here answers a stream by one message")
            inner_talk: Any = handler.stream_stream

            # The method reads and writes by the context, in this task; it refuses by
            # `readable` and `check`, since one message may be of many asks.
            async def talk(requests: object, context: Any) -> None:
                with tracer.start_as_current_span(
                    method, context=parent, kind=trace.SpanKind.SERVER
                ):
                    async with _told(method, context):
                        await inner_talk(requests, context)

            return grpc.stream_stream_rpc_method_handler(
                cast(Any, talk), read, handler.response_serializer
            )
        if handler.response_streaming:
            inner_stream: Any = handler.unary_stream

            # Writes to the context instead of yielding: a caller that leaves then cancels
            # this very task, and span and method are closed in it at once. A generator would
            # be left to the garbage collector, which closes it in a foreign context.
            async def stream(request: Message, context: Any) -> None:
                with tracer.start_as_current_span(
                    method, context=parent, kind=trace.SpanKind.SERVER
                ):
                    async with _told(method, context):
                        _accept(request, newer)
                        responses: AsyncGenerator[Message, None] = inner_stream(request, context)
                        async with aclosing(responses):
                            async for response in responses:
                                await context.write(response)

            return grpc.unary_stream_rpc_method_handler(
                cast(Any, stream), read, handler.response_serializer
            )
        inner: Any = handler.unary_unary

        async def unary(request: Message, context: Any) -> Message:
            with tracer.start_as_current_span(method, context=parent, kind=trace.SpanKind.SERVER):
                async with _told(method, context):
                    _accept(request, newer)
                    response: Message = await inner(request, context)
                    return response

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, unary), read, handler.response_serializer
        )


class Server:
    """A gRPC server with health and reflection; NOT_SERVING until `set_ready`.

    `among`: full names of services that other services call, which are rolled one after another
    and so may send what this release does not know yet. No other takes fields that it would not
    read, whatever the method.
    """

    def __init__(
        self,
        service: str,
        address: str,
        service_names: Iterable[str] = (),
        among: Container[str] = (),
    ) -> None:
        self._address = address
        self._names = tuple(service_names)
        self.grpc = grpc.aio.server(interceptors=(_Door(service, among),), options=_SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc
        )

    async def start(self) -> None:
        """Bind and listen. Errors: Unavailable when the address cannot be bound."""
        await self.set_ready(False)
        try:
            port = self.grpc.add_insecure_port(self._address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise errors.Unavailable(
                f"cannot listen on {self._address}: is the port in use?", reason="ADDRESS_IN_USE"
            )
        await self.grpc.start()
        log.info("listening", address=self._address)

    async def set_ready(self, ready: bool) -> None:
        """Say through the health service whether callers may come."""
        for name in ("", *self._names):
            await self.set_health(name, ready)

    async def set_health(self, name: str, good: bool) -> None:
        """Say how something stands that has a name of its own in the health service and that
        callers need not wait for.
        """
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if good
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await self._health.set(name, status)

    async def stop(self, drain_ms: int = DRAIN_MS) -> None:
        """Refuse new calls, let those under way end, cut them off after `drain_ms`."""
        await self.set_ready(False)
        await self.grpc.stop(drain_ms / 1000)


def stop_event() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call it inside the running loop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


def channel(address: str) -> grpc.aio.Channel:
    """An insecure channel with the project's limits and quick reconnects."""
    return grpc.aio.insecure_channel(address, options=_CLIENT_OPTIONS)


def blocking_channel(address: str) -> grpc.Channel:
    """As `channel`, for callers without an event loop."""
    return grpc.insecure_channel(address, options=_CLIENT_OPTIONS)


def details_of(error: grpc.aio.AioRpcError | grpc.RpcError, kind: type[M]) -> M | None:
    """The error's first google.rpc detail of a kind, or None."""
    status = rpc_status.from_call(cast(Any, error))
    for packed in status.details if status is not None else ():
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
