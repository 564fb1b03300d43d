"""Pricing on the real parts: broker, database, ledger and pricing's own two processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import psutil
import pytest
from google.rpc import error_details_pb2
from tests.integration.deadlines import told_in_time
from tests.integration.free_port import free_port
from tests.integration.pricing_world import (
    CARD,
    PARTS,
    TIMEOUT_S,
    World,
    again,
    charge,
    check_balance,
    reason_of,
)

from kernel import grpcs
from kernel.ids import new_id
from kernel.money import PICO
from kernel.placement import partition_of, usage_log
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2
from tollbook.stack import PartFailed, Stack, running_stack
from tollbook.stack.ports import HOST
from tollbook.usage.v1 import usage_pb2

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(parts=PARTS) as running:
        yield running


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    """The module's stack with the shared card, whole again if an earlier test left it in pieces."""
    stack.up(PARTS)
    async with World(stack) as made:
        await again(lambda: made.publish(CARD.format(card="standard", model="tiny")))
        yield made


async def refused(call: Awaitable[Any], code: grpc.StatusCode, reason: str) -> grpc.aio.AioRpcError:
    """The call's error, which has this code and reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    assert reason_of(caught.value) == reason
    return caught.value


# Charges and waiting --------------------------------------------------------------------


async def test_usage_becomes_an_exact_charge(world: World) -> None:
    await world.open("acme")
    await world.use("acme", plain=1_000, cached=333, output=77)
    await world.use(
        "acme", plain=7, output=50, undelivered=20, outcome=usage_pb2.OUTCOME_ENGINE_LOST
    )
    await world.use(
        "acme", plain=7, output=50, undelivered=20, outcome=usage_pb2.OUTCOME_CLIENT_ABORT
    )
    await world.use("acme", plain=9, outcome=usage_pb2.OUTCOME_ERROR_BEFORE_FIRST_TOKEN)
    last = await world.use("acme", output=1)
    answer = await world.balance("acme", event_id=last)
    check_balance(answer.balance, world.accounts["acme"])
    at = {item.log: item.size for item in answer.positions}
    assert at[usage_log(partition_of("acme", 4))] >= 5
    await world.check()


async def test_an_event_sent_twice_is_charged_once(world: World) -> None:
    await world.open("twice")
    event_id = await world.use("twice", output=10)
    expected = world.accounts["twice"].charged
    # The same words by another record: a repeat. Other words under the id: a conflict.
    await world.use("twice", output=10, event_id=event_id)
    await world.use("twice", output=11, event_id=event_id)
    account = world.accounts["twice"]
    account.charged, account.requests, account.output_tokens = expected, 1, 10
    await world.check()


def balance_within(
    world: World, request: pricing_pb2.GetBalanceRequest, timeout_s: float
) -> Awaitable[pricing_pb2.GetBalanceResponse]:
    answer: Awaitable[pricing_pb2.GetBalanceResponse] = world.pricing.GetBalance(
        request, timeout=timeout_s
    )
    return answer


async def test_a_balance_waits_for_a_position_and_says_when_it_was_not_reached(
    world: World,
) -> None:
    await world.open("patient")
    log = usage_log(partition_of("patient", 4))
    size = (await world.sizes()).get(log, 0)
    wanted = pricing_pb2.LogPosition(log=log, size=size + 1)
    request = pricing_pb2.GetBalanceRequest(account_id="patient", wait_for=[wanted])
    by_id = pricing_pb2.GetBalanceRequest(account_id="patient", wait_for_event_id="not-yet")
    for asked, named in ((request, f"{log} {size + 1}"), (by_id, "not-yet")):
        error = await told_in_time(partial(balance_within, world, asked))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason_of(error) == "POSITION_NOT_REACHED"
        assert named in (error.details() or "")

    waiting = [
        asyncio.ensure_future(balance_within(world, asked, TIMEOUT_S)) for asked in (request, by_id)
    ]
    await world.use("patient", output=5, event_id="not-yet")
    for answer in await asyncio.gather(*waiting):
        check_balance(answer.balance, world.accounts["patient"])
        assert {item.log: item.size for item in answer.positions}[log] >= size + 1


async def test_a_thousand_callers_wait_at_once_and_each_is_answered(world: World) -> None:
    names = [f"crowd-{number}" for number in range(10)]
    await world.open(*names)
    event_ids = [f"crowd-event-{number}" for number in range(200)]
    waiting = [
        asyncio.ensure_future(world.balance(names[number % 10], event_id=event_id))
        for number, event_id in enumerate(event_ids)
        for _ in range(5)
    ]
    for number, event_id in enumerate(event_ids):
        await world.use(names[number % 10], output=1, event_id=event_id)
    answers = await asyncio.gather(*waiting)
    assert len(answers) == 1_000
    await world.check()


async def test_rubbish_in_the_topic_costs_nobody_and_holds_nothing_up(world: World) -> None:
    await world.open("among-rubbish")
    for partition in range(4):
        await world.send_raw(partition, b"rubbish")
        await world.send_raw(partition, b"x" * 70_000)
    await world.use("among-rubbish", output=3)
    await world.check()


async def test_usage_of_many_accounts_is_exact(world: World) -> None:
    names = [f"many-{number}" for number in range(12)]
    await asyncio.gather(*(world.open(name) for name in names))
    for number in range(600):
        await world.use(
            names[number % 12], plain=number, cached=number // 3, output=1 + number * 7 % 90
        )
    await world.check()


# Changes --------------------------------------------------------------------------------


async def test_a_grant_counts_once(world: World) -> None:
    await world.open("once", amount_pico=7)
    again_at = await world.grant("once", 7, "welcome-once")
    assert again_at == await world.grant("once", 7, "welcome-once")
    await refused(
        world.grant("once", 8, "welcome-once"), grpc.StatusCode.ALREADY_EXISTS, "GRANT_EXISTS"
    )
    await world.create("other")
    await refused(
        world.grant("other", 7, "welcome-once"), grpc.StatusCode.ALREADY_EXISTS, "GRANT_EXISTS"
    )
    same = await asyncio.gather(*(world.grant("once", 11, "at-once") for _ in range(8)))
    assert len(set(same)) == 1
    world.accounts["once"].granted += 11
    await world.check()


async def test_of_rival_grants_under_one_id_one_wins(world: World) -> None:
    await world.create("rivals")
    results = await asyncio.gather(
        *(world.grant("rivals", amount, "rival") for amount in range(1, 9)), return_exceptions=True
    )
    won = [amount for amount, result in enumerate(results, 1) if isinstance(result, int)]
    lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert len(won) == 1
    assert len(lost) == 7
    assert {error.code() for error in lost} == {grpc.StatusCode.ALREADY_EXISTS}
    world.accounts["rivals"].granted += won[0]
    await world.check()


async def test_unknown_accounts_and_bad_words_are_refused_with_a_reason(world: World) -> None:
    missing, invalid = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
    nobody = pricing_pb2.GetBalanceRequest(account_id="nobody")
    await refused(world.pricing.GetBalance(nobody), missing, "ACCOUNT_NOT_FOUND")
    await refused(
        world.pricing.ListPostings(pricing_pb2.ListPostingsRequest(account_id="nobody")),
        missing,
        "ACCOUNT_NOT_FOUND",
    )
    await refused(world.grant("nobody", 1, "g-nobody"), missing, "ACCOUNT_NOT_FOUND")
    key = control_pb2.KeyCreated(key_id="k", account_id="nobody", secret_digest=b"0" * 32)
    await refused(
        world.control.CreateKey(pricing_pb2.CreateKeyRequest(key=key)), missing, "ACCOUNT_NOT_FOUND"
    )
    await refused(
        world.control.RevokeKey(pricing_pb2.RevokeKeyRequest(key_id="no-such-key")),
        missing,
        "KEY_NOT_FOUND",
    )
    await world.create("dollars")
    await refused(world.grant("dollars", 1, "g-euro", "EUR"), invalid, "CURRENCY_MISMATCH")
    for amount_pico in (0, -1, 10**31):
        await refused(world.grant("dollars", amount_pico, "g-bad"), invalid, "INVALID_FIELD")
    for account_id in ("Big", "a b", "", "x" * 65, "-a", "a\x00b"):
        made = control_pb2.AccountCreated(account_id=account_id, currency="USD")
        await refused(
            world.control.CreateAccount(pricing_pb2.CreateAccountRequest(account=made)),
            invalid,
            "INVALID_FIELD",
        )
    made = control_pb2.AccountCreated(account_id="dollars", currency="EUR")
    await refused(
        world.control.CreateAccount(pricing_pb2.CreateAccountRequest(account=made)),
        grpc.StatusCode.ALREADY_EXISTS,
        "ACCOUNT_EXISTS",
    )


async def test_a_key_resolves_until_it_is_revoked(world: World) -> None:
    await world.create("locksmith")
    digest = os.urandom(32)
    key = control_pb2.KeyCreated(
        key_id="front-door", account_id="locksmith", project_id="house", secret_digest=digest
    )
    request = pricing_pb2.CreateKeyRequest(key=key)
    first = await world.control.CreateKey(request)
    assert (await world.control.CreateKey(request)).position == first.position
    ask = pricing_pb2.ResolveKeyRequest(secret_digest=digest)
    found = await world.pricing.ResolveKey(ask)
    assert (found.key_id, found.account_id, found.project_id) == (
        "front-door",
        "locksmith",
        "house",
    )
    assert found.control_size > first.position
    for rival in (
        control_pb2.KeyCreated(
            key_id="front-door", account_id="locksmith", secret_digest=b"1" * 32
        ),
        control_pb2.KeyCreated(key_id="back-door", account_id="locksmith", secret_digest=digest),
    ):
        await refused(
            world.control.CreateKey(pricing_pb2.CreateKeyRequest(key=rival)),
            grpc.StatusCode.ALREADY_EXISTS,
            "KEY_EXISTS",
        )
    revoke = pricing_pb2.RevokeKeyRequest(key_id="front-door")
    gone = await world.control.RevokeKey(revoke)
    assert (await world.control.RevokeKey(revoke)).position == gone.position
    await refused(world.pricing.ResolveKey(ask), grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    await refused(world.control.CreateKey(request), grpc.StatusCode.ALREADY_EXISTS, "KEY_EXISTS")


async def test_records_that_came_by_another_door_cannot_move_a_balance(world: World) -> None:
    await world.open("safe")
    for number, amount in enumerate(("-5", "0", str(10**31), "1e9", "")):
        granted = control_pb2.CreditGranted(
            grant_id=f"raw-{number}",
            account_id="safe",
            amount=money_pb2.Amount(currency="USD", amount_pico=amount),
        )
        await world.append(f"raw-{new_id('x')}", {"credit_granted": granted})
    await world.append(
        f"raw-{new_id('x')}",
        {"rate_card_published": control_pb2.RateCardPublished(card_id="evil", document=b"{}")},
    )
    await world.ledger.Append(
        ledger_pb2.AppendRequest(
            log="control", idempotency_key=new_id("raw"), payload=b"\xff no record at all"
        )
    )
    await world.use("safe", output=4)
    await world.check()


# Rate cards -----------------------------------------------------------------------------


async def test_a_broken_card_is_refused_by_line(world: World) -> None:
    broken = CARD.format(card="broken", model="tiny").replace("0.60", "cheap")
    error = await refused(
        world.publish(broken), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_RATE_CARD"
    )
    bad = grpcs.details_of(error, error_details_pb2.BadRequest)
    assert bad is not None
    [violation] = bad.field_violations
    line = next(at for at, text in enumerate(broken.splitlines(), 1) if "cheap" in text)
    assert violation.field.startswith(f"line {line}, column ")
    assert "'cheap' is not a decimal number" in violation.description


async def test_a_card_is_versioned_by_its_content(world: World) -> None:
    card = CARD.format(card="versions", model="versioned")
    check = pricing_pb2.PublishRateCardRequest(yaml=card, validate_only=True)
    only_checked = await world.control.PublishRateCard(check)
    assert (only_checked.position, only_checked.card.version) == (-1, 1)
    first = await world.publish(card)
    assert (await world.publish(card)).position == first.position
    assert first.card.version == 1
    dearer = await world.publish(card.replace("0.60", "0.70"))
    assert dearer.card.version == 2
    # Back to the first content: a version of its own, since the second stood between.
    assert (await world.publish(card)).card.version == 3


async def test_of_rival_versions_one_is_published(world: World) -> None:
    card = CARD.format(card="contested", model="contested")
    results = await asyncio.gather(
        *(world.publish(card.replace("0.60", f"0.6{number}")) for number in range(6)),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            assert isinstance(result, grpc.aio.AioRpcError)
            assert result.code() is grpc.StatusCode.ALREADY_EXISTS
            assert reason_of(result) == "CARD_VERSION_EXISTS"
    versions = [
        result.card.version
        for result in results
        if isinstance(result, pricing_pb2.PublishRateCardResponse)
    ]
    assert versions
    assert sorted(versions) == list(range(1, len(versions) + 1))


async def test_of_tying_cards_published_at_once_one_comes_into_force(world: World) -> None:
    cards = [CARD.format(card=f"tie-{name}", model="tied") for name in "abc"]
    results = await asyncio.gather(*map(world.publish, cards), return_exceptions=True)
    refusals = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [reason_of(result) for result in refusals] == ["AMBIGUOUS"] * 2
    # Nor is a draft of such a card called sound.
    check = pricing_pb2.PublishRateCardRequest(
        yaml=CARD.format(card="tie-d", model="tied"), validate_only=True
    )
    await refused(
        world.control.PublishRateCard(check), grpc.StatusCode.FAILED_PRECONDITION, "AMBIGUOUS"
    )


async def test_a_card_too_large_for_a_leaf_prices_too(world: World, stack: Stack) -> None:
    """Its record stands aside in the ledger; a new projector has to read it there as well."""
    lines = "".join(
        f"  - {{id: l{number}, match: {{model: large-{number}, direction: out}},"
        f" per: 1000000, price: 0.60}}\n"
        for number in range(2_000)
    )
    card = CARD.format(card="large", model="large") + lines
    await world.publish(card)
    await world.open("large")
    event_id = await world.use("large", output=9, model="large-1999")
    await world.check()
    stack.kill("pricing-projector")
    stack.kill("pricing-server")
    for part in ("pricing-projector", "pricing-server"):
        stack.wait_ready(part)
    await world.use("large", output=9, model="large-7")
    await world.check()
    receipt = await again(
        lambda: world.pricing.GetReceipt(
            pricing_pb2.GetReceiptRequest(account_id="large", event_id=event_id), timeout=TIMEOUT_S
        )
    )
    assert receipt.receipt.lines[0].line_id == "l1999"


# Suspense and receipts ------------------------------------------------------------------


async def receipt_of(world: World, account_id: str, event_id: str) -> pricing_pb2.Receipt:
    request = pricing_pb2.GetReceiptRequest(account_id=account_id, event_id=event_id)
    answer = await world.pricing.GetReceipt(request, timeout=TIMEOUT_S)
    receipt: pricing_pb2.Receipt = answer.receipt
    return receipt


async def test_usage_without_a_price_waits_and_is_charged_once_priced(
    world: World, stack: Stack
) -> None:
    await world.open("early")
    account = world.accounts["early"]
    event_id = await world.use(
        "early", plain=10, cached=20, output=30, model="unpriced", priced=False
    )
    await world.use("early", output=1)
    await world.check()
    receipt = await receipt_of(world, "early", event_id)
    assert receipt.suspense
    assert receipt.total.amount_pico == "0"
    assert [line.HasField("card") for line in receipt.lines] == [False] * 3

    # It waits in the database: a projector that knows nothing of it releases it.
    stack.kill("pricing-projector")
    stack.wait_ready("pricing-projector")
    answer = await world.publish(CARD.format(card="late", model="unpriced"))
    account.charged += charge(10, 20, 30, 0, usage_pb2.OUTCOME_COMPLETE)
    account.waiting = 0
    await world.check()
    receipt = await receipt_of(world, "early", event_id)
    assert not receipt.suspense
    assert Fraction(receipt.total.amount_pico) == charge(10, 20, 30, 0, usage_pb2.OUTCOME_COMPLETE)
    assert {line.card.card_id for line in receipt.lines} == {"late"}
    assert receipt.control_size <= answer.position
    listed = await world.pricing.ListPostings(pricing_pb2.ListPostingsRequest(account_id="early"))
    kinds = [posting.kind for posting in listed.postings]
    assert kinds == ["suspense"] * 3 + ["usage", "grant"]


async def test_usage_of_an_account_that_comes_later_waits_for_it(world: World) -> None:
    await world.use("unborn", plain=5, output=6, priced=False)
    await world.recorded()
    await world.create("unborn")
    account = world.accounts["unborn"]
    account.charged, account.waiting = charge(5, 0, 6, 0, usage_pb2.OUTCOME_COMPLETE), 0
    await world.check()


async def test_a_receipt_tells_every_line_and_adds_up(world: World) -> None:
    await world.open("receipts")
    event_id = await world.use(
        "receipts",
        plain=100,
        cached=200,
        output=50,
        undelivered=20,
        outcome=usage_pb2.OUTCOME_ENGINE_LOST,
    )
    await world.balance("receipts", event_id=event_id)
    receipt = await receipt_of(world, "receipts", event_id)
    assert receipt.log == usage_log(partition_of("receipts", 4))
    assert receipt.served_model == "tiny"
    assert receipt.outcome == usage_pb2.OUTCOME_ENGINE_LOST
    assert [
        (line.line_id, line.leaf.amount, line.charged_quantity, line.outcome_rule)
        for line in receipt.lines
    ] == [
        ("in", 100, 100, "delivered"),
        ("cached", 200, 200, "delivered"),
        ("out", 50, 30, "delivered"),
    ]
    for line in receipt.lines:
        assert (line.card.card_id, len(line.card.content_hash)) == ("standard", 32)
        assert int(line.amount.amount_pico) == line.charged_quantity * int(line.unit_price_pico)
    total = sum(int(line.amount.amount_pico) for line in receipt.lines)
    assert int(receipt.total.amount_pico) == total
    assert total == world.accounts["receipts"].charged
    # The entry it stands on is the log's.
    entry = await world.ledger.GetEntry(
        ledger_pb2.GetEntryRequest(log=receipt.log, position=receipt.position)
    )
    assert entry.control_size == receipt.control_size
    assert event_id.encode() in entry.leaf
    for account_id, wanted in (("receipts", "no-such-event"), ("acme", event_id)):
        request = pricing_pb2.GetReceiptRequest(account_id=account_id, event_id=wanted)
        await refused(
            world.pricing.GetReceipt(request), grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND"
        )


MONTHLY = """
card: monthly
currency: USD
effective_from: 2026-01-01T00:00:00Z
accounts: [months]
lines:
  - id: out
    match: {model: tiny, direction: out}
    per: 1_000_000
    price: 2.00
    included: 500
    tiers: {by: monthly_volume, mode: graduated, steps: [{over: 3_000, price: 1.00}]}
