"""A card's life on the real parts: who may, when it counts, and how a mistake is set right."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest
from bench import trickle_load, usage_load
from tests.integration.pricing_world import (
    PARTS,
    T0_US,
    TIMEOUT_S,
    Metadata,
    World,
    again,
    reason_of,
)
from tests.integration.test_pricing import refused

from kernel.clock import timestamp_of
from pricing.domain.events import read_event
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import cards_pb2, control_pb2, pricing_pb2
from tollbook.stack import Stack, running_stack

pytestmark = pytest.mark.integration

DAY_US = 86_400_000_000


class House(NamedTuple):
    """A stack with operators, and what their calls carry."""

    world: World
    admin: Metadata
    ann: Metadata
    ben: Metadata


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(parts=PARTS) as running:
        yield running


@pytest.fixture
async def house(stack: Stack) -> AsyncIterator[House]:
    stack.up(PARTS)
    async with World(stack) as world:
        admin = await again(lambda: world.operator("root", "admin"))
        yield House(
            world,
            admin,
            await world.operator("ann", "author", "approver", by=admin),
            await world.operator("ben", "approver", "author", by=admin),
        )


def card(name: str, model: str, price: str, start: str = "2026-01-01T00:00:00Z") -> str:
    lines = "".join(
        f"  - {{id: {way}, match: {{model: {model}, direction: {way}}},"
        f" per: 1000000, price: {price}}}\n"
        for way in ("in", "out")
    )
    return f"card: {name}\ncurrency: USD\neffective_from: {start}\nlines:\n{lines}"


async def propose(house: House, yaml: str, by: Metadata) -> cards_pb2.ProposeRateCardResponse:
    answer: cards_pb2.ProposeRateCardResponse = await house.world.cards.ProposeRateCard(
        cards_pb2.ProposeRateCardRequest(yaml=yaml, reason="test"), timeout=TIMEOUT_S, metadata=by
    )
    return answer


async def approve(
    house: House, card_id: str, version: int, by: Metadata, **more: Any
) -> cards_pb2.ApproveRateCardResponse:
    answer: cards_pb2.ApproveRateCardResponse = await house.world.cards.ApproveRateCard(
        cards_pb2.ApproveRateCardRequest(card_id=card_id, version=version, **more),
        timeout=TIMEOUT_S,
        metadata=by,
    )
    return answer


async def receipt(world: World, account_id: str, event_id: str) -> pricing_pb2.Receipt:
    await world.balance(account_id, event_id=event_id)
    answer = await world.pricing.GetReceipt(
        pricing_pb2.GetReceiptRequest(account_id=account_id, event_id=event_id), timeout=TIMEOUT_S
    )
    found: pricing_pb2.Receipt = answer.receipt
    return found


async def history(world: World, card_id: str, **times: Any) -> list[tuple[int, str, int]]:
    """(version, status, number of steps) of a card."""
    answer = await world.cards.GetRateCardHistory(
        cards_pb2.GetRateCardHistoryRequest(card_id=card_id, **times), timeout=TIMEOUT_S
    )
    return [
        (
            version.card.version,
            cards_pb2.RateCardStatus.Name(version.status).removeprefix("RATE_CARD_STATUS_"),
            len(version.steps),
        )
        for version in answer.versions
    ]


# Who may ------------------------------------------------------------------------------------


async def test_without_a_key_nobody_changes_a_price(house: House) -> None:
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    yaml = card("locked", "locked", "1")
    await refused(propose(house, yaml, ()), unauthenticated, "NO_OPERATOR_KEY")
    wrong = (("authorization", "Bearer guess"),)
    await refused(propose(house, yaml, wrong), unauthenticated, "UNKNOWN_OPERATOR")
    denied = grpc.StatusCode.PERMISSION_DENIED
    await refused(propose(house, yaml, house.admin), denied, "ROLE_MISSING")


async def test_the_author_does_not_approve_and_another_does(house: House) -> None:
    made = await propose(house, card("two", "two", "1"), house.ann)
    assert made.card.version == 1
    denied = grpc.StatusCode.PERMISSION_DENIED
    await refused(approve(house, "two", 1, house.ann), denied, "AUTHOR_APPROVES")
    again_made = await propose(house, card("two", "two", "1"), house.ann)
    assert again_made == made
    first = await approve(house, "two", 1, house.ben)
    assert first.card == made.card
    assert await approve(house, "two", 1, house.ben) == first
    assert await history(house.world, "two") == [(1, "ACTIVE", 2)]


async def test_a_one_step_publication_ends_with_the_first_operator(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.world.publish(card("alone", "alone", "1"))
    assert "operators" in (caught.value.details() or "")
    # Nor does a record that passed the service by: every reader of the log refuses it.
    made = await propose(house, card("forged", "forged", "1"), house.ann)
    forged = control_pb2.ControlRecord()
    forged.rate_card_approved.card_id = "forged"
    forged.rate_card_approved.version = 1
    forged.rate_card_approved.content_hash = made.card.content_hash
    forged.rate_card_approved.approver = "ann"
    await house.world.append("forged", {"rate_card_approved": forged.rate_card_approved})
    assert await history(house.world, "forged") == [(1, "PROPOSED", 1)]


async def test_a_revoked_operator_may_nothing(house: House) -> None:
    world = house.world
    cleo = await world.operator("cleo", "author", by=house.admin)
    await propose(house, card("cleos", "cleos", "1"), cleo)
    revoke = cards_pb2.RevokeOperatorRequest(operator_id="cleo")
    first = await world.operators.RevokeOperator(revoke, timeout=TIMEOUT_S, metadata=house.admin)
    assert first == await world.operators.RevokeOperator(
        revoke, timeout=TIMEOUT_S, metadata=house.admin
    )
    await refused(
        propose(house, card("cleos", "cleos", "2"), cleo),
        grpc.StatusCode.UNAUTHENTICATED,
        "UNKNOWN_OPERATOR",
    )
    await refused(
        world.operators.RevokeOperator(
            cards_pb2.RevokeOperatorRequest(operator_id="root"),
            timeout=TIMEOUT_S,
            metadata=house.admin,
        ),
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOT_APPLIED",
    )
    listed = await world.operators.ListOperators(
        cards_pb2.ListOperatorsRequest(), timeout=TIMEOUT_S
    )
    assert {one.operator_id: one.revoked for one in listed.operators}["cleo"]


# When it counts -----------------------------------------------------------------------------


async def test_a_proposal_prices_nothing_and_an_approval_what_comes_next(house: House) -> None:
    world = house.world
    await world.open("eager")
    await propose(house, card("eager", "eager", "2"), house.ann)
    waits = await world.use("eager", model="eager", output=10, priced=False)
    assert (await receipt(world, "eager", waits)).suspense
    await approve(house, "eager", 1, house.ben)
    priced = await world.use("eager", model="eager", output=10, priced=False)
    found = await receipt(world, "eager", priced)
    assert [(line.card.version, line.amount.amount_pico) for line in found.lines] == [
        (1, str(20 * 10**6))
    ]
    # What waited is released by the approval.
    assert not (await receipt(world, "eager", waits)).suspense


async def test_a_scheduled_version_prices_from_its_instant_on(house: House) -> None:
    world = house.world
    await world.open("sched")
    await world.change_card(card("sched", "sched", "1"), house.ann, house.ben)
    await propose(house, card("sched", "sched", "3"), house.ann)
    starts_us = T0_US + 10 * DAY_US
    answer = await approve(house, "sched", 2, house.ben, effective_from=timestamp_of(starts_us))
    assert answer.effective_from == timestamp_of(starts_us)
    before = await world.use("sched", model="sched", output=1, at_us=starts_us - 1, priced=False)
    after = await world.use("sched", model="sched", output=1, at_us=starts_us, priced=False)
    assert (await receipt(world, "sched", before)).lines[0].card.version == 1
    assert (await receipt(world, "sched", after)).lines[0].card.version == 2
    at = {"effective_at": timestamp_of(starts_us - 1)}
    assert await history(world, "sched", **at) == [(1, "ACTIVE", 2), (2, "SCHEDULED", 2)]
    at = {"effective_at": timestamp_of(starts_us)}
    assert await history(world, "sched", **at) == [(1, "SUPERSEDED", 2), (2, "ACTIVE", 2)]


async def test_a_retired_version_gives_way_and_a_retired_card_prices_nothing(house: House) -> None:
    world = house.world
    await world.open("gone")
    await world.change_card(card("gone", "gone", "1"), house.ann, house.ben)
    await world.change_card(card("gone", "gone", "9"), house.ann, house.ben)
    ends_us = T0_US + DAY_US
    retire = cards_pb2.RetireRateCardRequest(
        card_id="gone", version=2, effective_to=timestamp_of(ends_us)
    )
    early = await world.use("gone", model="gone", output=1, at_us=ends_us, priced=False)
    assert (await receipt(world, "gone", early)).lines[0].card.version == 2
    await world.cards.RetireRateCard(retire, timeout=TIMEOUT_S, metadata=house.ben)
    before = await world.use("gone", model="gone", output=1, at_us=ends_us - 1, priced=False)
    after = await world.use("gone", model="gone", output=1, at_us=ends_us, priced=False)
    assert (await receipt(world, "gone", before)).lines[0].card.version == 2
    assert (await receipt(world, "gone", after)).lines[0].card.version == 1
    # What was pinned before the retirement keeps its price.
    assert (await receipt(world, "gone", early)).lines[0].card.version == 2
    whole = cards_pb2.RetireRateCardRequest(card_id="gone", effective_to=timestamp_of(ends_us))
    await world.cards.RetireRateCard(whole, timeout=TIMEOUT_S, metadata=house.ben)
    none = await world.use("gone", model="gone", output=1, at_us=ends_us, priced=False)
    assert (await receipt(world, "gone", none)).suspense
    assert await history(world, "gone") == [(1, "RETIRED", 3), (2, "RETIRED", 3)]


async def test_what_was_believed_when_has_one_answer(house: House) -> None:
    world = house.world
    await world.change_card(card("belief", "belief", "1"), house.ann, house.ben)
    await asyncio.sleep(0.005)  # so that the log's clock, of milliseconds, moves on
    between_us = time.time_ns() // 1000
    await asyncio.sleep(0.005)
    await world.change_card(card("belief", "belief", "2"), house.ann, house.ben)

    async def price(**times: Any) -> set[tuple[int, str]]:
        answer = await world.cards.ListPrices(
            cards_pb2.ListPricesRequest(model="belief", **times), timeout=TIMEOUT_S
        )
        return {(one.card.version, one.unit_price.amount_pico) for one in answer.prices}

    assert await price() == {(2, str(2 * 10**6))}
    assert await price(known_at=timestamp_of(between_us)) == {(1, str(10**6))}
    early = timestamp_of(T0_US - 1)
    assert await price(effective_at=early) == set()
    assert await price(known_at=timestamp_of(T0_US)) == set()
    known = {"known_at": timestamp_of(between_us)}
    assert await history(world, "belief", **known) == [(1, "ACTIVE", 2)]


# Looking ------------------------------------------------------------------------------------


async def test_a_difference_is_told_line_by_line(house: House) -> None:
    world = house.world
    await world.change_card(card("differs", "differs", "1"), house.ann, house.ben)
    yaml = card("differs", "differs", "2").replace("id: in,", "id: into,")
    answer = await world.cards.DiffRateCard(
        cards_pb2.DiffRateCardRequest(yaml=yaml), timeout=TIMEOUT_S
    )
    assert answer.base.version == 1
    assert [(one.line_id, one.field, one.factor) for one in answer.changes] == [
        ("into", "", ""),
        ("out", "price", "2"),
        ("in", "", ""),
    ]
    assert answer.changes[1].before == "0.000001"
    assert answer.changes[1].after == "0.000002"


async def test_validation_names_places_and_what_is_odd(house: House) -> None:
    world = house.world
    await world.open("odd")
    await world.change_card(card("odd", "odd", "1"), house.ann, house.ben)
    await world.use("odd", model="odd-unknown", output=5, priced=False)
    await world.recorded()

    async def findings(yaml: str) -> list[cards_pb2.Finding]:
        answer = await world.cards.ValidateRateCard(
            cards_pb2.ValidateRateCardRequest(yaml=yaml), timeout=TIMEOUT_S
        )
        return list(answer.findings)

    broken = await findings(card("odd", "odd", "-1"))
    assert {(one.severity, one.line) for one in broken} == {(cards_pb2.SEVERITY_ERROR, 5), (1, 6)}
    dear = await findings(
        card("odd", "odd", "1").replace("per: 1000000, price: 1}\n", "price: 1}\n", 1)
    )
    typo = [one for one in dear if one.reason == "UNIT_TYPO"]
    assert [(one.line, one.severity) for one in typo] == [(5, cards_pb2.SEVERITY_WARNING)]
    assert "1000000 times" in typo[0].message
    assert "odd-unknown" in " ".join(one.message for one in dear if one.reason == "UNPRICED_IN_USE")
    no_output = "\n".join(card("odd", "odd", "1").splitlines()[:5]) + "\n"
    gaps = [one.message for one in await findings(no_output) if one.reason == "GAP"]
    assert any("'out'" in message and "suspense" in message for message in gaps)
    twin = await findings(card("even", "odd", "1"))
    tied = [one for one in twin if one.severity == cards_pb2.SEVERITY_ERROR]
    assert {one.reason for one in tied} == {"AMBIGUOUS"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.world.cards.ProposeRateCard(
            cards_pb2.ProposeRateCardRequest(yaml=card("even", "odd", "1")),
            metadata=house.ann,
            timeout=TIMEOUT_S,
        )
    assert reason_of(refused.value) == "AMBIGUOUS"


async def test_of_tying_cards_approved_at_once_one_comes_into_force(house: House) -> None:
    names = ("tie-a", "tie-b", "tie-c")
    for name in names:
        await propose(house, card(name, "contested", "1"), house.ann)
    answers = await asyncio.gather(
        *(approve(house, name, 1, house.ben) for name in names), return_exceptions=True
    )
    refusals = [found for found in answers if isinstance(found, grpc.aio.AioRpcError)]
    assert [reason_of(found) for found in refusals] == ["AMBIGUOUS"] * 2
    statuses = [(await history(house.world, name))[0][1] for name in names]
    assert sorted(statuses) == ["ACTIVE", "PROPOSED", "PROPOSED"]


async def test_a_preview_comes_to_what_would_be_charged(house: House) -> None:
    world = house.world
    await world.open("pre-a", "pre-b")
    await world.change_card(card("pre", "pre", "1"), house.ann, house.ben)
    await world.use("pre-a", model="pre", output=1_000, priced=False)
    await world.use("pre-b", model="pre", plain=500, priced=False)
    await world.recorded()
    yaml = (
        card("pre", "pre", "1")
        .replace("price: 1}\n", "price: 4}\n", 1)
        .replace(
            "{model: pre, direction: out}, per: 1000000, price: 1", "{model: pre-other}, price: 1"
        )
    )
    answer = await world.cards.PreviewRateCard(
        cards_pb2.PreviewRateCardRequest(yaml=yaml), timeout=TIMEOUT_S
    )
    losers = {one.name: (one.before.amount_pico, one.after.amount_pico) for one in answer.losers}
    winners = {one.name: (one.before.amount_pico, one.after.amount_pico) for one in answer.winners}
    assert losers == {"pre-b": (str(500 * 10**6), str(2_000 * 10**6))}
    assert winners == {"pre-a": (str(1_000 * 10**6), "0")}
    assert [(one.model, one.leaf, one.entries) for one in answer.newly_unpriced] == [
        ("pre", "token out", 1)
    ]
    assert list(answer.unmatched_lines) == ["out"]
    assert [one.name for one in answer.models] == ["pre"]
    total = answer.totals[0]
    assert int(total.after.amount_pico) - int(total.before.amount_pico) == 500 * 10**6
    assert answer.events >= 2
    # Nothing was recorded, and nothing was charged.
    assert await history(world, "pre") == [(1, "ACTIVE", 2)]


# A mistake and its repair -------------------------------------------------------------------


async def test_a_wrong_price_is_set_right_by_entries_of_its_own(house: House) -> None:
    world = house.world
    await world.open("hurt", "fine", amount_pico=10**15)
    await world.change_card(card("err", "err", "1"), house.ann, house.ben)
    early = await world.use("hurt", model="err", output=7, priced=False)
    await world.recorded()
    await world.balance("hurt", event_id=early)
    await world.change_card(card("err", "err", "1000"), house.ann, house.ben)
    wrong = await world.use("hurt", model="err", output=100, priced=False)
    late = await world.use("hurt", model="err", output=3, at_us=T0_US + DAY_US, priced=False)
    await world.balance("hurt", event_id=late)
    await world.balance("hurt", event_id=wrong)
    await world.change_card(card("err", "err", "2"), house.ann, house.ben)
    plan = cards_pb2.PlanRerateRequest(
        rerate_id="repair",
        card_id="err",
        event_from=timestamp_of(T0_US),
        event_to=timestamp_of(T0_US + DAY_US),
    )
    answer = await world.cards.PlanRerate(plan, timeout=TIMEOUT_S, metadata=house.ann)
    # The early one was charged 1 and is rated again by what is right now, as the wrong one is.
    change = 7 * (2 - 1) * 10**6 + 100 * (2 - 1000) * 10**6
    total = answer.totals[0]
    assert int(total.after.amount_pico) - int(total.before.amount_pico) == change
    assert [one.name for one in answer.accounts] == ["hurt"]
    before = (await world.balance("hurt")).balance
    again_planned = await world.cards.PlanRerate(plan, timeout=TIMEOUT_S, metadata=house.ann)
    assert again_planned == answer
    post = cards_pb2.PostRerateRequest(rerate_id="repair")
    await refused(
        world.cards.PostRerate(post, timeout=TIMEOUT_S, metadata=house.ann),
        grpc.StatusCode.PERMISSION_DENIED,
        "PLANNER_POSTS",
    )
    posted = await world.cards.PostRerate(post, timeout=TIMEOUT_S, metadata=house.ben)
    assert (posted.batches_posted, posted.batches) == (1, 1)
    repeated = await world.cards.PostRerate(post, timeout=TIMEOUT_S, metadata=house.ben)
    assert repeated.batches_posted == 0
    after = (await world.balance("hurt")).balance
    assert int(after.charged.amount_pico) - int(before.charged.amount_pico) == change
    assert int(after.charged.amount_pico) == (107 * 2 + 3 * 1000) * 10**6
    listed = await world.pricing.ListPostings(
        pricing_pb2.ListPostingsRequest(account_id="hurt"), timeout=TIMEOUT_S
    )
    corrections = [one for one in listed.postings if one.kind == "correction"]
    assert {(one.card.version, one.line_id) for one in corrections} == {
        (1, "out"),
        (2, "out"),
        (3, "out"),
    }
    # The originals stay as they were.
    originals = [one for one in listed.postings if one.kind == "usage"]
    amounts = [int(one.amount.amount_pico) for one in originals]
    assert sum(amounts) == (7 * 1 + 103 * 1_000) * 10**6
    # Receipts say both: what was charged, and what it costs since.
    for event_id, was, became in ((early, 7, 14), (wrong, 100_000, 200), (late, 3_000, None)):
        found = await receipt(world, "hurt", event_id)
        assert int(found.total.amount_pico) == was * 10**6
        assert [int(one.total.amount_pico) for one in found.corrections] == (
            [] if became is None else [became * 10**6]
        )
    # The same again finds nothing to do.
    twice = cards_pb2.PlanRerateRequest(
        rerate_id="repair-twice",
        card_id="err",
        event_from=plan.event_from,
        event_to=plan.event_to,
    )
    nothing = await world.cards.PlanRerate(twice, timeout=TIMEOUT_S, metadata=house.ann)
    assert nothing.plan.corrections == 0
    await replayed(world)


async def replayed(world: World) -> None:
    """The served books are what a replay of the logs alone comes to, and their sum is 0."""
    wait_for = await world.recorded()
    listed = await again(
        lambda: world.pricing.ListBalances(
            pricing_pb2.ListBalancesRequest(wait_for=wait_for), timeout=TIMEOUT_S
        )
    )
    replay = await world.replay({item.log: item.size for item in listed.positions})
    assert replay.digest() == listed.balances_digest
    assert sum(replay.balances.values()) == 0


@asynccontextmanager
async def no_longer_than(stack: Stack, log: str, size: int) -> AsyncIterator[None]:
    """A log does not grow beyond a size while the block runs: what would make it waits."""
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        await db.execute("SELECT pg_advisory_lock(1)")
        await db.execute(
            "CREATE FUNCTION ledger.wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF NEW.name = '{log}' AND NEW.size > {size:d} THEN"
            " PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END $$;"
            " CREATE TRIGGER wait_here BEFORE UPDATE ON ledger.log_head"
            " FOR EACH ROW EXECUTE FUNCTION ledger.wait_here()"
        )
        yield
        await db.execute("SELECT pg_advisory_unlock(1)")
        await db.execute("DROP FUNCTION ledger.wait_here() CASCADE")
    finally:
        await db.close()


async def test_a_posting_that_was_killed_goes_on_where_it_stopped(house: House) -> None:
    world = house.world
    names = [f"many-{number}" for number in range(160)]
    await asyncio.gather(*(world.create(name) for name in names))
    await world.change_card(card("kill", "kill", "5"), house.ann, house.ben)
    for name in names:
        await world.use(name, model="kill", plain=3, output=4, priced=False)
    await world.recorded()
    await world.change_card(card("kill", "kill", "2"), house.ann, house.ben)
    plan = cards_pb2.PlanRerateRequest(
        rerate_id="kill",
        card_id="kill",
        event_from=timestamp_of(T0_US),
        event_to=timestamp_of(T0_US + 1),
    )
    answer = await world.cards.PlanRerate(plan, timeout=TIMEOUT_S, metadata=house.ann)
    assert answer.plan.corrections == 4 * len(names)
    batches = len(answer.plan.batch_digests)
    assert batches > 5
    size = (await world.sizes())["control"]
    post = cards_pb2.PostRerateRequest(rerate_id="kill")

    async def begin() -> None:
        await world.cards.PostRerate(post, timeout=TIMEOUT_S, metadata=house.ben)

    async with no_longer_than(world.stack, "control", size + 2):
        posting = asyncio.ensure_future(begin())
        while (await world.sizes())["control"] < size + 2:
            assert not posting.done()
            await asyncio.sleep(0.02)
        world.stack.kill("pricing-server")
        with pytest.raises(grpc.aio.AioRpcError):
            await posting
        assert (await world.sizes())["control"] == size + 2
    world.stack.up(PARTS)
    # While it is half posted no other may begin.
    other = cards_pb2.PlanRerateRequest(
        rerate_id="kill-other",
        card_id="kill",
        event_from=plan.event_from,
        event_to=plan.event_to,
    )
    await refused(
        again(lambda: world.cards.PlanRerate(other, timeout=TIMEOUT_S, metadata=house.ann)),
        grpc.StatusCode.FAILED_PRECONDITION,
        "RERATE_OPEN",
    )
    rest = await again(lambda: world.cards.PostRerate(post, timeout=TIMEOUT_S, metadata=house.ben))
    assert 0 < rest.batches_posted < batches
    assert (await world.sizes())["control"] == size + batches
    for name in names:
        charged = (await world.balance(name)).balance.charged
        assert int(charged.amount_pico) == 7 * 2 * 10**6
    await replayed(world)


# Under load ---------------------------------------------------------------------------------

LOAD_EVENTS_PER_S = 50_000
LOAD_S = float(os.environ.get("TOLLBOOK_LOAD_S", "1"))
LOAD_CARD = """
card: load
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {{id: in, match: {{base_model: tiny-qwen, direction: in}}, per: 1000000, price: {price}}}
  - {{id: out, match: {{base_model: tiny-qwen, direction: out}}, per: 1000000, price: {price}}}
