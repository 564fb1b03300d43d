"""PricingService: balances, postings, receipts and keys, read from the projection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import asyncpg

from kernel import errors
from kernel.clock import timestamp_of
from kernel.dsn import said
from kernel.placement import CONTROL_LOG
from pricing.adapters import database, listings, month_receipts, queries
from pricing.adapters.control_view import ControlView
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.progress import Progress
from pricing.domain.events import Event, read_event, record_of, usage_event_of
from pricing.domain.identity import identity_of
from pricing.domain.rating import RatedLeaf
from pricing.domain.what_if import Corrections
from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc
from tollbook.usage.v1 import usage_pb2

_DEFAULT_PAGE: Final = 100
_BALANCES_PAGE: Final = 1_000
_VIEW_WAIT_S: Final = 10.0
_BEFORE_ALL: Final = 2**63 - 1


def no_account(account_id: str) -> errors.NotFound:
    """The error for an account that is not there."""
    return errors.NotFound(
        f"there is no account {account_id!r}; create it first (tollbook accounts create)",
        reason="ACCOUNT_NOT_FOUND",
        metadata={"account_id": account_id},
    )


class Reader:
    """What both services need: reads from one snapshot, and waiting for positions."""

    def __init__(self, pool: Any, dsn: str) -> None:
        self._pool = pool
        self.kept = listings.Kept(dsn)
        self.progress = Progress(
            dsn, lambda wanted: self.in_snapshot(lambda db: queries.reached(db, wanted))
        )

    async def in_snapshot(self, read: Callable[[Any], Awaitable[Any]], kept: str = "") -> Any:
        """Run reads in one snapshot, or in one that is kept for a listing.

        Errors: Unavailable while the database is away, FailedPrecondition when
        the snapshot is not kept any more.
        """
        try:
            async with (
                self._pool.acquire(timeout=5) as db,
                db.transaction(isolation="repeatable_read", readonly=True),
            ):
                if kept:
                    await listings.enter(db, kept)
                return await read(db)
        except asyncpg.DataError as error:
            raise errors.InvalidArgument(
                f"a text of the request cannot stand in a database: {error}", reason="INVALID_FIELD"
            ) from None
        except database.AWAY as error:
            raise errors.Unavailable(
                f"the database does not answer: {said(error)}", reason="DATABASE_AWAY"
            ) from None

    async def wait_for(
        self, wanted: Sequence[pricing_pb2.LogPosition], remaining_s: float | None
    ) -> None:
        """Wait until each log is applied to a size. Errors: DeadlinePassed, Unavailable."""
        if not wanted:
            return
        sizes: dict[str, int] = {}
        for item in wanted:
            sizes[item.log] = max(item.size, sizes.get(item.log, 0))
        names = ", ".join(f"{item.log} {item.size}" for item in wanted[:8])
        await self.progress.until(sizes, b"", f"position {names}", remaining_s)

    async def wait_for_event(
        self, account_id: str, event_id: str, remaining_s: float | None
    ) -> None:
        """Wait until an event is applied. Errors: DeadlinePassed, Unavailable."""
        what = f"event {event_id!r} of account {account_id!r}"
        await self.progress.until({}, identity_of(account_id, event_id), what, remaining_s)

    async def wait_for_control(self, size: int, remaining_s: float | None) -> None:
        """Wait until the control log is applied to a size. Errors: DeadlinePassed."""
        await self.wait_for([pricing_pb2.LogPosition(log="control", size=size)], remaining_s)


class PricingAnswers(pricing_pb2_grpc.PricingServiceServicer):
    """Answers PricingService."""

    def __init__(self, reader: Reader, ledger: Ledger, view: ControlView) -> None:
        self._reader = reader
        self._ledger = ledger
        self._view = view
        self._corrections = Corrections(view.projection.control)

    async def GetBalance(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.GetBalanceRequest, context: Any
    ) -> pricing_pb2.GetBalanceResponse:
        """Answer with one account's balance and the positions it is true at."""
        await self._reader.wait_for(request.wait_for, context.time_remaining())
        if request.wait_for_event_id:
            await self._reader.wait_for_event(
                request.account_id, request.wait_for_event_id, context.time_remaining()
            )

        async def read(db: Any) -> tuple[pricing_pb2.AccountBalance | None, dict[str, int]]:
            return (
                await queries.account_balance(db, request.account_id),
                await queries.positions(db),
            )

        balance, at = await self._reader.in_snapshot(read)
        if balance is None:
            raise no_account(request.account_id)
        return pricing_pb2.GetBalanceResponse(
            balance=balance, positions=queries.positions_message(at)
        )

    async def ListBalances(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.ListBalancesRequest, context: Any
    ) -> pricing_pb2.ListBalancesResponse:
        """Answer with a page of all balances and their digest, all pages from one snapshot."""
        size = request.page_size or _BALANCES_PAGE
        page = listings.page_of(request.page_token) if request.page_token else None
        if page is None:
            await self._reader.wait_for(request.wait_for, context.time_remaining())

        async def read(db: Any) -> pricing_pb2.ListBalancesResponse:
            found = await queries.account_balances(db, page.after if page else "", size + 1)
            answer = pricing_pb2.ListBalancesResponse(balances=found[:size])
            if page is None:
                snapshot = await queries.snapshot(db)
                answer.balances_digest = snapshot.digest()
                at = snapshot.positions
            else:
                at = await queries.positions(db)
            answer.positions.extend(queries.positions_message(at))
            if len(found) > size:
                kept = page.snapshot if page else await self._keep(db)
                answer.next_page_token = listings.Page(kept, found[size - 1].account_id).token()
            return answer

        listed: pricing_pb2.ListBalancesResponse = await self._reader.in_snapshot(
            read, page.snapshot if page else ""
        )
        return listed

    async def _keep(self, db: Any) -> str:
        """Have this transaction's snapshot kept for the pages to come."""
        return await self._reader.kept.keep(await db.fetchval("SELECT pg_export_snapshot()"))

    async def ListPostings(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.ListPostingsRequest, context: Any
    ) -> pricing_pb2.ListPostingsResponse:
        """Answer with a page of an account's postings, newest first."""
        size = request.page_size or _DEFAULT_PAGE
        before = _BEFORE_ALL
        if request.page_token:
            if not request.page_token.isdecimal() or len(request.page_token) > 18:
                raise errors.InvalidArgument.of_field(
                    "page_token",
                    "take it from the answer",
                    "page_token is not one of a previous answer",
                )
            before = int(request.page_token)

        async def read(db: Any) -> list[pricing_pb2.Posting] | None:
            if not await queries.account_exists(db, request.account_id):
                return None
            return await queries.postings(db, request.account_id, before, size + 1)

        found = await self._reader.in_snapshot(read)
        if found is None:
            raise no_account(request.account_id)
        more = str(found[size - 1].posting_id) if len(found) > size else ""
        return pricing_pb2.ListPostingsResponse(postings=found[:size], next_page_token=more)

    async def GetReceipt(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.GetReceiptRequest, context: Any
    ) -> pricing_pb2.GetReceiptResponse:
        """Answer with what one event was charged, rated anew from its log entry."""
        receipt = await self.receipt(request.account_id, request.event_id)
        return pricing_pb2.GetReceiptResponse(receipt=receipt)

    async def catch_up(self) -> None:
        """Know all that the control log holds now, re-ratings among it. Errors: Unavailable."""
        await self._view.reach(await self._ledger.size(CONTROL_LOG), _VIEW_WAIT_S)

    async def receipt(self, account_id: str, event_id: str) -> pricing_pb2.Receipt:
        """What one event was charged. Errors: NotFound."""
        place = await self._reader.in_snapshot(
            lambda db: queries.event_place(db, account_id, event_id)
        )
        if place is None:
            raise errors.NotFound(
                f"account {account_id!r} has no event {event_id!r} (yet)",
                reason="EVENT_NOT_FOUND",
            )
        name, position = place
        entry = await self._ledger.entry(name, position)
        event = read_event(position, entry.leaf)
        await self._view.reach(entry.control_size, _VIEW_WAIT_S)
        account = self._view.projection.control.accounts.get(event.account_id)
        currency = account.currency if account is not None else ""
        lines = [part for part, _ in self._view.projection.receipt(event, entry.control_size)]
        adjustment_pico = 0
        if any(part.priced is not None and part.priced.price.is_metered for part in lines):
            rows = await self._reader.in_snapshot(
                lambda db: month_receipts.moves(db, account_id, name, position)
            )
            months = await month_receipts.months_before(
                self._view.projection, self._ledger, name, event, currency, rows
            )
            found = months.receipt(event, currency, lines)
            lines, adjustment_pico = list(found.leaves), found.adjustment_pico
        receipt = self._receipt(name, event, entry.control_size, entry.leaf, lines, currency)
        if adjustment_pico:
            receipt.adjustment.CopyFrom(queries.amount(currency, adjustment_pico))
            total_pico = int(receipt.total.amount_pico) + adjustment_pico
            receipt.total.CopyFrom(queries.amount(currency, total_pico))
        return receipt

    def _receipt(
        self,
        name: str,
        event: Event,
        pin: int,
        raw: bytes,
        lines: Sequence[RatedLeaf],
        currency: str,
    ) -> pricing_pb2.Receipt:
        receipt = pricing_pb2.Receipt(
            account_id=event.account_id,
            event_id=event.event_id,
            log=name,
            position=event.position,
            control_size=pin,
            served_model=event.context.model,
            outcome=usage_pb2.Outcome.ValueType(event.outcome),
            lines=[_receipt_line(part, currency) for part in lines],
            suspense=any(part.priced is None for part in lines),
            event_time=timestamp_of(event.event_time_us),
        )
        if currency:
            receipt.total.CopyFrom(
                queries.amount(currency, sum(part.amount_pico for part in lines))
            )
        quantities = _quantities(raw)
        for line, part in zip(receipt.lines, lines, strict=True):
            line.leaf.CopyFrom(quantities[part.leaf_index])
        before_pico = sum(part.amount_pico for part in lines)
        for plan, after_pico in self._corrections.of(name, event, pin):
            if after_pico != before_pico:
                receipt.corrections.add(
                    rerate_id=plan.made.rerate_id,
                    control_position=plan.posted_position or 0,
                    total=queries.amount(currency, after_pico),
                )
                before_pico = after_pico
        return receipt

    async def ResolveKey(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.ResolveKeyRequest, context: Any
    ) -> pricing_pb2.ResolveKeyResponse:
        """Answer with the key that a secret's digest belongs to."""

        async def read(db: Any) -> tuple[Any, dict[str, int]]:
            return (
                await queries.key_of_secret(db, request.secret_digest),
                await queries.positions(db),
            )

        key, at = await self._reader.in_snapshot(read)
        if key is None:
            raise errors.NotFound("no key has this secret, or it was revoked", "KEY_NOT_FOUND")
        return pricing_pb2.ResolveKeyResponse(
            key_id=key["key_id"],
            account_id=key["account_id"],
            project_id=key["project_id"],
            control_size=at.get("control", 0),
        )


def _quantities(raw: bytes) -> Sequence[usage_pb2.Quantity]:
    """The leaves of an event as they stand in its log entry."""
    record = record_of(raw)
    return usage_event_of(record).quantities if record is not None else ()


def _receipt_line(part: RatedLeaf, currency: str) -> pricing_pb2.ReceiptLine:
    line = pricing_pb2.ReceiptLine(charged_quantity=part.charged, outcome_rule=part.outcome_rule)
    if part.priced is not None:
        known = part.priced.published
        line.card.card_id = known.card.card_id
        line.card.version = known.version
        line.card.content_hash = known.content_hash
        line.line_id = part.priced.line.line_id
        line.unit_price_pico = str(part.priced.price.unit_pico)
        line.rule = part.priced.rule_text
        line.period = part.priced.period
        line.amount.CopyFrom(queries.amount(currency, part.amount_pico))
    return line
