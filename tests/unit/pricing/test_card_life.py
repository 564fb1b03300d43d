"""A card's life by the control log: what each record may, and what is known when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing import builders
from tests.unit.pricing.builders import T0_US

from kernel.clock import timestamp_of
from pricing.domain.card import content_hash
from pricing.domain.card_diff import diff, factor_of
from pricing.domain.card_yaml import parse_card
from pricing.domain.projection import Projection
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1.cards_pb2 import RateCardStatus

ROLES = {"root": (1,), "ann": (2, 3), "ben": (2, 3), "cleo": (2,), "dan": (3,)}


def yaml(price: str, card_id: str = "c", start: str = "2026-01-01T00:00:00Z") -> str:
    return (
        f"card: {card_id}\ncurrency: USD\neffective_from: {start}\nlines:\n"
        f"  - {{id: all, match: {{model: m}}, per: 1000000, price: {price}}}\n"
    )


class House:
    """A control log that is written record by record."""

    def __init__(self, operators: bool = True) -> None:
        self.projection = Projection()
        self.whys: dict[int, str] = {}
        if operators:
            for name, roles in ROLES.items():
                made = records.OperatorCreated(
                    operator_id=name,
                    roles=[records.Role.ValueType(role) for role in roles],
                    secret_digest=name.encode().ljust(32),
                )
                assert self.write(operator_created=made) == ""

    @property
    def size(self) -> int:
        return self.projection.control.size

    def write(self, **change: Any) -> str:
        """Why the record is refused; empty when it is not."""
        position = self.size
        effects = self.projection.apply_control(position, builders.control(position, **change))
        return effects.ignored[0].why if effects.ignored else ""

    def propose(self, text: str, version: int, author: str = "ann") -> str:
        card = parse_card(text)
        document = card.document()
        return self.write(
            rate_card_proposed=records.RateCardProposed(
                card_id=card.card_id,
                version=version,
                content_hash=content_hash(document),
                document=document,
                author=author,
            )
        )

    def approve(
        self,
        version: int,
        approver: str = "ben",
        start_us: int | None = None,
        card_id: str = "c",
        control_size: int | None = None,
    ) -> str:
        known = self.projection.control.cards.versions.get((card_id, version))
        made = records.RateCardApproved(
            card_id=card_id,
            version=version,
            content_hash=known.content_hash if known else b"",
            approver=approver,
            control_size=control_size,
        )
        if start_us is not None:
            made.effective_from.CopyFrom(timestamp_of(start_us))
        return self.write(rate_card_approved=made)

    def retire(self, version: int, to_us: int, by: str = "ben", card_id: str = "c") -> str:
        return self.write(
            rate_card_retired=records.RateCardRetired(
                card_id=card_id, version=version, effective_to=timestamp_of(to_us), retired_by=by
            )
        )

    def version_at(self, at_us: int, size: int | None = None) -> int:
        """Version of the card in force at an instant, as known at a control size; 0: none."""
        catalogue = self.projection.control.catalogue(self.size if size is None else size)
        found = catalogue.cards_in_force("", "USD", catalogue.segment(at_us))
        return found[0].version if found else 0


def test_only_another_approver_puts_a_version_in_force() -> None:
    house = House()
    assert house.propose(yaml("1"), 1) == ""
    assert house.version_at(T0_US) == 0
    for approver in ("ann", "cleo", "root", "nobody"):
        assert house.approve(1, approver) != ""
        assert house.version_at(T0_US) == 0
    assert house.approve(1, "dan") == ""
    assert house.version_at(T0_US) == 1
    assert "approved before" in house.approve(1, "ben")


def test_who_is_no_author_proposes_nothing() -> None:
    house = House()
    for author in ("dan", "root", "nobody", ""):
        assert "is no author" in house.propose(yaml("1"), 1, author)
    assert house.approve(1) != ""


def test_a_house_with_operators_takes_no_publication_in_one_step() -> None:
    house = House()
    made = builders.published(parse_card(yaml("1")))
    assert "operators" in house.write(rate_card_published=made)
    assert House(operators=False).write(rate_card_published=made) == ""


def test_an_approval_is_void_when_another_card_came_after_it_was_looked_at() -> None:
    """As of two servers that each saw only the other's absence: the log decides, for everybody."""
    house = House()
    for name in ("c", "d"):
        assert house.propose(yaml("1", name), 1) == ""
    seen = house.size
    assert house.approve(1, card_id="d", control_size=seen) == ""
    assert "after it was looked at" in house.approve(1, control_size=seen)
    assert house.version_at(T0_US) == 1
    assert [known.card.card_id for known in house.projection.control.entries(house.size)] == ["d"]
    assert house.approve(1, control_size=house.size) == ""


def test_what_cannot_meet_a_card_makes_its_approval_not_void() -> None:
    house = House()
    for name, was, becomes in (
        ("c", "", ""),
        ("euro", "USD", "EUR"),
        ("cost", "currency: USD", "currency: USD\npurpose: cost"),
    ):
        assert house.propose(yaml("1", name).replace(was, becomes, 1), 1) == ""
    assert house.propose(yaml("2"), 2) == ""
    seen = house.size
    assert house.approve(1, card_id="euro", control_size=seen) == ""
    assert house.approve(1, card_id="cost", control_size=seen) == ""
    # Nor does another version of its own.
    assert house.approve(1, control_size=seen) == ""
    assert house.approve(2, control_size=seen) == ""


def test_an_approval_is_void_when_what_hid_a_tie_was_retired_meanwhile() -> None:
    house = House()
    for name in ("c", "above"):
        assert house.propose(yaml("1", name), 1) == ""
    assert house.approve(1, card_id="above") == ""
    seen = house.size
    assert house.retire(0, T0_US, card_id="above") == ""
    assert "after it was looked at" in house.approve(1, control_size=seen)