"""


async def test_a_card_that_comes_while_events_flow_prices_those_pinned_after_it(
    house: House,
) -> None:
    world = house.world
    names = [f"account-{number:04d}" for number in range(usage_load.ACCOUNTS)]
    await asyncio.gather(
        *(
            world.append(
                f"load-{name}",
                {"account_created": control_pb2.AccountCreated(account_id=name, currency="USD")},
            )
            for name in names
        )
    )
    await world.change_card(LOAD_CARD.format(price=1), house.ann, house.ben)
    began = await world.sizes()
    environment = world.stack.environment()
    partitions = int(environment["TOLLBOOK_PARTITIONS"])
    # Some come before the versions do, and some after, however busy the machine is.
    few = 20
    early, late = (list(usage_load.values(0, partitions, few, seed)) for seed in (6, 7))
    for _, value in early:
        await world.send_raw(0, value)
    await world.recorded()
    sending = asyncio.ensure_future(
        trickle_load.trickle(
            world.stack.address("kafka"),
            environment["TOLLBOOK_TOPIC"],
            partitions,
            LOAD_EVENTS_PER_S,
            LOAD_S,
            seed=5,
        )
    )
    # Versions come one after the other while the events do.
    approved: list[int] = []
    while len(approved) < 2 or not sending.done():
        version = await world.change_card(
            LOAD_CARD.format(price=2 + len(approved)), house.ann, house.ben
        )
        approved.append(version)
    sent = await sending
    for _, value in late:
        await world.send_raw(0, value)
    await taken_in(world, began, few + sent + few)
    charged = await charged_units(environment["TOLLBOOK_POSTGRES"])
    expected = await pinned_units(world, began)
    assert charged == expected
    assert {version for _, version in expected} >= {1, approved[-1]}
    await replayed(world)


async def taken_in(world: World, began: dict[str, int], events: int) -> None:
    """Wait until so many events more are in the logs, and charged."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        sizes = await world.sizes()
        if sum(sizes[log] - size for log, size in began.items() if log.startswith("usage")) >= (
            events
        ):
            break
        assert time.monotonic() < deadline, f"{events} events are not in the logs: {sizes}"
        await asyncio.sleep(0.1)
    wait_for = [
        pricing_pb2.LogPosition(log=log, size=size) for log, size in sizes.items() if log != "cuts"
    ]
    request = pricing_pb2.ListBalancesRequest(wait_for=wait_for)
    await world.pricing.ListBalances(request, timeout=TIMEOUT_S)


