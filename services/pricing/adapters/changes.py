"""ControlService: every change of what money depends on becomes one control record.

A change is checked against the projection, appended to the control log under
a key made of its own ids, and answered once the projection has it. A repeat
of the same change is answered with the first one's position: its record is
found by the ids, so that the clock in it does not make it another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from kernel import errors
from kernel.clock import Clock
from kernel.placement import CONTROL_LOG
from pricing.adapters import queries
from pricing.adapters.answers import Reader, no_account
from pricing.adapters.control_view import ControlView
from pricing.adapters.cuts import write_cut
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.publication import publish
from pricing.adapters.recorder import Recorder, append
from pricing.domain import control, credit
from tollbook.pricing.v1 import control_pb2, pricing_pb2, pricing_pb2_grpc

_APPLIED_WAIT_S: Final = 10.0

_ACCOUNT: Final = "SELECT * FROM account WHERE account_id = $1"
_KEY: Final = "SELECT * FROM api_key WHERE key_id = $1"
_REVOKED_KEY: Final = f"{_KEY} AND revoked_position IS NOT NULL"
_KEY_OR_RIVAL: Final = (
    "SELECT * FROM api_key WHERE key_id = $1 OR secret_digest = $2 ORDER BY key_id <> $1 LIMIT 1"
)
_GRANT: Final = "SELECT * FROM credit_grant WHERE grant_id = $1"


class ControlChanges(pricing_pb2_grpc.ControlServiceServicer):
    """Answers ControlService."""

    def __init__(self, reader: Reader, ledger: Ledger, view: ControlView, clock: Clock) -> None:
        self._reader = reader
        self._ledger = ledger
        self._clock = clock
        self._recorder = Recorder(reader, ledger, view, clock)

    async def CreateAccount(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateAccountRequest, context: Any
    ) -> pricing_pb2.CreateAccountResponse:
        """Create an account, or find the same one created before."""
        made = request.account
        refuse("account", control.account_problem(made))
        row = await self._once(
            _key_of("account", made.account_id, request.request_id),
            control_pb2.ControlRecord(account_created=made),
            context,
            lambda: self._row(_ACCOUNT, made.account_id),
        )
        if (row["currency"], row["display_name"]) != (made.currency, made.display_name):
            raise errors.AlreadyExists(
                f"account {made.account_id!r} exists with currency {row['currency']} and name"
                f" {row['display_name']!r}",
                reason="ACCOUNT_EXISTS",
            )
        return pricing_pb2.CreateAccountResponse(position=row["control_position"])

    async def CreateKey(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateKeyRequest, context: Any
    ) -> pricing_pb2.CreateKeyResponse:
        """Create a key, or find the same one created before."""
        made = request.key
        refuse("key", control.key_problem(made))
        if await self._row(_ACCOUNT, made.account_id) is None:
            raise no_account(made.account_id)
        row = await self._once(
            _key_of("key", made.key_id, request.request_id),
            control_pb2.ControlRecord(key_created=made),
            context,
            lambda: self._row(_KEY_OR_RIVAL, made.key_id, made.secret_digest),
        )
        same = (row["key_id"], row["account_id"], row["project_id"], row["secret_digest"]) == (
            made.key_id,
            made.account_id,
            made.project_id,
            made.secret_digest,
        )
        if not same or row["revoked_position"] is not None:
            raise errors.AlreadyExists(
                f"key {made.key_id!r} or its secret is in use or was revoked; choose another",
                reason="KEY_EXISTS",
            )
        return pricing_pb2.CreateKeyResponse(position=row["control_position"])

    async def RevokeKey(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.RevokeKeyRequest, context: Any
    ) -> pricing_pb2.RevokeKeyResponse:
        """Revoke a key; a repeat is answered like the first."""
        if await self._row(_KEY, request.key_id) is None:
            raise errors.NotFound(f"there is no key {request.key_id!r}", reason="KEY_NOT_FOUND")
        row = await self._once(
            f"revoke:{request.key_id}",
            control_pb2.ControlRecord(key_revoked=control_pb2.KeyRevoked(key_id=request.key_id)),
            context,
            lambda: self._row(_REVOKED_KEY, request.key_id),
        )
        return pricing_pb2.RevokeKeyResponse(position=row["revoked_position"])

    async def GrantCredit(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.GrantCreditRequest, context: Any
    ) -> pricing_pb2.GrantCreditResponse:
        """Grant credit once for each grant_id."""
        made = request.grant
        refuse("grant", control.grant_problem(made))
        account = await self._row(_ACCOUNT, made.account_id)
        if account is None:
            raise no_account(made.account_id)
        if made.amount.currency != account["currency"]:
            raise errors.InvalidArgument(
                f"account {made.account_id!r} is in {account['currency']}, the grant is in"
                f" {made.amount.currency}",
                reason="CURRENCY_MISMATCH",
                violations=(
                    errors.FieldViolation("grant.amount.currency", f"use {account['currency']}"),
                ),
            )
        row = await self._once(
            f"grant:{made.grant_id}",
            control_pb2.ControlRecord(credit_granted=made),
            context,
            lambda: self._row(_GRANT, made.grant_id),
        )
        granted = credit.grant_of(row["control_position"], made)
        same = granted.account_id, granted.amount_pico, granted.priority, granted.expires_us
        found = row["account_id"], int(row["amount_pico"]), row["priority"], row["expires_us"]
        if (*found, row["project_id"]) != (*same, granted.project_id):
            raise errors.AlreadyExists(
                f"grant {made.grant_id!r} was made with another account, amount or terms;"
                " use a new grant_id",
                reason="GRANT_EXISTS",
            )
        return pricing_pb2.GrantCreditResponse(position=row["control_position"])

    async def PublishRateCard(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.PublishRateCardRequest, context: Any
    ) -> pricing_pb2.PublishRateCardResponse:
        """Publish the next version of a card; the same content as the newest is no new version."""
        return await publish(self._recorder, request, request.author or _actor(context))

    async def CreateCut(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateCutRequest, context: Any
    ) -> pricing_pb2.CreateCutResponse:
        """Write what is projected now into the cut log, with the roots it stands on."""
        await self._reader.wait_for(request.wait_for, context.time_remaining())
        position, cut = await write_cut(self._reader, self._ledger, self._clock)
        return pricing_pb2.CreateCutResponse(position=position, cut=cut)

    # Shared steps -----------------------------------------------------------

    async def _row(self, sql: str, *values: Any) -> Any:
        return await self._reader.in_snapshot(lambda db: db.fetchrow(sql, *values))

    async def _applied(self, position: int, context: Any) -> None:
        remaining_s = context.time_remaining()
        limit_s = _APPLIED_WAIT_S if remaining_s is None else min(_APPLIED_WAIT_S, remaining_s)
        await self._reader.wait_for_control(position + 1, limit_s)

    async def _once(
        self,
        key: str,
        record: control_pb2.ControlRecord,
        context: Any,
        find: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Give what stands under the change's ids, after appending the change if nothing does.

        What is found may be a rival's: the caller compares.
        """
        row = await find()
        if row is not None:
            return row
        position = await self._append(key, record, context)
        await self._applied(position, context)
        row = await find()
        if row is None:
            why = await self._reader.in_snapshot(
                lambda db: queries.ignored_why(db, CONTROL_LOG, position)
            )
            raise errors.AlreadyExists(
                f"the record was not applied: {why or 'its key stands for another change'}",
                reason="NOT_APPLIED",
                metadata={"idempotency_key": key},
            )
        return row

    async def _append(self, key: str, record: control_pb2.ControlRecord, context: Any) -> int:
        """Position of the record; of the log's last one when the key is taken already."""
        if not record.actor:
            record.actor = _actor(context)
        position = await append(self._ledger, self._clock, key, record)
        if position is not None:
            return position
        # The same or a rival change got there first: it stands before the log's end.
        return await self._ledger.size(CONTROL_LOG) - 1


def _key_of(kind: str, ident: str, request_id: str) -> str:
    """Idempotency key of a change: by the caller's request_id if there is one, else by its id."""
    return f"request:{request_id}"[:128] if request_id else f"{kind}:{ident}"


def refuse(field: str, problem: str | None) -> None:
    """Raise InvalidArgument if there is a problem with a field."""
    if problem is not None:
        raise errors.InvalidArgument.of_field(field, problem)


def _actor(context: Any) -> str:
    """Who asks: the `tollbook-actor` metadata, or the peer."""
    for name, value in context.invocation_metadata() or ():
        if name == "tollbook-actor" and isinstance(value, str) and value:
            return value[:128]
    return str(context.peer())[:128] or "unknown"
