"""ControlService: every change of what money depends on becomes one control record.

A change is checked against the projection, appended to the control log under
a key made of its own ids, and answered once the projection has it. A repeat
of the same change is answered with the first one's position: its record is
found by the ids, so that the clock in it does not make it another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio

from kernel import errors, ids, merkle
from kernel.clock import Clock, timestamp_of
from kernel.placement import CONTROL_LOG, CUT_LOG
from pricing.adapters import queries
from pricing.adapters.answers import Reader, no_account
from pricing.adapters.control_view import ControlView
from pricing.adapters.ledger_client import Ledger
from pricing.domain.card import content_hash, parse_card
from pricing.domain.document import DocumentError
from pricing.domain.rating import RATING_VERSION
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2, pricing_pb2, pricing_pb2_grpc

_APPLIED_WAIT_S: Final = 10.0
_LEDGER_TIMEOUT_S: Final = 10.0


class ControlChanges(pricing_pb2_grpc.ControlServiceServicer):
    """Answers ControlService."""

    def __init__(self, reader: Reader, ledger: Ledger, view: ControlView, clock: Clock) -> None:
        self._reader = reader
        self._ledger = ledger
        self._view = view
        self._clock = clock

    async def CreateAccount(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateAccountRequest, context: Any
    ) -> pricing_pb2.CreateAccountResponse:
        """Create an account, or find the same one created before."""
        made = request.account
        row = await self._row("SELECT * FROM account WHERE account_id = $1", made.account_id)
        if row is None:
            row = await self._append_and_find(
                request.request_id or f"account:{made.account_id}",
                control_pb2.ControlRecord(account_created=made),
                context,
                "SELECT * FROM account WHERE account_id = $1",
                made.account_id,
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
        if await self._row("SELECT 1 FROM account WHERE account_id = $1", made.account_id) is None:
            raise no_account(made.account_id)
        find = "SELECT * FROM api_key WHERE key_id = $1 OR secret_digest = $2"
        found = (made.key_id, made.secret_digest)
        row = await self._row(find, *found)
        if row is None:
            row = await self._append_and_find(
                request.request_id or f"key:{made.key_id}",
                control_pb2.ControlRecord(key_created=made),
                context,
                find,
                *found,
            )
        same = (row["key_id"], row["account_id"], row["project_id"], row["secret_digest"]) == (
            made.key_id,
            made.account_id,
            made.project_id,
            made.secret_digest,
        )
        if not same:
            raise errors.AlreadyExists(
                f"key {made.key_id!r} or its secret is in use; choose another",
                reason="KEY_EXISTS",
            )
        return pricing_pb2.CreateKeyResponse(position=row["control_position"])

    async def RevokeKey(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.RevokeKeyRequest, context: Any
    ) -> pricing_pb2.RevokeKeyResponse:
        """Revoke a key."""
        row = await self._row("SELECT * FROM api_key WHERE key_id = $1", request.key_id)
        if row is None:
            raise errors.NotFound(f"there is no key {request.key_id!r}", reason="KEY_NOT_FOUND")
        # One revocation for each time the key came to be: its position is in the idempotency key.
        answer = await self._append(
            f"revoke:{request.key_id}:{row['control_position']}",
            control_pb2.ControlRecord(key_revoked=control_pb2.KeyRevoked(key_id=request.key_id)),
            context,
        )
        await self._applied(answer.position, context)
        return pricing_pb2.RevokeKeyResponse(position=answer.position)

    async def GrantCredit(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.GrantCreditRequest, context: Any
    ) -> pricing_pb2.GrantCreditResponse:
        """Grant credit once for each grant_id."""
        made = request.grant
        account = await self._row("SELECT * FROM account WHERE account_id = $1", made.account_id)
        if account is None:
            raise no_account(made.account_id)
        amount_pico = _positive_amount(made, account["currency"])
        find = "SELECT * FROM credit_grant WHERE grant_id = $1"
        row = await self._row(find, made.grant_id)
        if row is None:
            row = await self._append_and_find(
                f"grant:{made.grant_id}",
                control_pb2.ControlRecord(credit_granted=made),
                context,
                find,
                made.grant_id,
            )
        if (row["account_id"], int(row["amount_pico"])) != (made.account_id, amount_pico):
            raise errors.AlreadyExists(
                f"grant {made.grant_id!r} was made with another account or amount;"
                " use a new grant_id",
                reason="GRANT_EXISTS",
            )
        return pricing_pb2.GrantCreditResponse(position=row["control_position"])

    async def PublishRateCard(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.PublishRateCardRequest, context: Any
    ) -> pricing_pb2.PublishRateCardResponse:
        """Publish the next version of a card; the same content as the newest is no new version."""
        try:
            card = parse_card(request.yaml)
        except DocumentError as error:
            raise errors.InvalidArgument(
                f"the rate card cannot be used: {error.problems[0]}",
                reason="INVALID_RATE_CARD",
                violations=tuple(
                    errors.FieldViolation(f"yaml:{problem.line}:{problem.column}", problem.message)
                    for problem in error.problems[:100]
                ),
            ) from None
        document = card.document()
        digest = content_hash(document)
        newest = "SELECT * FROM rate_card WHERE card_id = $1 ORDER BY version DESC LIMIT 1"
        row = await self._row(newest, card.card_id)
        version = row["version"] if row is not None else 0
        same = row is not None and row["content_hash"] == digest
        if request.validate_only:
            return pricing_pb2.PublishRateCardResponse(
                position=-1,
                card=pricing_pb2.CardRef(
                    card_id=card.card_id, version=version + (not same), content_hash=digest
                ),
            )
        if not same:
            published = control_pb2.RateCardPublished(
                card_id=card.card_id,
                version=version + 1,
                content_hash=digest,
                effective_from=timestamp_of(card.effective_from_us),
                document=document,
                author=request.author,
                approver=request.approver,
                reason=request.reason,
            )
            if card.effective_to_us is not None:
                published.effective_to.CopyFrom(timestamp_of(card.effective_to_us))
            row = await self._append_and_find(
                f"card:{card.card_id}:{version + 1}",
                control_pb2.ControlRecord(actor=request.author, rate_card_published=published),
                context,
                "SELECT * FROM rate_card WHERE card_id = $1 AND version = $2",
                card.card_id,
                version + 1,
            )
        if row["content_hash"] != digest:
            raise errors.AlreadyExists(
                f"version {version + 1} of card {card.card_id!r} was published meanwhile with"
                " other content; read it, then publish again",
                reason="CARD_VERSION_EXISTS",
            )
        return pricing_pb2.PublishRateCardResponse(
            position=row["control_position"],
            card=pricing_pb2.CardRef(
                card_id=row["card_id"], version=row["version"], content_hash=row["content_hash"]
            ),
        )

    async def CreateCut(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.CreateCutRequest, context: Any
    ) -> pricing_pb2.CreateCutResponse:
        """Write what is projected now into the cut log, with the roots it stands on."""
        await self._reader.wait_for(request.wait_for, context.time_remaining())

        async def read(db: Any) -> tuple[queries.Snapshot, control_pb2.ConservationCut]:
            return await queries.snapshot(db), await queries.conservation(db)

        snapshot, conservation = await self._reader.in_snapshot(read)
        listed = await self._ledger_call(
            self._ledger.stub.ListLogs(ledger_pb2.ListLogsRequest(), timeout=_LEDGER_TIMEOUT_S)
        )
        cut = control_pb2.Cut(
            cut_time=timestamp_of(self._clock.now_us()),
            balances_digest=snapshot.digest(),
            rating_version=RATING_VERSION,
            conservation=conservation,
        )
        for state in sorted(listed.logs, key=lambda state: state.log):
            if state.log != CUT_LOG:
                size = snapshot.positions.get(state.log, 0)
                cut.logs.append(await self._log_cut(state.log, size, state.pins))
        answer = await self._ledger_call(
            self._ledger.stub.Append(
                ledger_pb2.AppendRequest(
                    log=CUT_LOG,
                    idempotency_key=ids.new_id("cut"),
                    payload=cut.SerializeToString(deterministic=True),
                ),
                timeout=_LEDGER_TIMEOUT_S,
            )
        )
        return pricing_pb2.CreateCutResponse(position=answer.position, cut=cut)

    async def _log_cut(
        self, name: str, size: int, pins: Sequence[ledger_pb2.Pin]
    ) -> control_pb2.LogCut:
        root = merkle.EMPTY_ROOT
        if size:
            proof = await self._ledger_call(
                self._ledger.stub.GetConsistencyProof(
                    ledger_pb2.GetConsistencyProofRequest(
                        log=name, first_size=size, second_size=size
                    ),
                    timeout=_LEDGER_TIMEOUT_S,
                )
            )
            root = proof.first_root
        return control_pb2.LogCut(
            log=name,
            size=size,
            root=root,
            pins=[
                control_pb2.PinCut(from_position=pin.from_position, control_size=pin.control_size)
                for pin in pins
                if pin.from_position < size
            ],
        )

    # Shared steps -----------------------------------------------------------

    async def _row(self, sql: str, *values: Any) -> Any:
        return await self._reader.in_snapshot(lambda db: db.fetchrow(sql, *values))

    async def _ledger_call(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                raise errors.AlreadyExists(error.details() or "", "IDEMPOTENCY_CONFLICT") from None
            raise errors.Unavailable(
                f"the ledger does not answer: {error.details()}", reason="LEDGER_AWAY"
            ) from None

    async def _append(
        self, key: str, record: control_pb2.ControlRecord, context: Any
    ) -> ledger_pb2.AppendResponse:
        record.recorded_time.CopyFrom(timestamp_of(self._clock.now_us()))
        if not record.actor:
            record.actor = _actor(context)
        answer: ledger_pb2.AppendResponse = await self._ledger_call(
            self._ledger.stub.Append(
                ledger_pb2.AppendRequest(
                    log=CONTROL_LOG,
                    idempotency_key=key,
                    payload=record.SerializeToString(deterministic=True),
                ),
                timeout=_LEDGER_TIMEOUT_S,
            )
        )
        return answer

    async def _applied(self, position: int, context: Any) -> None:
        remaining_s = context.time_remaining()
        limit_s = _APPLIED_WAIT_S if remaining_s is None else min(_APPLIED_WAIT_S, remaining_s)
        await self._reader.wait_for_control(position + 1, limit_s)

    async def _append_and_find(
        self,
        key: str,
        record: control_pb2.ControlRecord,
        context: Any,
        find: str,
        *values: Any,
    ) -> Any:
        """Append, wait for the projection, and read back what then stands there.

        When the key is taken, the same or a rival change got there first: what
        is found tells which, and the caller compares.
        """
        with contextlib.suppress(errors.AlreadyExists):
            answer = await self._append(key, record, context)
            await self._applied(answer.position, context)

        async def there() -> bool:
            return await self._row(find, *values) is not None

        remaining_s = context.time_remaining()
        limit_s = _APPLIED_WAIT_S if remaining_s is None else min(_APPLIED_WAIT_S, remaining_s)
        try:
            await self._reader.progress.until(there, f"the record {key!r}", limit_s)
        except errors.DeadlinePassed:
            raise errors.FailedPrecondition(
                f"the record {key!r} is in the control log and was not applied in time: the"
                " projector is behind, or refused it (see its log)",
                reason="NOT_APPLIED",
            ) from None
        return await self._row(find, *values)


def _actor(context: Any) -> str:
    """Who asks: the `tollbook-actor` metadata, or the peer."""
    for name, value in context.invocation_metadata() or ():
        if name == "tollbook-actor" and isinstance(value, str) and value:
            return value[:128]
    return str(context.peer())[:128] or "unknown"


def _positive_amount(made: control_pb2.CreditGranted, currency: str) -> int:
    if made.amount.currency != currency:
        raise errors.InvalidArgument(
            f"account {made.account_id!r} is in {currency}, the grant is in {made.amount.currency}",
            reason="CURRENCY_MISMATCH",
            violations=(errors.FieldViolation("grant.amount.currency", f"use {currency}"),),
        )
    amount_pico = int(made.amount.amount_pico or "0")
    if not 0 < amount_pico <= 10**30:
        raise errors.InvalidArgument(
            "a grant is more than 0 and at most 10^18 units; a charge is made by usage alone",
            reason="INVALID_AMOUNT",
            violations=(errors.FieldViolation("grant.amount.amount_pico", "1 to 10^30"),),
        )
    return amount_pico
