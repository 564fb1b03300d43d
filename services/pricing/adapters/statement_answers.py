"""PricingService's part about statements: made again from the tables, and held against the log."""

from __future__ import annotations

from typing import Any, Final

from kernel import errors
from pricing.adapters import statements
from pricing.adapters.answers import no_account
from pricing.adapters.hold_answers import HoldAnswers
from tollbook.pricing.v1 import statements_pb2

_CURRENCY: Final = "SELECT currency FROM account WHERE account_id = $1"
_DEFAULT_PAGE: Final = 100
_WAIT_S: Final = 10.0


class StatementAnswers(HoldAnswers):
    """Answers PricingService's calls about statements, and those about holds."""

    async def GetStatement(  # noqa: N802 - the contract's name
        self, request: statements_pb2.GetStatementRequest, context: Any
    ) -> statements_pb2.GetStatementResponse:
        """Answer with the statement of a closed period."""
        account_id = request.account_id
        made = await self._records(account_id)
        record = next((one for one in made if one.made.period == request.period), None)
        if record is None:
            raise errors.NotFound(
                f"period {request.period} of account {account_id!r} is not closed; close it first"
                " (tollbook period close)",
                reason="PERIOD_NOT_CLOSED",
                metadata={"account_id": account_id, "period": request.period},
            )
        await self._view.reach(record.position + 1, _WAIT_S)
        end = self._view.projection.control.ends.of(request.period)
        if end is None:
            raise AssertionError("a closed period has no end in the control log")
        currency = record.made.invoiced.currency
        upto = [one for one in made if one.position <= record.position]
        stated = await self._reader.in_snapshot(
            lambda db: statements.make(db, self._view, (account_id, currency), end, upto)
        )
        document = stated.statement.document() if stated.statement is not None else b""
        if stated.statement is None or stated.statement.digest() != record.made.statement_hash:
            raise errors.Unavailable(
                f"the tables do not give the statement that closed period {request.period}"
                f" of account {account_id!r}; if a projector is making them anew, try again",
                reason="STATEMENT_DIFFERS",
            )
        return statements_pb2.GetStatementResponse(
            summary=statements.summary(record), document=document
        )

    async def ListStatements(  # noqa: N802 - the contract's name
        self, request: statements_pb2.ListStatementsRequest, context: Any
    ) -> statements_pb2.ListStatementsResponse:
        """Answer with a page of what an account's closed periods came to, newest first."""
        size = request.page_size or _DEFAULT_PAGE
        made = list(reversed(await self._records(request.account_id)))
        if request.page_token:
            made = [one for one in made if one.made.period < request.page_token]
        more = made[size - 1].made.period if len(made) > size else ""
        return statements_pb2.ListStatementsResponse(
            statements=[statements.summary(one) for one in made[:size]], next_page_token=more
        )

    async def _records(self, account_id: str) -> list[statements.Record]:
        async def read(db: Any) -> tuple[str | None, list[statements.Record]]:
            currency = await db.fetchval(_CURRENCY, account_id)
            return currency, await statements.records(db, account_id)

        currency, made = await self._reader.in_snapshot(read)
        if currency is None:
            raise no_account(account_id)
        return list(made)
