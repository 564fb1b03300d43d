"""Expired grants under audit: what was left of each is worked out again from the logs."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit import world as worlds
from tests.unit.audit.test_audit import audited, texts
from tests.unit.audit.world import CARD, World, control_record, usage_event
from tests.unit.pricing import builders

from audit.expiries import Charged
from audit.report import Report
from kernel.clock import timestamp_of
from tollbook.pricing.v1 import accounts_pb2, card_records_pb2, control_pb2, money_pb2

HOUR_US = 3_600_000_000
DECEMBER = CARD.replace("2026-01-01", "2025-12-01")
METERED = DECEMBER.replace(
    "price: 0.60",
    "price: 0.60, tiers: {by: monthly_volume, mode: volume, steps: [{over: 5, price: 0.30}]}",
)
GRANTED_PICO = 10_000_000
# Of 20 input tokens of 150,000 pico before its end; the 4 after it are not paid from it.
LEFT_PICO = GRANTED_PICO - 20 * 150_000


def ending(
    grant_id: str, amount_pico: int, project_id: str = "", priority: int = 0, hours: int = 0
) -> bytes:
    """A grant that ended when the world's records are made, or some hours from then."""
    made = control_pb2.CreditGranted(
        grant_id=grant_id,
        account_id="acme",
        amount=money_pb2.Amount(currency="USD", amount_pico=str(amount_pico)),
        expires_time=timestamp_of(worlds.T0_US + hours * HOUR_US),
        project_id=project_id,
        priority=priority,
    )
    return control_record(credit_granted=made)


def world_of(card: str = DECEMBER, output: int = 0) -> World:
    """An account that used part of a grant before its end, in two projects and two logs."""
    world = World()
    world.change(worlds.card(card), worlds.account("acme"), worlds.account("globex"))
    world.change(ending("shop-only", GRANTED_PICO, "shop"), ending("all", GRANTED_PICO, "", 1))
    producers = {name: worlds.Producer(f"p/1/{name}") for name in world.usage}

    def use(log: str, number: int, project_id: str, plain: int, hours: int) -> None:
        event = usage_event(
            f"{log}-{number}",
            "acme",
            plain=plain,
            output=output,
            project_id=project_id,
            at_us=worlds.T0_US + hours * HOUR_US,
        )
        world.take(log, producers[log].record(event))

    use("usage-0", 0, "shop", 12, -2)
    use("usage-1", 0, "lab", 30, -2)
    use("usage-0", 1, "shop", 8, -1)
    use("usage-1", 1, "shop", 4, 0)
    return world


def expire(world: World, left_pico: int, grant_id: str = "shop-only", **other: int) -> None:
    """Record what was left of a grant, by the sizes of now or by other ones."""
    at = world.sizes() | {name.replace("_", "-"): size for name, size in other.items()}
    made = accounts_pb2.CreditExpired(
        grant_id=grant_id,
        account_id="acme",
        amount=money_pb2.Amount(currency="USD", amount_pico=str(left_pico)),
        control_size=at.pop("control"),
        logs=[card_records_pb2.LogSize(log=name, size=size) for name, size in at.items()],
    )
    world.change(control_record(credit_expired=made))


def report_of(world: World, tmp_path: Path) -> Report:
    world.serve()
    world.cut()
    return audited(world, tmp_path)


def test_what_was_left_is_worked_out_again(tmp_path: Path) -> None:
    world = world_of()
    expire(world, LEFT_PICO)
    # The lab may not spend what is for the shop: 30 tokens are of the grant that is for all.
    expire(world, GRANTED_PICO - 30 * 150_000, "all")
    # Usage of before the grant's end that comes later changes nothing of what was said then.
    late = usage_event("late", "acme", plain=2, project_id="shop", at_us=worlds.T0_US - HOUR_US)
    world.take("usage-0", worlds.Producer("p/2/usage-0").record(late))
    report = report_of(world, tmp_path)
    assert texts(report) == []
    assert report.notes == []


def test_a_service_that_voids_more_or_less_than_was_left_is_found(tmp_path: Path) -> None:
    for index, wrong_pico in enumerate((LEFT_PICO + 1, LEFT_PICO - 1)):
        world = world_of()
        expire(world, wrong_pico)
        (found,) = texts(report_of(world, tmp_path / str(index)))
        assert "expired grant 'shop-only' of account 'acme'" in found
        assert (
            f"{wrong_pico} pico were left of it by the record; the logs give {LEFT_PICO}" in found
        )


def test_a_service_that_leaves_usage_out_to_void_more_is_found(tmp_path: Path) -> None:
    world = world_of()
    world.cut()
    world.change(worlds.account("later"))
    expire(world, GRANTED_PICO - 12 * 150_000, usage_0=1)
    (found,) = texts(report_of(world, tmp_path))
    assert "worked out by 1 entries of usage-0, and cuts position 0, which is older, had 2" in found


