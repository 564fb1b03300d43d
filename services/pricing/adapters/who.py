"""Which operator calls: by the secret in the call's metadata, never by a name in the request."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from kernel import errors
from pricing.domain.operators import Operator, Operators
from tollbook.pricing.v1.card_records_pb2 import Role

_MAX_SECRET_CHARS: Final = 1_024


def operator_with(context: Any, operators: Operators, role: int) -> Operator:
    """The operator who calls and has a role. Errors: Unauthenticated, PermissionDenied."""
    secret = _secret(context)
    if not secret:
        raise errors.Unauthenticated(
            "send metadata `authorization: Bearer SECRET` with an operator's secret"
            " (tollbook operators create; $TOLLBOOK_OPERATOR_KEY)",
            reason="NO_OPERATOR_KEY",
        )
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
    operator = operators.of_secret(digest)
    if operator is None:
        raise errors.Unauthenticated(
            "no operator has this secret, or they were revoked", reason="UNKNOWN_OPERATOR"
        )
    if role not in operator.roles:
        word = Role.Name(Role.ValueType(role)).removeprefix("ROLE_").lower()
        raise errors.PermissionDenied(
            f"operator {operator.operator_id!r} has not the role {word!r}",
            reason="ROLE_MISSING",
            metadata={"operator_id": operator.operator_id, "role": word},
        )
    return operator


def operator_if_any(context: Any, operators: Operators, role: int) -> str:
    """The id of the operator who calls; empty in a house that has none. Errors: as above."""
    return operator_with(context, operators, role).operator_id if operators else ""


def _secret(context: Any) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str):
            scheme, _, secret = value.partition(" ")
            if scheme.lower() == "bearer" and len(secret) <= _MAX_SECRET_CHARS:
                return secret.strip()
    return ""