"""


async def test_a_month_is_counted_on_through_a_crash_and_its_receipts_add_up(
    world: World, stack: Stack
) -> None:
    await world.publish(MONTHLY)
    await world.open("months")
    event_ids = [await world.use("months", output=400) for _ in range(6)]
    await world.balance("months", event_id=event_ids[-1])
    stack.kill("pricing-projector")
    event_ids += [await world.use("months", output=400) for _ in range(6)]
    await world.balance("months", event_id=event_ids[-1])
    # 500 free, up to number 3,000 for 2, the other 1,800 of 4,800 for 1, each in millionths.
    expected_pico = (2_500 * 2 + 1_800) * PICO // 10**6
    world.accounts["months"].charged = Fraction(expected_pico)
    await world.check()
    receipts = [await receipt_of(world, "months", event_id) for event_id in event_ids]
    assert [int(receipt.total.amount_pico) * 10**6 // PICO for receipt in receipts] == [
        *(0, 600, 800, 800, 800, 800, 800),
        *(600, 400, 400, 400, 400),
    ]
    assert {line.period for receipt in receipts for line in receipt.lines} != {""}
    assert sum(int(receipt.total.amount_pico) for receipt in receipts) == expected_pico


async def test_postings_come_in_pages_and_add_up(world: World) -> None:
    await world.open("pages")
    for number in range(25):
        # One step each, so that there is something to page through.
        await world.balance("pages", event_id=await world.use("pages", output=1 + number))
    found: list[pricing_pb2.Posting] = []
    token = ""
    while True:
        page = await world.pricing.ListPostings(
            pricing_pb2.ListPostingsRequest(account_id="pages", page_size=7, page_token=token)
        )
        assert len(page.postings) <= 7
        found += page.postings
        token = page.next_page_token
        if not token:
            break
    ids = [posting.posting_id for posting in found]
    assert ids == sorted(set(ids), reverse=True)
    usage = [posting for posting in found if posting.kind == "usage"]
    assert len(usage) == 25
    assert sum(posting.quantity for posting in usage) == sum(range(1, 26))
    charged = sum(int(posting.amount.amount_pico) for posting in usage)
    assert charged == world.accounts["pages"].charged
    assert {(posting.debit_account, posting.credit_account) for posting in usage} == {
        ("account:pages", "revenue:pages")
    }
    await refused(
        world.pricing.ListPostings(
            pricing_pb2.ListPostingsRequest(account_id="pages", page_token="next please")
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    )


# Cuts -----------------------------------------------------------------------------------


async def test_a_cut_says_what_a_replay_of_its_logs_gives(world: World) -> None:
    await world.open("cutter")
    for number in range(40):
        await world.use("cutter", plain=number, output=number)
    wait_for = await world.recorded()
    answer = await world.control.CreateCut(
        pricing_pb2.CreateCutRequest(wait_for=wait_for), timeout=TIMEOUT_S
    )
    sizes = {part.log: part.size for part in answer.cut.logs}
    assert all(sizes[item.log] >= item.size for item in wait_for)
    assert "cuts" not in sizes
    replay = await world.replay({log: size for log, size in sizes.items() if size})
    assert replay.digest() == answer.cut.balances_digest
    tokens = sum(totals.output_tokens for totals in replay.totals.values())
    assert answer.cut.conservation.event_tokens == tokens
    for part in answer.cut.logs:
        proof = await world.ledger.GetConsistencyProof(
            ledger_pb2.GetConsistencyProofRequest(
                log=part.log, first_size=part.size, second_size=part.size
            )
        )
        assert proof.first_root == part.root
    entry = await world.ledger.GetEntry(
        ledger_pb2.GetEntryRequest(log="cuts", position=answer.position)
    )
    assert answer.cut.SerializeToString(deterministic=True) in entry.leaf


# Faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", ["pricing-projector", "pricing-server", "ledger-server", "ledger-worker", "postgres"]
)
async def test_a_part_killed_under_load_costs_no_unit(
    world: World, stack: Stack, part: str
) -> None:
    names = [f"{part}-{number}" for number in range(6)]
    await world.open(*names)
    for number in range(300):
        if number in (100, 200):
            stack.wait_ready(part)
            stack.kill(part)
        await world.use(names[number % 6], plain=number, cached=3, output=number % 50)
    await again(lambda: world.grant(names[0], 13, f"after-{part}"))
    world.accounts[names[0]].granted += 13
    await world.check()
    stack.wait_ready(part)


@contextmanager
def another_projector(stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """A second projector, beside the stack's own."""
    settings = {**stack.environment(), "TOLLBOOK_HEALTH_ADDRESS": f"{HOST}:{free_port()}"}
    with stack.log_file("another-projector").open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "pricing.entrypoints.projector"],
            env={**os.environ, **settings},
            stderr=output,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def epoch_of(stack: Stack) -> int:
    """How many times a projector took over."""
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        epoch: int = await db.fetchval("SELECT epoch FROM pricing.projector")
        return epoch
    finally:
        await db.close()


