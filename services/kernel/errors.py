"""The one tree of errors that a caller of any service can meet.

TollbookError
├── InvalidArgument      a request breaks the contract; names the field
├── Unauthenticated      no key, or an unknown one
├── PermissionDenied     a key that may not do this
├── NotFound             the thing named is not there
├── AlreadyExists        the same id stands for something else
├── FailedPrecondition   the state does not allow it; a retry does not help
├── OutOfRange           a position beyond what is there
├── QuotaExceeded        no credit, or over a limit
├── Unimplemented        what is asked for is not offered, by this model or at all
├── Unavailable          try again after `retry_after_ms`
├── DeadlinePassed       the caller's deadline was reached first
└── Internal             a defect, or a part that failed on this request

Raised anywhere, turned into a google.rpc.Status at the gRPC door
(kernel/grpcs.py) and into OpenAI's error object at the HTTP one.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule: the field's path (or `line 3, column 7`) and what to do."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One limit that was met: whose (`account:acme`) and which."""

    subject: str
    description: str


@dataclass(eq=False)
class TollbookError(Exception):
    """An error with a message for people and a stable reason for programs.

    `reason` is UPPER_SNAKE_CASE and never changes (google.rpc.ErrorInfo);
    `metadata` names what it is about.
    """

    message: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class InvalidArgument(TollbookError):
    """A request breaks the contract."""

    violations: tuple[FieldViolation, ...] = ()

    @classmethod
    def of_field(cls, field: str, problem: str, message: str = "") -> InvalidArgument:
        """Of one field; `message` where people are told more than the field's problem."""
        return cls(
            message or problem, "INVALID_FIELD", violations=(FieldViolation(field, problem),)
        )


class Unauthenticated(TollbookError):
    """No key, or an unknown one."""


class PermissionDenied(TollbookError):
    """A known caller that may not do this."""


class NotFound(TollbookError):
    """The thing named is not there."""


class AlreadyExists(TollbookError):
    """The same id stands for something else."""


class FailedPrecondition(TollbookError):
    """The state does not allow it; trying again does not help."""


class OutOfRange(TollbookError):
    """A position beyond what is there."""


@dataclass(eq=False)
class QuotaExceeded(TollbookError):
    """No credit, or over a limit."""

    violations: tuple[QuotaViolation, ...] = ()


class Unimplemented(TollbookError):
    """What is asked for is not offered."""


@dataclass(eq=False)
class Unavailable(TollbookError):
    """Not now; try again after `retry_after_ms`."""

    retry_after_ms: int = 1000


class DeadlinePassed(TollbookError):
    """The caller's deadline was reached first."""


class Internal(TollbookError):
    """A defect, or a part that failed on this request."""