def test_a_size_that_the_log_does_not_have_is_found(tmp_path: Path) -> None:
    world = world_of()
    expire(world, LEFT_PICO, usage_0=99)
    (found,) = texts(report_of(world, tmp_path))
    assert "cannot be worked out again: usage-0 position 2" in found


def metered_world(hours: int = -1, project_id: str = "shop") -> World:
    """An account whose every charge a month decides: 3 tokens, then 5 of an hour and a project."""
    world = world_of(METERED)
    producer = worlds.Producer("p/3/usage-0")
    for number, (output, at, whose) in enumerate(((3, -2, "shop"), (5, hours, project_id))):
        event = usage_event(
            f"month-{number}",
            "acme",
            output=output,
            project_id=whose,
            at_us=worlds.T0_US + at * HOUR_US,
        )
        world.take("usage-0", producer.record(event))
    return world


def test_what_a_month_decides_is_worked_out_where_its_sum_is_enough(tmp_path: Path) -> None:
    # 8 tokens of one month are beyond the step: all of them have the lower price.
    left_pico = LEFT_PICO - 8 * 300_000
    world = metered_world()
    expire(world, left_pico)
    report = report_of(world, tmp_path / "right")
    assert (texts(report), report.notes) == ([], [])
    world = metered_world()
    expire(world, left_pico - 1)
    (found,) = texts(report_of(world, tmp_path / "wrong"))
    assert f"the logs give {left_pico}" in found


def test_a_month_on_both_sides_of_a_grants_end_is_worked_out_when_it_is_the_next(
    tmp_path: Path,
) -> None:
    """The end of the grant is that of the month: what comes after it is of another meter's."""
    world = metered_world(hours=1)
    expire(world, LEFT_PICO - 3 * 600_000)
    report = report_of(world, tmp_path)
    assert (texts(report), report.notes) == ([], [])


def test_a_month_of_several_projects_is_said_to_be_taken_as_stated(tmp_path: Path) -> None:
    world = metered_world(project_id="lab")
    expire(world, 1)
    report = report_of(world, tmp_path)
    assert texts(report) == []
    (note,) = report.notes
    assert "what meter 'tiny-out' of card 'standard' charged for 2025-12" in note


FREE_AT_FIRST = DECEMBER.replace("price: 0.60", "price: 0.60, included: 4")
USES = st.tuples(
    st.sampled_from((-2, -2, -1, -1, 0)),
    st.sampled_from(("shop",) * 5 + ("lab",)),
    st.integers(1, 5),
)
"""(hour, project, output)"""


@given(st.sampled_from((METERED, FREE_AT_FIRST)), st.lists(USES, min_size=2, max_size=5))
def test_where_a_months_sum_is_enough_no_steps_of_reading_make_another(
    card: str, uses: list[tuple[int, str, int]]
) -> None:
    """And what depends on them is never called decided."""
    control = [
        worlds.card(card),
        worlds.account("acme"),
        ending("shop-only", 3_000_000),
        ending("sooner", 2_000_000, "shop", hours=-1),
    ]
    leaves = [
        builders.event(
            position,
            output=output,
            time_us=worlds.T0_US + hours * HOUR_US,
            project_id=project_id,
        )
        for position, (hours, project_id, output) in enumerate(uses)
    ]

    def read(step: int) -> Charged:
        charged = Charged(frozenset({"acme"}))
        for position, record in enumerate(control):
            charged.apply_control(position, builders.entry(record, position))
        for first in range(0, len(leaves), step):
            charged.apply_usage("usage-0", first, len(control), leaves[first : first + step])
        return charged

    one, other = read(1), read(len(leaves))
    assert one.undecided("acme") == other.undecided("acme")
    if one.undecided("acme") is None:
        for grant_id in ("shop-only", "sooner"):
            assert one.left_pico("acme", grant_id) == other.left_pico("acme", grant_id)


def test_a_record_that_says_no_sizes_is_noted(tmp_path: Path) -> None:
    world = world_of()
    amount = money_pb2.Amount(currency="USD", amount_pico="1")
    made = accounts_pb2.CreditExpired(grant_id="all", account_id="acme", amount=amount)
    world.change(control_record(credit_expired=made))
    report = report_of(world, tmp_path)
    assert texts(report) == []
    assert [note.startswith("1 expired grants do not say") for note in report.notes] == [True]


def test_a_record_that_knows_the_future_counts_for_nothing() -> None:
    world = world_of()
    expire(world, LEFT_PICO, control=99)
    replay = world.replay()
    assert "which is after it" in replay.ignored[-1].why
    assert replay.projection.control.credit.expiries == []