async def until_it_leads(stack: Stack, pid: int) -> int:
    """Wait until a projector has the lease; gives the epoch. Who asks first when it is free has it,
    so another one may have had it before.
    """
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while True:
            found = await db.fetchrow(
                "SELECT p.epoch, a.client_port FROM pricing.projector p"
                " JOIN pg_stat_activity a ON a.pid = p.backend_pid"
            )
            ports = {one.laddr.port for one in psutil.Process(pid).net_connections("tcp")}
            if found is not None and found["client_port"] in ports:
                return int(found["epoch"])
            assert time.monotonic() < deadline, f"the projector {pid} does not get the lease"
            await asyncio.sleep(0.05)
    finally:
        await db.close()


async def wait_for_epoch(stack: Stack, above: int) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while (epoch := await epoch_of(stack)) <= above:
        assert time.monotonic() < deadline, f"nobody took over from epoch {above}"
        await asyncio.sleep(0.05)
    return epoch


async def wait_until_it_waits(stack: Stack) -> None:
    """The second projector is up and found the lease taken."""
    deadline = time.monotonic() + TIMEOUT_S
    while (
        "another projector holds the lease" not in stack.log_file("another-projector").read_text()
    ):
        assert time.monotonic() < deadline, "the second projector does not wait"
        await asyncio.sleep(0.05)


