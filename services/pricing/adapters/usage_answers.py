"""PricingService's part about time: balances as of an instant, balances watched, usage summed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from kernel import errors
from kernel.clock import timestamp_of, us_of
from pricing.adapters import queries
from pricing.adapters.answers import no_account
from pricing.adapters.statement_answers import StatementAnswers
from pricing.domain import credit, windows
from pricing.domain.state import EVENT
from tollbook.pricing.v1 import pricing_pb2, reports_pb2

MAX_ROWS: Final = 20_000
MAX_MINUTES: Final = 500_000
MAX_WATCHERS: Final = 2_000
_LOOK_S: Final = 1.0
_COLUMNS: Final = {
    reports_pb2.USAGE_DIMENSION_PROJECT: "project_id",
    reports_pb2.USAGE_DIMENSION_KEY: "key_id",
    reports_pb2.USAGE_DIMENSION_MODEL: "model",
    reports_pb2.USAGE_DIMENSION_ADAPTER: "adapter",
    reports_pb2.USAGE_DIMENSION_SERVICE_TIER: "service_tier",
    reports_pb2.USAGE_DIMENSION_REGION: "region",
    reports_pb2.USAGE_DIMENSION_OUTCOME: "outcome",
    reports_pb2.USAGE_DIMENSION_LEAF: "leaf",
    reports_pb2.USAGE_DIMENSION_LINE: "line",
}

# Postings by what they are of: credit and corrections by when the control log had recorded them,
# usage by its own minute, and what a month's least or most makes of it by the month.
_AS_OF: Final = """
WITH moved AS (
  SELECT p.kind, CASE WHEN p.credit_account = 'account:' || p.account_id
                      THEN p.amount_pico ELSE -p.amount_pico END AS pico
  FROM posting p
  LEFT JOIN control_time t ON t.control_position =
    CASE WHEN p.log = 'control' THEN p.from_position ELSE p.rated_at_control END
  WHERE p.account_id = $1 AND CASE
    WHEN p.log = 'control' OR p.kind = 'correction' THEN t.recorded_us < $2
    WHEN p.kind = 'commitment' THEN
      extract(epoch FROM (p.period || '-01')::date) * 1000000 < $2
    ELSE false END
)
SELECT a.account_id, a.currency,
  (SELECT coalesce(sum(pico), 0) FROM moved WHERE kind NOT IN ('correction', 'commitment'))
    AS given,
  (SELECT coalesce(sum(pico), 0) FROM moved WHERE kind = 'grant') AS granted,
  (SELECT coalesce(sum(u.amount_pico), 0) FROM usage_minute u
   WHERE u.account_id = a.account_id AND u.minute_us < $2)
  - (SELECT coalesce(sum(pico), 0) FROM moved WHERE kind IN ('correction', 'commitment'))
    AS charged
