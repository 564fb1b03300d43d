"""Lots of credit: what is left of each does not depend on the order in which things came."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pricing.domain.credits import NEVER_US, Charge, Lot, locked_pico, settle

PROJECTS = ("", "a", "b")
lots = st.lists(
    st.builds(
        Lot,
        priority=st.integers(0, 2),
        expires_us=st.sampled_from((100, 200, NEVER_US)),
        position=st.integers(0, 99),
        grant_id=st.just(""),
        project_id=st.sampled_from(PROJECTS),
        amount_pico=st.integers(0, 50),
    ),
    max_size=6,
).map(lambda made: [lot._replace(grant_id=f"g{n}", position=n) for n, lot in enumerate(made)])
charges = st.lists(
    st.builds(
        Charge,
        at_us=st.integers(0, 300),
        project_id=st.sampled_from(("a", "b")),
        amount_pico=st.integers(0, 30),
    ),
    max_size=12,
)


@given(lots, charges, st.randoms())
def test_the_order_in_which_charges_came_changes_nothing(
    given_lots: list[Lot], given_charges: list[Charge], random: object
) -> None:
    shuffled_lots, shuffled = list(given_lots), list(given_charges)
    random.shuffle(shuffled_lots)  # type: ignore[attr-defined]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = settle(given_lots, given_charges), settle(shuffled_lots, shuffled)
    assert one == other


@given(lots, charges, st.integers(0, 99))
def test_within_a_stretch_neither_the_instant_nor_the_cut_of_a_charge_counts(
    given_lots: list[Lot], given_charges: list[Charge], moment: int
) -> None:
    """All ends of lots are hundreds: what stays between them may be summed or moved at will."""
    moved = [
        part
        for charge in given_charges
        for part in (
            charge._replace(at_us=charge.at_us // 100 * 100 + moment, amount_pico=7),
            charge._replace(amount_pico=charge.amount_pico - 7),
        )
    ]
    assert settle(given_lots, moved) == settle(given_lots, given_charges)


@given(lots, charges)
def test_what_was_paid_and_what_is_left_come_to_the_lots(
    given_lots: list[Lot], given_charges: list[Charge]
) -> None:
    outcome = settle(given_lots, given_charges)
    paid = sum(lot.amount_pico - outcome.left[lot.grant_id] for lot in given_lots)
    assert paid + outcome.unpaid_pico == sum(charge.amount_pico for charge in given_charges)
    assert all(0 <= outcome.left[lot.grant_id] <= lot.amount_pico for lot in given_lots)


def test_the_lower_priority_pays_first_then_what_ends_sooner_then_what_is_for_the_project() -> None:
    made = [
        Lot(1, NEVER_US, 0, "late", "", 10),
        Lot(0, 200, 1, "ends", "", 10),
        Lot(0, NEVER_US, 2, "free", "", 10),
        Lot(0, NEVER_US, 3, "mine", "a", 10),
    ]
    outcome = settle(made, [Charge(50, "a", 25)])
    assert outcome.left == {"ends": 0, "mine": 0, "free": 5, "late": 10}
    assert locked_pico(made, outcome, "b", 50) == 0
    assert locked_pico(made, settle(made, []), "b", 50) == 10
    # Once it ended, its rest is nobody's.
    assert locked_pico(made, settle(made, []), "a", 200) == 10


def test_a_late_event_is_paid_from_what_was_good_at_its_time() -> None:
    made = [Lot(0, 100, 0, "old", "", 10), Lot(0, NEVER_US, 1, "new", "", 10)]
    assert settle(made, [Charge(150, "a", 5)]).left == {"old": 10, "new": 5}
    assert settle(made, [Charge(150, "a", 5), Charge(99, "a", 4)]).left == {"old": 6, "new": 5}


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 100))
def test_one_plain_lot_is_a_plain_balance(amounts: list[int], credit: int) -> None:
    charged = [Charge(number, "a", pico) for number, pico in enumerate(amounts)]
    outcome = settle([Lot(0, NEVER_US, 0, "g", "", credit)], charged)
    balance = Fraction(credit) - sum(amounts)
    assert outcome.left["g"] - outcome.unpaid_pico == balance