async def test_a_second_projector_waits_and_takes_over_from_a_killed_or_a_paused_one(
    world: World, stack: Stack
) -> None:
    names = [f"pair-{number}" for number in range(4)]
    await world.open(*names)

    async def use(times: int) -> None:
        for number in range(times):
            await world.use(names[number % 4], plain=number, output=number)

    with another_projector(stack):
        await wait_until_it_waits(stack)
        epoch = await epoch_of(stack)
        await use(60)
        await world.check()
        assert await epoch_of(stack) == epoch

        stack.kill("pricing-projector")
        await use(60)
        await world.check()
        await wait_for_epoch(stack, epoch)

    # The second is gone; the stack's own has the lease again.
    await asyncio.to_thread(stack.wait_ready, "pricing-projector")
    paused = stack.process("pricing-projector")
    epoch = await until_it_leads(stack, paused.pid)
    await use(20)
    await world.check()
    with another_projector(stack):
        paused.send(signal.SIGSTOP)
        try:
            # Its session is alive and holds the lease; nobody renews it.
            await use(40)
            await wait_for_epoch(stack, epoch)
            await world.check()
        finally:
            paused.send(signal.SIGCONT)
        # It wakes, finds that it was replaced, and writes nothing.
        await use(40)
        await world.check()
    await use(20)
    await world.check()


