"""How a call fails, and what its caller can do.

CallError
├── InvalidRequest     a field, the prompt or the sampling is refused; `failure.violations`
├── Unauthenticated    no key, or an unknown one
├── UnknownModel       no such model
├── RequestIdReused    the id stands for another body
├── OverLimit          no credit, or over a limit; `failure.violations`
├── Unavailable        not now, though it was tried again as often as allowed
├── DeadlinePassed     `timeout_s` passed first
├── Cancelled          the caller ended it, or the service did and kept doing it
├── ServiceFailed      the engine failed on this request, or a defect
└── AnswerChanged      the answer to a repeat is another than what was read before the cut

Owns the reading of a gRPC error: google.rpc.Status in its details, and the usage in its trailing
metadata. The meaning of each reason is docs/callers.md's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2

from kernel import grpcs
from tollbook.client.shapes import Usage
from tollbook.client.wire import usage_of
from tollbook.inference.v1 import inference_pb2 as inference

M = TypeVar("M", bound=Message)

_CUT_OFF: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True)
class Violation:
    """What was broken (a field's path, or whose limit), and how."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Failure:
    """How one try ended. `usage`: the request is settled, and this is charged."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    retry_after_ms: int | None = None
    usage: Usage | None = None
    violations: tuple[Violation, ...] = ()

    @property
    def may_be_sent_again(self) -> bool:
        """True when the same request under the same id can still be answered.

        CANCELLED that the caller did not ask for is a server's that stopped under the call.
        """
        return self.code in _CUT_OFF and self.usage is None

    @property
    def advice(self) -> str:
        """What the caller can do, in a sentence."""
        if self.usage is not None and self.reason not in _OWN_ADVICE_WHEN_SETTLED:
            return "It is settled and its usage is charged; to run it again take a new request id."
        return _ADVICE_BY_REASON.get(self.reason) or _ADVICE_BY_CODE.get(self.code, _REPORT)


class CallError(Exception):
    """A call that failed: `failure` says how, `request_id` which, `tries` how often it was sent."""

    def __init__(self, failure: Failure, request_id: str, tries: int) -> None:
        super().__init__(failure, request_id, tries)
        self.failure = failure
        self.request_id = request_id
        self.tries = tries

    @property
    def reason(self) -> str:
        """The stable reason, or empty where gRPC itself ended the call."""
        return self.failure.reason

    @property
    def usage(self) -> Usage | None:
        """What is charged; None when nothing ran, or nobody could tell."""
        return self.failure.usage

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        return self.failure.advice

    def __str__(self) -> str:
        failure = self.failure
        what = f"{failure.code.name} {failure.reason}".rstrip()
        where = f" (request {self.request_id}, tries: {self.tries})" if self.request_id else ""
        return f"{what}: {failure.message}. {failure.advice}{where}"


class InvalidRequest(CallError):
    """The request is refused as it stands."""


class Unauthenticated(CallError):
    """No key, or an unknown one."""


class UnknownModel(CallError):
    """No such model."""


class RequestIdReused(CallError):
    """The id stands for another body."""


class OverLimit(CallError):
    """No credit, or over a limit; nothing ran."""


class Unavailable(CallError):
    """Not now."""


class DeadlinePassed(CallError):
    """The time that the caller gave passed first."""


class Cancelled(CallError):
    """The call was cancelled."""


class ServiceFailed(CallError):
    """The engine failed on this request, or the service has a defect."""


class AnswerChanged(CallError):
    """The stream broke, and the answer to the repeat is not the one that was begun."""


_KINDS: Final[dict[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.NOT_FOUND: UnknownModel,
    grpc.StatusCode.ALREADY_EXISTS: RequestIdReused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverLimit,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassed,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.ABORTED: AnswerChanged,
}

_REPORT: Final = "Report it to the service's operators with the request id."
_SAME_ID: Final = "Send it again later, under the same request id."
_ASK_AGAIN: Final = "What was generated is charged; the same request id tells how it ended."
_CHANGE: Final = "Change the request; it would be refused again as it is."
_ADVICE_BY_REASON: Final = {
    "NO_CREDIT": "Ask with fewer max_tokens, or when the account has credit.",
    "SPEND_LIMIT": "Ask with fewer max_tokens, or when the limit that is named allows it.",
    "SLOW_READER": "Read faster; the same request id gives what was read.",
    "ENDING": "Its callers had left: the same id gives what they were given, a new one runs.",
    "CUT_STREAM": _SAME_ID,
}
_OWN_ADVICE_WHEN_SETTLED: Final = frozenset({"SLOW_READER", "ENDING"})
_ADVICE_BY_CODE: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: _CHANGE,
    grpc.StatusCode.UNAUTHENTICATED: "Give the secret of a key that is not revoked.",
    grpc.StatusCode.NOT_FOUND: "Take a name that models() lists.",
    grpc.StatusCode.ALREADY_EXISTS: "Take a new request id for another body.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Send less, or less often.",
    grpc.StatusCode.UNAVAILABLE: _SAME_ID,
    grpc.StatusCode.DEADLINE_EXCEEDED: _ASK_AGAIN,
    grpc.StatusCode.CANCELLED: _ASK_AGAIN,
    grpc.StatusCode.ABORTED: "Drop what was read, and take the whole answer under the same id.",
}

# The stream ended without its usage: what came is not the whole answer.
CUT: Final = Failure(
    grpc.StatusCode.UNAVAILABLE, "the stream ended before its usage", reason="CUT_STREAM"
)
# The caller's own end of a call, or of the client that it was made with.
CANCELLED: Final = Failure(
    grpc.StatusCode.CANCELLED, "the call was cancelled here, or its client closed"
)
CHANGED: Final = Failure(
    grpc.StatusCode.ABORTED,
    "the stream broke, and the answer to the repeat is not the one that was begun",
    reason="ANSWER_CHANGED",
)


def error_of(failure: Failure, request_id: str, tries: int) -> CallError:
    """The error to raise for a failure."""
    return _KINDS.get(failure.code, ServiceFailed)(failure, request_id, tries)


def failure_of(error: grpc.RpcError) -> Failure:
    """Read a gRPC error, the blocking API's or the asynchronous one's."""
    info = _detail(error, error_details_pb2.ErrorInfo)
    retry = _detail(error, error_details_pb2.RetryInfo)
    return Failure(
        code=error.code(),
        message=error.details() or "no more is known",
        reason=info.reason if info is not None else "",
        retry_after_ms=retry.retry_delay.ToMilliseconds() if retry is not None else None,
        usage=_usage_in(error),
        violations=_violations_in(error),
    )


def _detail(error: grpc.RpcError, kind: type[M]) -> M | None:
    try:
        return grpcs.details_of(error, kind)
    except (ValueError, DecodeError):
        # A status that contradicts the call's own, or none: something between changed it.
        return None


def _usage_in(error: grpc.RpcError) -> Usage | None:
    trailing: Any = error.trailing_metadata()
    for name, value in trailing or ():
        if name == grpcs.USAGE_TRAILER:
            try:
                return usage_of(inference.UsageSummary.FromString(value))
            except DecodeError:
                # Unreadable is as if it were not there: a repeat under the same id is safe.
                return None
    return None


def _violations_in(error: grpc.RpcError) -> tuple[Violation, ...]:
    bad = _detail(error, error_details_pb2.BadRequest)
    quota = _detail(error, error_details_pb2.QuotaFailure)
    fields = bad.field_violations if bad is not None else ()
    limits = quota.violations if quota is not None else ()
    return (
        *(Violation(broken.field, broken.description) for broken in fields),
        *(Violation(limit.subject, limit.description) for limit in limits),
    )
