"""Re-ratings under audit: honest ones agree, and a plan that favours somebody is found."""

from __future__ import annotations

from pathlib import Path

from tests.unit.audit import world as worlds
from tests.unit.audit.test_audit import audited, texts
from tests.unit.audit.world import CARD, World, usage_event

from kernel.clock import timestamp_of
from pricing.domain.rerating import batch_digest, batches
from pricing.domain.what_if import Rerating
from tollbook.pricing.v1 import card_records_pb2 as records

DAY_US = 86_400_000_000


def wrong_world() -> World:
    """Two accounts charged by a card that was a thousand times too dear for a while."""
    world = World()
    world.change(worlds.card(), worlds.account("acme"), worlds.account("globex"))
    ends = {"acme": "usage-0", "globex": "usage-1"}
    producers = {name: worlds.Producer(f"p/1/{name}") for name in ends}

    def use(number: int) -> None:
        for name, log in ends.items():
            event = usage_event(f"{name}-{number}", name, plain=number + 1, output=7)
            world.take(log, producers[name].record(event))

    use(0)
    world.change(
        worlds.card(CARD.replace("per: 1_000_000, price: 0.60", "per: 1000, price: 0.60"), 2)
    )
    use(1)
    world.change(worlds.card(CARD, 3))
    use(2)
    return world


def plan_of(world: World, rerate_id: str = "repair") -> tuple[records.ReratePlanned, Rerating]:
    """The re-rating of all that was charged by the card."""
    plan = records.ReratePlanned(
        rerate_id=rerate_id,
        card_id="standard",
        event_from=timestamp_of(worlds.T0_US - DAY_US),
        event_to=timestamp_of(worlds.T0_US + DAY_US),
        control_size=len(world.control),
        logs=[records.LogSize(log=name, size=len(log.leaves)) for name, log in world.usage.items()],
    )
    rerating = Rerating(world.replay().projection.control, plan)
    for name, log in world.usage.items():
        ends = [pin[0] for pin in log.pins[1:]] + [len(log.leaves)]
        for (start, known), end in zip(log.pins, ends, strict=True):
            rerating.add(name, start, known, log.leaves[start:end])
    return plan, rerating


def post(world: World, plan: records.ReratePlanned, corrections: list[records.Correction]) -> None:
    """Record a plan of these corrections and post it."""
    parts = batches(corrections)
    plan.corrections = len(corrections)
    plan.batch_digests.extend(batch_digest(part) for part in parts)
    world.change(worlds.control_record(rerate_planned=plan))
    for number, part in enumerate(parts):
        made = records.CorrectionsPosted(rerate_id=plan.rerate_id, batch=number, corrections=part)
        world.change(worlds.control_record(corrections_posted=made))


def test_a_repair_agrees_and_the_books_are_as_if_nothing_had_been_wrong(tmp_path: Path) -> None:
    world = wrong_world()
    plan, rerating = plan_of(world)
    corrections = rerating.difference.corrections()
    assert rerating.newly_unpriced() == 0
    post(world, plan, corrections)
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert texts(report) == []
    charged = (1 + 2 + 3) * 150_000 + 3 * 7 * 600_000
    assert {line.account_id: line.charged_pico for line in report.accounts} == {
        "acme": charged,
        "globex": charged,
    }
    assert sum(world.replay().balances.values()) == 0


def test_a_second_repair_finds_nothing_left_to_do() -> None:
    world = wrong_world()
    plan, rerating = plan_of(world)
    post(world, plan, rerating.difference.corrections())
    _, again = plan_of(world, "again")
    assert again.difference.corrections() == []


def test_a_plan_that_favours_somebody_is_found(tmp_path: Path) -> None:
    world = wrong_world()
    plan, rerating = plan_of(world)
    corrections = rerating.difference.corrections()
    friend = next(made for made in corrections if int(made.amount.amount_pico) < 0)
    friend.amount.amount_pico = str(2 * int(friend.amount.amount_pico))
    post(world, plan, corrections)
    world.serve()
    world.cut()
    found = texts(audited(world, tmp_path))
    assert len(found) == 1
    assert "re-rating 'repair' posts other corrections than the logs give" in found[0]


def test_a_batch_that_is_not_as_planned_counts_for_nothing() -> None:
    world = wrong_world()
    plan, rerating = plan_of(world)
    corrections = rerating.difference.corrections()
    before = world.replay().digest()
    plan.corrections = len(corrections)
    plan.batch_digests.append(batch_digest(corrections))
    world.change(worlds.control_record(rerate_planned=plan))
    forged = records.CorrectionsPosted(rerate_id="repair", corrections=corrections)
    forged.corrections[0].amount.amount_pico = "-5"
    world.change(worlds.control_record(corrections_posted=forged))
    replay = world.replay()
    assert replay.digest() == before
    assert "not what was planned" in replay.ignored[-1].why
    # The true batch may still come; twice it counts once.
    true = records.CorrectionsPosted(rerate_id="repair", corrections=corrections)
    world.change(worlds.control_record(corrections_posted=true))
    after = world.replay().digest()
    assert after != before
    world.change(worlds.control_record(corrections_posted=true))
    assert world.replay().digest() == after


def test_a_plan_made_before_another_was_posted_is_stale() -> None:
    world = wrong_world()
    first, rerating = plan_of(world, "first")
    second, _ = plan_of(world, "second")
    corrections = rerating.difference.corrections()
    post(world, first, corrections)
    done = world.replay().digest()
    post(world, second, corrections)
    replay = world.replay()
    assert replay.digest() == done
    assert "plan it again" in replay.ignored[-1].why
