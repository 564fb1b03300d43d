"""Settling looks seldom, and what dies in a cycle is still found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from kernel import cycles


class Node:
    """An object that can hold itself."""

    def __init__(self) -> None:
        self.other: Node | None = self


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    before = gc.get_threshold()
    cycles.settle()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_it_looks_less_often_and_not_never() -> None:
    young, middle, old = gc.get_threshold()
    assert gc.isenabled()
    assert 700 < young <= 100_000
    assert 0 < middle <= 20
    assert 0 < old <= 20


def test_what_was_taken_out_and_died_is_found_by_the_next_settling() -> None:
    node = Node()
    gone = weakref.ref(node)
    cycles.settle()
    assert gc.get_freeze_count() > 0
    del node
    gc.collect()
    assert gone() is not None, "it is out of sight"
    cycles.settle()
    assert gone() is None


def test_what_comes_later_and_dies_is_found_without_being_asked_for() -> None:
    node = Node()
    gone = weakref.ref(node)
    del node
    kept = [[number] for number in range(3 * gc.get_threshold()[0])]
    assert gone() is None
    assert kept
