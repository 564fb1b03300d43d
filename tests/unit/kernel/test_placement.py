"""Placement: one account, one log, for ever and in every language."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import placement


@given(st.text(max_size=64), st.integers(1, 4096))
def test_a_partition_is_in_range_and_always_the_same(account_id: str, partitions: int) -> None:
    partition = placement.partition_of(account_id, partitions)
    assert 0 <= partition < partitions
    assert partition == placement.partition_of(account_id, partitions)
    first = hashlib.sha256(account_id.encode()).hexdigest()[:16]
    assert partition == int(first, 16) % partitions


def test_known_placements_never_move() -> None:
    """Figures from `printf NAME | sha256sum`, the first 16 digits modulo the partitions."""
    known = {"acme": 0x822B33AD87C148A0, "initech": 0x4CDC1A4207F45B03, "": 0xE3B0C44298FC1C14}
    for account_id, number in known.items():
        for partitions in (1, 4, 7, 4096):
            assert placement.partition_of(account_id, partitions) == number % partitions


def test_accounts_spread_over_the_partitions() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[placement.partition_of(f"account-{number}", 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


@given(st.integers(0, 10**6))
def test_a_usage_log_knows_its_partition(partition: int) -> None:
    assert placement.partition_of_log(placement.usage_log(partition)) == partition


@pytest.mark.parametrize(
    "name",
    [
        "control",
        "cuts",
        "",
        "usage-",
        "usage--1",
        "usage-1x",
        "xusage-1",
        "usage-01",
        "usage-00",
        "usage- 1",
        "usage-\N{SUPERSCRIPT TWO}",
        "usage-\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_no_other_name_is_a_usage_log(name: str) -> None:
    assert placement.partition_of_log(name) is None