FROM account a WHERE a.account_id = $1
"""


class _Sum(NamedTuple):
    """Units, charged units, charge in pico-units, events."""

    amount: int
    charged: int
    amount_pico: int
    requests: int


class UsageAnswers(StatementAnswers):
    """Answers PricingService, all of it."""

    _watchers = 0

    async def GetBalance(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.GetBalanceRequest, context: Any
    ) -> pricing_pb2.GetBalanceResponse:
        """Answer with one account's balance, now or as of an instant."""
        if not request.HasField("as_of_time"):
            return await super().GetBalance(request, context)
        at_us = _minute("as_of_time", request.as_of_time)
        await self._reader.wait_for(request.wait_for, context.time_remaining())

        async def read(db: Any) -> tuple[Any, dict[str, int]]:
            return await db.fetchrow(_AS_OF, request.account_id, at_us), await queries.positions(db)

        row, at = await self._reader.in_snapshot(read)
        if row is None:
            raise no_account(request.account_id)
        currency = row["currency"]
        return pricing_pb2.GetBalanceResponse(
            balance=pricing_pb2.AccountBalance(
                account_id=row["account_id"],
                available=queries.amount(currency, row["given"] - row["charged"]),
                granted=queries.amount(currency, row["granted"]),
                charged=queries.amount(currency, row["charged"]),
            ),
            positions=queries.positions_message(at),
        )

    async def WatchBalance(  # noqa: N802 - the contract's name
        self, request: pricing_pb2.WatchBalanceRequest, context: Any
    ) -> AsyncIterator[pricing_pb2.WatchBalanceResponse]:
        """Tell an account's balance whenever it changes, until the caller leaves."""
        if self._watchers >= MAX_WATCHERS:
            raise errors.Unavailable(
                f"{MAX_WATCHERS} watch balances already", reason="TOO_MANY_WATCHERS"
            )
        self._watchers += 1
        told: pricing_pb2.AccountBalance | None = None
        asked = pricing_pb2.GetBalanceRequest(account_id=request.account_id)
        try:
            while True:
                answer = await super().GetBalance(asked, context)
                if answer.balance != told:
                    told = answer.balance
                    yield pricing_pb2.WatchBalanceResponse(balance=told, positions=answer.positions)
                # Holds come and go without the projector: looked for once in a while.
                await self._reader.progress.next_commit(_LOOK_S)
        finally:
            self._watchers -= 1

    async def GetUsage(  # noqa: N802 - the contract's name
        self, request: reports_pb2.GetUsageRequest, context: Any
    ) -> reports_pb2.GetUsageResponse:
        """Answer with usage summed by what is asked for."""
        from_us = _minute("from_time", request.from_time)
        to_us = _minute("to_time", request.to_time)
        if problem := windows.zone_problem(request.time_zone):
            raise _invalid("time_zone", problem)
        names = [_COLUMNS[dimension] for dimension in request.group_by]
        window = credit.WINDOW_WORDS.get(request.bucket)

        async def read(db: Any) -> tuple[str | None, list[Any]]:
            currency = await db.fetchval(
                "SELECT currency FROM account WHERE account_id = $1", request.account_id
            )
            return currency, await _minutes(db, request.account_id, from_us, to_us, names, window)

        currency, rows = await self._reader.in_snapshot(read)
        if currency is None:
            raise no_account(request.account_id)
        sums: dict[tuple[int, tuple[str, ...]], _Sum] = {}
        for row in rows:
            start_us = 0
            if window is not None:
                start_us = windows.window_start_us(window, request.time_zone, row["minute_us"])
            key = start_us, tuple(row[name] for name in names)
            older = sums.get(key, _Sum(0, 0, 0, 0))
            sums[key] = _Sum(
                older.amount + int(row["amount"]),
                older.charged + int(row["charged"]),
                older.amount_pico + int(row["amount_pico"]),
                older.requests + int(row["requests"]),
            )
        if len(sums) > MAX_ROWS:
            raise errors.OutOfRange(
                f"the answer would have {len(sums)} rows, more than {MAX_ROWS}: ask for a shorter"
                " time, longer buckets or fewer dimensions",
                reason="TOO_MANY_ROWS",
            )
        answer = reports_pb2.GetUsageResponse(currency=currency)
        for (start_us, values), found in sorted(sums.items()):
            line = answer.rows.add(
                requests=found.requests,
                amount=found.amount,
                charged_amount=found.charged,
                charge=queries.amount(currency, found.amount_pico),
                **dict(zip(names, values, strict=True)),
            )
            if window is not None:
                line.bucket_time.CopyFrom(timestamp_of(start_us))
        return answer


async def _minutes(
    db: Any,
    account_id: str,
    from_us: int,
    to_us: int,
    names: Sequence[str],
    window: str | None,
) -> list[Any]:
    """Usage summed by these columns, and by the minute where it is put into buckets after."""
    line = (
        "CASE WHEN card_id = '' THEN '' ELSE card_id || '/' || card_version || '/' || line_id END"
    )
    # The names are ours, of _COLUMNS; none comes from a caller.
    chosen = [f"{line} AS line" if name == "line" else name for name in names]
    minute = ["minute_us"] if window is not None else ["0::bigint AS minute_us"]
    groups = ", ".join(str(number + 1) for number in range(len(names) + 1))
    rows: list[Any] = await db.fetch(
        f"SELECT {', '.join((*chosen, *minute))},"  # noqa: S608
        " sum(amount) FILTER (WHERE leaf <> $4) AS amount, sum(charged) AS charged,"
        " sum(amount_pico) AS amount_pico, sum(amount) FILTER (WHERE leaf = $4) AS requests"
        " FROM (SELECT * FROM usage_minute WHERE account_id = $1 AND minute_us >= $2"
        f" AND minute_us < $3) u GROUP BY {groups} LIMIT {MAX_MINUTES + 1}",
        account_id,
        from_us,
        to_us,
        EVENT,
    )
    if len(rows) > MAX_MINUTES:
        raise errors.OutOfRange("too much usage for one answer: ask for less", "TOO_MANY_ROWS")
    return [{**row, "amount": row["amount"] or 0, "requests": row["requests"] or 0} for row in rows]


def _minute(name: str, given: Timestamp) -> int:
    at_us = us_of(given)
    if at_us % windows.MINUTE_US or not 0 <= at_us <= windows.LAST_US:
        raise _invalid(name, "it is a full minute from 1970 to 9999")
    return at_us


def _invalid(name: str, problem: str) -> errors.InvalidArgument:
    return errors.InvalidArgument.of_field(name, problem, f"{name}: {problem}")
