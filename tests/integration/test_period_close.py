"""Months closed on a running stack: once, whoever asks, and as anybody computes from the logs."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner
from tests.integration.pricing_world import (
    CARD,
    PARTS,
    PICO,
    T0_US,
    TIMEOUT_S,
    World,
    again,
    reason_of,
)
from tests.integration.replicas import replicas
from tests.integration.webhook_receiver import SECRET, Receiver, receiving

from audit.expiries import Charged
from kernel import leaf as leaves
from kernel.clock import timestamp_of
from kernel.placement import CONTROL_LOG
from pricing.domain import books
from tollbook.cli.root import root
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import (
    accounts_pb2,
    control_pb2,
    money_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
    statements_pb2,
)
from tollbook.stack import Stack, running_stack

pytestmark = pytest.mark.integration

DAY_US = 86_400 * 10**6
FEBRUARY_US = T0_US + 31 * DAY_US
MARCH_US = FEBRUARY_US + 28 * DAY_US
NAMES = ("billed", "brief", "idle")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def stack(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Of which alerts are told to the receiver, too."""
    path = tmp_path_factory.mktemp("alerts") / "alerts.yaml"
    path.write_text(
        f"webhooks: [{{name: ops, url: '{receiver.url}', secret: {SECRET}}}]\n"
        'rules: [{id: low, kind: balance_below, amount: "5.2", accounts: [billed]}]\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOLLBOOK_ALERTS", str(path))
        with running_stack(parts=PARTS) as running:
            yield running


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    stack.up(PARTS)
    async with World(stack) as made:
        yield made


async def closed_by(control: Any, period: str) -> statements_pb2.ClosePeriodResponse:
    request = statements_pb2.ClosePeriodRequest(period=period)
    return await again(lambda: control.ClosePeriod(request, timeout=TIMEOUT_S))


async def move_logs(world: World, at_us: int) -> None:
    """An event of each account: the logs they stand in come beyond the period's end."""
    for name in NAMES[:2]:
        await world.use(name, output=1, at_us=at_us, priced=False)


async def controls(world: World) -> list[control_pb2.ControlRecord]:
    """All records of the control log."""
    size = (await world.sizes())[CONTROL_LOG]
    request = ledger_pb2.ReadEventsRequest(log=CONTROL_LOG, to_position=size, max_batch=1000)
    return [
        control_pb2.ControlRecord.FromString(leaves.decode(raw).value)
        async for answer in world.ledger.ReadEvents(request, timeout=TIMEOUT_S)
        for raw in answer.leaves
    ]


async def statement(world: World, account_id: str, period: str) -> dict[str, Any]:
    request = statements_pb2.GetStatementRequest(account_id=account_id, period=period)
    answer = await again(lambda: world.pricing.GetStatement(request, timeout=TIMEOUT_S))
    assert hashlib.sha256(answer.document).digest() == answer.summary.statement_hash
    found: dict[str, Any] = json.loads(answer.document)
    return found


async def agrees(world: World, *account_ids: str) -> None:
    """What is served is what a replay of the logs gives, roundings and verdicts included."""
    listed = await world.pricing.ListBalances(
        pricing_pb2.ListBalancesRequest(wait_for=await world.recorded()), timeout=TIMEOUT_S
    )
    replay = await world.replay({item.log: item.size for item in listed.positions})
    assert replay.digest() == listed.balances_digest
    assert sum(replay.balances.values()) == 0
    for account_id in account_ids:
        found = await statements_of(world, account_id)
        closed = replay.projection.closings.closed[account_id]
        assert [one.statement_hash for one in reversed(found)] == [
            one.statement_hash for one in closed
        ]


async def statements_of(world: World, account_id: str) -> list[statements_pb2.StatementSummary]:
    listed = await world.pricing.ListStatements(
        statements_pb2.ListStatementsRequest(account_id=account_id), timeout=TIMEOUT_S
    )
    return list(listed.statements)


async def test_a_month_is_closed_once_whoever_asks_and_corrected_in_the_next(
    world: World,
) -> None:
    await world.publish(CARD.format(card="standard", model="tiny"))
    await world.open(*NAMES)
    await world.control.GrantCredit(
        pricing_pb2.GrantCreditRequest(
            grant=control_pb2.CreditGranted(
                grant_id="ends",
                account_id="billed",
                amount=money_pb2.Amount(currency="USD", amount_pico=str(PICO)),
                expires_time=timestamp_of(FEBRUARY_US),
            )
        ),
        timeout=TIMEOUT_S,
    )
    await world.use("brief", output=7, at_us=FEBRUARY_US - 1)
    await world.use("brief", output=5, at_us=FEBRUARY_US)
    # A projector that stands still: what is in the log has paid with the grant all the same, so
    # nobody can say yet what is left of it.
    stopped = world.stack.kill("pricing-projector", signal.SIGSTOP)
    try:
        await world.use("billed", output=10**6 + 1, at_us=T0_US + DAY_US, priced=False)
        await world.recorded()
        early = statements_pb2.ClosePeriodRequest(period="2026-01")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.control.ClosePeriod(early, timeout=3)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not any(made.HasField("credit_expired") for made in await controls(world))
    finally:
        stopped.send(signal.SIGCONT)
    async with replicas(world.stack, 2) as others:
        other: Any = pricing_pb2_grpc.ControlServiceStub(others.channel(0))
        killed: Any = pricing_pb2_grpc.ControlServiceStub(others.channel(1))
        request = statements_pb2.ClosePeriodRequest(period="2026-01")
        broken = asyncio.ensure_future(killed.ClosePeriod(request, timeout=TIMEOUT_S))
        both = asyncio.gather(closed_by(world.control, "2026-01"), closed_by(other, "2026-01"))
        # None of them is closed before its logs are beyond the end, which is recorded by now.
        async with asyncio.timeout(TIMEOUT_S):
            while not any(made.HasField("period_ended") for made in await controls(world)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        others.kill(1)
        await asyncio.gather(broken, return_exceptions=True)
        await move_logs(world, MARCH_US)
        answers = await both
    assert {answer.end_position for answer in answers} == {answers[0].end_position}
    assert [(answer.closed, answer.open_accounts) for answer in answers] == [(3, 0)] * 2
    made = Counter(
        record.period_closed.account_id
        for record in await controls(world)
        if record.HasField("period_closed")
    )
    assert made == dict.fromkeys(NAMES, 1)
    first = await statement(world, "billed", "2026-01")
    # 0.6000006 dollars, of a million and one tokens; the grant that ended paid, and its rest went.
    assert (first["charged_pico"], first["invoiced_pico"]) == (
        str((10**6 + 1) * 600_000),
        str(60 * PICO // 100),
    )
    assert [(one["kind"], one["amount_pico"]) for one in first["credits"]] == [
        ("grant", str(5 * PICO)),
        ("grant", str(PICO)),
        ("expiry", str((10**6 + 1) * 600_000 - PICO)),
    ]
    (expired,) = [
        record.credit_expired
        for record in await controls(world)
        if record.HasField("credit_expired")
    ]
    assert expired.control_size
    assert sum(part.size for part in expired.logs) >= 3
    # The auditor's arithmetic on the real logs, up to the sizes that the record states.
    charged = Charged(frozenset({"billed"}))
    sizes = {CONTROL_LOG: expired.control_size, **{part.log: part.size for part in expired.logs}}
    await world.replay(sizes, charged)
    assert charged.left_pico("billed", "ends") == int(expired.amount.amount_pico)
    brief = await statement(world, "brief", "2026-01")
    assert (brief["charged_pico"], brief["invoiced_pico"]) == (str(7 * 600_000), "0")
    assert (await statement(world, "idle", "2026-01"))["closing_pico"] == str(5 * PICO)
    await agrees(world, *NAMES)

    # A closing that says something else, past the service's checks, changes nothing.
    stated = (await statements_of(world, "billed"))[0]
    await world.append("rival", {"period_closed": rival(stated)})
    await world.use("brief", output=3, at_us=T0_US, priced=False)
    # In the log before February ends, or it is March that corrects January.
    await world.recorded()
    ended = asyncio.ensure_future(closed_by(world.control, "2026-02"))
    async with asyncio.timeout(TIMEOUT_S):
        while sum(made.HasField("period_ended") for made in await controls(world)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await move_logs(world, MARCH_US)
    answer = await ended
    assert (answer.closed, answer.open_accounts) == (3, 0)
    second = await statement(world, "brief", "2026-02")
    assert (second["charged_pico"], second["corrected_pico"]) == (
        str(5 * 600_000),
        str(3 * 600_000),
    )
    assert [line["month"] for line in second["lines"]] == ["2026-01", "2026-02"]
    assert second["opening_pico"] == brief["closing_pico"]
    await agrees(world, *NAMES)


def rival(stated: statements_pb2.StatementSummary) -> accounts_pb2.PeriodClosed:
    return accounts_pb2.PeriodClosed(
        account_id=stated.account_id,
        period="2026-02",
        charged=money_pb2.Amount(currency="USD", amount_pico="0"),
        corrected=money_pb2.Amount(currency="USD", amount_pico="0"),
        invoiced=money_pb2.Amount(currency="USD", amount_pico=str(10**11)),
        statement_hash=bytes(32),
        end_position=stated.end_position,
    )


async def test_an_alert_is_told_of_what_the_projector_charged(
    receiver: Receiver, stack: Stack
) -> None:
    """5 and 1 are granted; 0.6 are spent, and what is left of the 1 is gone with the month."""
    assert await asyncio.to_thread(receiver.arrived.wait, TIMEOUT_S)
    told = json.loads(receiver.got[0][1])
    assert (told["type"], told["data"]["account_id"]) == (
        "tollbook.alert.balance_below",
        "billed",
    )
    assert set(receiver.ids()) == {told["data"]["alert_id"]}
    assert stack.address("pricing-server")


async def test_a_projector_that_starts_again_comes_to_the_same_verdicts(
    world: World, stack: Stack
) -> None:
    before = [await statements_of(world, name) for name in NAMES]
    stack.kill("pricing-projector")
    stack.up(PARTS)
    await move_logs(world, MARCH_US)
    await agrees(world, *NAMES)
    assert [await statements_of(world, name) for name in NAMES] == before
    listed = await world.pricing.ListPostings(
        pricing_pb2.ListPostingsRequest(account_id="billed", page_size=1000), timeout=TIMEOUT_S
    )
    rounded = [posting for posting in listed.postings if posting.kind == books.ROUNDING]
    assert [int(posting.amount.amount_pico) for posting in rounded] == [600_000]


@pytest.mark.parametrize(
    ("period", "reason"), [("2026-01", ""), ("2999-01", "PERIOD_NOT_OVER"), ("2025-12", "")]
)
async def test_a_month_is_closed_in_order_and_when_it_is_over(
    world: World, period: str, reason: str
) -> None:
    if period == "2026-01":
        assert (await closed_by(world.control, period)).closed == len(NAMES)
        return
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await closed_by(world.control, period)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value) == (reason or "PERIOD_NOT_ENDED")


async def test_a_statement_that_is_not_there_is_not_found(world: World) -> None:
    for account_id, reason in (("billed", "PERIOD_NOT_CLOSED"), ("nobody", "ACCOUNT_NOT_FOUND")):
        request = statements_pb2.GetStatementRequest(account_id=account_id, period="2026-03")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.pricing.GetStatement(request, timeout=TIMEOUT_S)
        assert reason_of(refused.value) == reason


async def test_the_commands_close_and_write_what_is_there(
    world: World, stack: Stack, tmp_path: Path
) -> None:
    async def run(*arguments: str) -> tuple[int, str]:
        environment = {"TOLLBOOK_PRICING_ADDRESS": stack.address("pricing-server")}
        found = await asyncio.to_thread(CliRunner().invoke, root, arguments, env=environment)
        return found.exit_code, found.output

    code, said = await run("period", "close", "2026-02")
    assert code == 0
    assert "closed for 3 accounts, open for 0" in said
    code, said = await run("statements", "list", "billed")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["2026-02", "2026-01"]
    code, said = await run("statements", "write", "billed", "2026-01", str(tmp_path))
    assert code == 0
    assert [line.partition("2026-01.")[2] for line in said.splitlines()] == [
        "json",
        "html",
        "pdf",
        "focus.csv",
        "focus.parquet",
    ]
    document = (tmp_path / "billed-2026-01.json").read_bytes()
    newest = (await statements_of(world, "billed"))[-1]
    assert hashlib.sha256(document).digest() == newest.statement_hash
    assert (tmp_path / "billed-2026-01.pdf").read_bytes().startswith(b"%PDF-")
    rows = list(csv.DictReader((tmp_path / "billed-2026-01.focus.csv").open(newline="")))
    assert [(row["ChargeCategory"], row["PricingUnit"]) for row in rows] == [
        ("Usage", "token"),
        ("Adjustment", ""),
    ]
    billed = sum(Decimal(row["BilledCost"]) for row in rows)
    assert billed * PICO == int(newest.invoiced.amount_pico)