def test_a_publication_is_void_when_another_card_came_after_it_was_looked_at() -> None:
    house = House(operators=False)
    for control_size, void in ((0, False), (0, True), (1, False), (None, False)):
        made = builders.published(parse_card(yaml("1", f"c{house.size}")))
        if control_size is not None:
            made.control_size = control_size
        assert bool(house.write(rate_card_published=made)) is void


def test_the_first_operator_is_an_admin_and_the_last_admin_stays() -> None:
    house = House(operators=False)
    author = records.OperatorCreated(
        operator_id="ann", roles=[records.ROLE_AUTHOR], secret_digest=bytes(32)
    )
    assert "first operator" in house.write(operator_created=author)
    full = House()
    assert "last admin" in full.write(operator_revoked=records.OperatorRevoked(operator_id="root"))
    assert full.write(operator_revoked=records.OperatorRevoked(operator_id="ann")) == ""
    assert "is no author" in full.propose(yaml("1"), 1, "ann")


def test_an_older_version_is_not_approved_over_a_newer() -> None:
    house = House()
    assert house.propose(yaml("1"), 1) == ""
    assert house.propose(yaml("2"), 2) == ""
    assert house.approve(2) == ""
    assert "older than version 2" in house.approve(1)


@pytest.mark.parametrize(("start_us", "fits"), [(T0_US - 1, False), (T0_US, True)])
def test_a_schedule_is_not_before_the_documents_own_instant(start_us: int, fits: bool) -> None:
    house = House()
    house.propose(yaml("1"), 1)
    assert (house.approve(1, start_us=start_us) == "") is fits


def test_what_is_retired_gives_way_for_later_pins_alone() -> None:
    house = House()
    for version in (1, 2):
        house.propose(yaml(str(version)), version)
        house.approve(version)
    before = house.size
    ends_us = T0_US + 1_000
    assert house.retire(2, ends_us) == ""
    assert house.version_at(ends_us, before) == 2
    assert house.version_at(ends_us - 1) == 2
    assert house.version_at(ends_us) == 1
    assert "still runs" in house.retire(2, ends_us)
    assert house.retire(0, T0_US) == ""
    assert house.version_at(ends_us) == 0
    assert house.version_at(ends_us, before) == 2


def test_a_retired_proposal_is_never_approved() -> None:
    house = House()
    house.propose(yaml("1"), 1)
    assert house.retire(1, T0_US) == ""
    assert "retired" in house.approve(1)


def test_statuses_by_both_times() -> None:
    house = House()
    house.propose(yaml("1"), 1)
    house.approve(1)
    first = house.size
    house.propose(yaml("2"), 2)
    house.approve(2, start_us=T0_US + 1_000)
    house.propose(yaml("3"), 3)

    def statuses(size: int, at_us: int) -> list[str]:
        return [
            RateCardStatus.Name(status).removeprefix("RATE_CARD_STATUS_")
            for *_, status in house.projection.control.cards.statuses("c", size, at_us)
        ]

    assert statuses(first, T0_US + 1_000) == ["ACTIVE"]
    assert statuses(house.size, T0_US) == ["ACTIVE", "SCHEDULED", "PROPOSED"]
    assert statuses(house.size, T0_US + 1_000) == ["SUPERSEDED", "ACTIVE", "PROPOSED"]
    assert statuses(first, T0_US - 1) == ["SCHEDULED"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("propose"), st.integers(1, 9)),
        st.tuples(st.just("approve"), st.integers(1, 6), st.sampled_from(["ben", "dan", "ann"])),
        st.tuples(st.just("retire"), st.integers(0, 6), st.integers(0, 3)),
    ),
    max_size=20,
)


@given(STEPS)
def test_what_was_known_never_changes(steps: list[tuple[Any, ...]]) -> None:
    """Whatever comes later, what a pin knows stays: it is asked at once, and at the end again."""
    house = House()
    instants = [T0_US + number * 500 for number in range(-1, 4)]
    seen: list[list[int]] = []
    for step in steps:
        match step:
            case ("propose", price):
                newest = house.projection.control.cards.newest_version("c")
                house.propose(yaml(str(price)), newest + 1)
            case ("approve", version, who):
                house.approve(version, who)
            case ("retire", version, after):
                house.retire(version, T0_US + after * 500)
        seen.append([house.version_at(at_us) for at_us in instants])
    first = len(ROLES) + 1
    for number, answers in enumerate(seen):
        assert [house.version_at(at_us, first + number) for at_us in instants] == answers


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_a_factor_is_what_it_says(before: int, after: int) -> None:
    text = factor_of(before, after)
    if text == "<0.0001":
        assert 0 < after * 10_000 < before
        return
    whole, _, rest = text.partition(".")
    scaled = int(whole) * 10_000 + int(rest.ljust(4, "0") if rest else 0)
    assert abs(scaled * before - after * 10_000) * 2 <= before


def test_a_difference_names_every_field() -> None:
    old = parse_card(yaml("1"))
    new = parse_card(yaml("2.5", start="2026-02-01T00:00:00Z").replace("id: all", "id: every"))
    assert [(one.line_id, one.field) for one in diff(old, new)] == [
        ("", "effective_from"),
        ("every", ""),
        ("all", ""),
    ]
    same_line = parse_card(yaml("2.5"))
    assert [(one.field, one.before, one.after, one.factor) for one in diff(old, same_line)] == [
        ("price", "0.000001", "0.0000025", "2.5")
    ]
    assert diff(old, old) == []
