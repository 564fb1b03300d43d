"""Who may change prices: operators, as the control log made them. Pure.

In a house without operators a card is published in one step, by anybody who
reaches the service. From the first operator on it takes two of them, and that
rule is kept by every reader of the log, not by the service alone.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tollbook.pricing.v1 import card_records_pb2 as records

ADMIN: Final = int(records.ROLE_ADMIN)
AUTHOR: Final = int(records.ROLE_AUTHOR)
APPROVER: Final = int(records.ROLE_APPROVER)
MAX_OPERATORS: Final = 10_000

_OPERATOR_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ROLES: Final = frozenset((ADMIN, AUTHOR, APPROVER))


class Operator(NamedTuple):
    """An operator; `secret_digest` is SHA-256 of the secret."""

    position: int
    operator_id: str
    roles: frozenset[int]
    secret_digest: bytes
    revoked_position: int | None = None
    """Position of its revocation; None while it is good."""


def operator_problem(made: records.OperatorCreated) -> str | None:
    """What is wrong with an operator to be made, or None."""
    if not _OPERATOR_ID.fullmatch(made.operator_id):
        return "operator_id is 1-64 of a-z 0-9 . _ - and begins with a letter or digit"
    if not made.roles or not _ROLES.issuperset(made.roles):
        return "roles are one or more of admin, author, approver"
    if len(made.secret_digest) != 32:
        return "secret_digest is the SHA-256 of the secret, 32 bytes"
    return None


class Operators:
    """All operators at a size of the control log."""

    def __init__(self) -> None:
        self.by_id: dict[str, Operator] = {}
        self._by_secret: dict[bytes, str] = {}

    def __bool__(self) -> bool:
        """Whether the house has ever had an operator."""
        return bool(self.by_id)

    def create(self, position: int, made: records.OperatorCreated) -> str | None:
        """Apply a record; give why it is refused, or None."""
        if problem := operator_problem(made):
            return problem
        if not self.by_id and ADMIN not in made.roles:
            return "the first operator is an admin, or nobody could ever make another"
        if made.operator_id in self.by_id or made.secret_digest in self._by_secret:
            return f"operator {made.operator_id!r} or the secret was in use before"
        if len(self.by_id) >= MAX_OPERATORS:
            return f"there are {MAX_OPERATORS} operators already"
        self.by_id[made.operator_id] = Operator(
            position, made.operator_id, frozenset(made.roles), made.secret_digest
        )
        self._by_secret[made.secret_digest] = made.operator_id
        return None

    def revoke(self, position: int, made: records.OperatorRevoked) -> str | None:
        """Apply a record; give why it is refused, or None."""
        known = self.by_id.get(made.operator_id)
        if known is None or known.revoked_position is not None:
            return f"there is no operator {made.operator_id[:70]!r} to revoke"
        admins = [
            one
            for one in self.by_id.values()
            if ADMIN in one.roles and one.revoked_position is None
        ]
        if admins == [known]:
            return f"{made.operator_id!r} is the last admin; make another first"
        self.by_id[made.operator_id] = known._replace(revoked_position=position)
        return None

    def of_secret(self, secret_digest: bytes) -> Operator | None:
        """The operator that a secret belongs to, or None when unknown or revoked."""
        known = self.by_id.get(self._by_secret.get(secret_digest, ""))
        return None if known is None or known.revoked_position is not None else known

    def may(self, operator_id: str, role: int) -> bool:
        """Whether an operator has a role now."""
        known = self.by_id.get(operator_id)
        return known is not None and known.revoked_position is None and role in known.roles