async def charged_units(dsn: str) -> Counter[tuple[str, int]]:
    """Units charged by each version of the card, by log, as the postings say."""
    db = await asyncpg.connect(dsn)
    try:
        rows = await db.fetch(
            "SELECT log, card_version, sum(quantity)::bigint AS units FROM pricing.posting"
            " WHERE card_id = 'load' AND kind = 'usage' GROUP BY 1, 2"
        )
    finally:
        await db.close()
    return Counter({(row["log"], row["card_version"]): row["units"] for row in rows})


async def pinned_units(world: World, began: dict[str, int]) -> Counter[tuple[str, int]]:
    """Units that each version has to charge by the pins, read from the log one by one."""
    answer = await world.cards.GetRateCardHistory(
        cards_pb2.GetRateCardHistoryRequest(card_id="load"), timeout=TIMEOUT_S
    )
    known = [
        (step.position, version.card.version)
        for version in answer.versions
        for step in version.steps
        if step.what == "approved"
    ]
    found: Counter[tuple[str, int]] = Counter()
    for log, size in (await world.sizes()).items():
        if not log.startswith("usage"):
            continue
        request = ledger_pb2.ReadEventsRequest(
            log=log, from_position=began[log], to_position=size, max_batch=5_000
        )
        async for part in world.ledger.ReadEvents(request, timeout=TIMEOUT_S):
            version = max(made for position, made in known if position < part.control_size)
            for position, raw in enumerate(part.leaves, part.first_position):
                event = read_event(position, raw)
                found[log, version] += sum(leaf.amount for leaf in event.leaves)
    return found