async def test_everything_killed_at_once_comes_back_with_every_unit(
    world: World, stack: Stack
) -> None:
    names = [f"all-{number}" for number in range(4)]
    await world.open(*names)
    for number in range(80):
        await world.use(names[number % 4], plain=number, output=number)
    stack.kill_all()
    stack.up(PARTS)
    for number in range(80):
        await world.use(names[number % 4], plain=number, output=number)
    await world.check()


async def test_an_auditor_agrees_with_every_cut_after_all_of_the_above(
    world: World, stack: Stack, tmp_path: Path
) -> None:
    """From the exported files and the keys alone: roots, digests, balances."""
    await world.open("audited")
    for number in range(20):
        await world.use("audited", plain=number, output=number)
        if number % 7 == 0:
            await world.control.CreateCut(
                pricing_pb2.CreateCutRequest(wait_for=await world.recorded()), timeout=TIMEOUT_S
            )
    await world.check()
    tollbook = [sys.executable, "-m", "tollbook.cli"]
    environment = {**os.environ, **stack.environment()}
    keys = environment["TOLLBOOK_VERIFIER_KEYS"]
    export = str(tmp_path / "export")
    for command in (["export", export], ["audit", export, "--key", keys]):
        done = await asyncio.to_thread(
            subprocess.run,
            [*tollbook, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr


async def test_nothing_unforeseen_happened(stack: Stack) -> None:
    """After all of the above: no defect, no traceback in what pricing wrote."""
    for part in ("pricing-server", "pricing-projector", "another-projector"):
        lines = stack.log_file(part).read_text().splitlines()
        assert [
            line[:6_000] for line in lines if "Traceback" in line or "unexpectedly" in line
        ] == []


async def watch_it_run(stack: Stack) -> None:
    """Errors: PartFailed when it gives up; it may be ready for the moment before it has read."""
    stack.release("pricing-projector")
    deadline = time.monotonic() + 2 * TIMEOUT_S
    while time.monotonic() < deadline:
        stack.wait_ready("pricing-projector")
        await asyncio.sleep(0.05)


@pytest.mark.timeout(600)  # five starts before it gives up, each as long as the machine takes
async def test_a_log_that_lost_its_end_stops_the_projector_with_a_clear_word(
    world: World, stack: Stack
) -> None:
    """The last test: it spoils the projection, which believes to have read more than there is."""
    stack.hold("pricing-projector")
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_PRICING_POSTGRES"])
    try:
        await db.execute("UPDATE pricing.log_position SET size = size + 1000")
    finally:
        await db.close()
    with pytest.raises(PartFailed, match="pricing-projector"):
        await watch_it_run(stack)
    last = json.loads(stack.log_file("pricing-projector").read_text().splitlines()[-1])
    assert last["event"] == "cannot go on"
    assert "no longer reaches position" in last["error"]
