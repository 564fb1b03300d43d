"""The order of parts: what is started with what, and what is stopped before what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollbook.stack.errors import Unusable
from tollbook.stack.parts import Catalogue, Part, Process, Step, stop_waves


async def _nothing() -> None:
    return


async def _done() -> str:
    return "done"


def process(
    name: str, *needs: str, uses: tuple[str, ...] = (), brings: tuple[str, ...] = ()
) -> Process:
    return Process(
        name=name,
        command=("true",),
        environment={},
        prepare=None,
        probe=_nothing,
        address="127.0.0.1:1",
        needs=needs,
        uses=uses,
        brings=brings,
    )


CATALOGUE = Catalogue(
    parts=(
        process("kafka", brings=("topic",)),
        Step("topic", _done, ("kafka",)),
        process("postgres"),
        Step("schema", _done, ("postgres",)),
        process("ledger", "schema"),
        process("pricing", "schema", uses=("ledger",)),
        process("inference", "topic", uses=("pricing",)),
    )
)


def names(wanted: list[str], catalogue: Catalogue = CATALOGUE) -> list[str]:
    return [part.name for part in catalogue.select(wanted)]


def test_no_name_is_everything() -> None:
    assert names([]) == CATALOGUE.names()


def test_a_part_comes_with_what_it_needs_uses_and_brings() -> None:
    assert names(["kafka"]) == ["kafka", "topic"]
    assert names(["ledger"]) == ["postgres", "schema", "ledger"]
    assert names(["pricing"]) == ["postgres", "schema", "ledger", "pricing"]
    assert names(["inference"]) == CATALOGUE.names()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Unusable, match="no part named 'kafak'; the parts are kafka, topic"):
        names(["kafak"])


def test_a_part_of_the_users_own_is_nothing_to_start() -> None:
    own = Catalogue(parts=(Step("topic", _done), process("postgres")), given={"kafka": "host:1"})
    assert names(["kafka", "postgres"], own) == ["postgres"]


def test_parts_are_stopped_before_what_they_lean_on() -> None:
    waves = [[part.name for part in wave] for wave in stop_waves(CATALOGUE.parts)]
    assert waves == [
        ["inference"],
        ["topic", "pricing"],
        ["kafka", "ledger"],
        ["schema"],
        ["postgres"],
    ]


def test_a_circle_is_refused() -> None:
    with pytest.raises(Unusable, match="in a circle"):
        stop_waves([process("a", "b"), process("b", "a")])


@st.composite
def catalogues(draw: st.DrawFn) -> list[Part]:
    count = draw(st.integers(1, 9))
    parts: list[Part] = []
    for number in range(count):
        earlier = [part.name for part in parts]
        chosen = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        cut = draw(st.integers(0, len(chosen)))
        parts.append(process(f"p{number}", *chosen[:cut], uses=tuple(chosen[cut:])))
    return parts


@given(catalogues())
def test_every_part_is_in_one_wave_and_after_all_that_lean_on_it(parts: list[Part]) -> None:
    wave_of = {part.name: index for index, wave in enumerate(stop_waves(parts)) for part in wave}
    assert set(wave_of) == {part.name for part in parts}
    for part in parts:
        assert isinstance(part, Process)
        for other in (*part.needs, *part.uses):
            assert wave_of[part.name] < wave_of[other]


@given(catalogues(), st.data())
def test_what_is_selected_is_closed_under_needs(parts: list[Part], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from([part.name for part in parts]), min_size=1))
    selected = Catalogue(tuple(parts)).select(wanted)
    chosen = {part.name for part in selected}
    assert set(wanted) <= chosen
    for part in selected:
        assert isinstance(part, Process)
        assert {*part.needs, *part.uses} <= chosen
