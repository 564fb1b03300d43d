"""The identity index never misses an entry, whatever the order, the sizes and the restarts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.domain import identities
from ledger.domain.compiled import filters
from ledger.domain.identities import IdentityIndex, Run, SealedRun, fingerprints_of


def identity(number: int) -> bytes:
    return hashlib.sha256(b"identity %d" % number).digest()


def prints(numbers: list[int]) -> identities.Fingerprints:
    return fingerprints_of([identity(number) for number in numbers])


def at(positions: list[int]) -> identities.Positions:
    return np.array(positions, dtype=np.int64)


@given(st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=12), st.integers(1, 20))
def test_every_entry_is_found_at_its_positions(batches: list[list[int]], run_entries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "RUN_ENTRIES", run_entries)
        index = IdentityIndex()
        expected: dict[int, set[int]] = {}
        position = 0
        for batch in batches:
            first, position = position, position + len(batch)
            index.add(prints(batch), at(list(range(first, position))), position)
            for number, where in zip(batch, range(first, position), strict=True):
                expected.setdefault(number, set()).add(where)
        found: dict[int, set[int]] = {number: set() for number in range(61)}
        for question, where in index.find(prints(list(range(61)))):
            found[question].add(where)
        assert found == {number: expected.get(number, set()) for number in range(61)}
        assert len(index) == sum(map(len, batches))


@given(st.integers(1, 300), st.integers(1, 40))
def test_an_index_loaded_from_its_sealed_runs_finds_the_same(count: int, run_entries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "RUN_ENTRIES", run_entries)
        first = IdentityIndex()
        sealed = [
            run
            for number in range(count)
            if (run := first.add(prints([number]), at([number]), number + 1)) is not None
        ]
        second = IdentityIndex()
        for run in sealed:
            second.load(run)
        start = sealed[-1].end_position if sealed else 0
        for number in range(start, count):
            second.add(prints([number]), at([number]), number + 1)
        asked = prints(list(range(count + 20)))
        assert sorted(second.find(asked)) == sorted(first.find(asked))
        assert sorted(first.find(asked)) == [(number, number) for number in range(count)]


def test_a_hole_between_runs_is_refused() -> None:
    run = Run(prints([1]), at([9]))
    with pytest.raises(ValueError, match="a run from 0 on is needed"):
        IdentityIndex().load(SealedRun(5, 10, run))


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(16, 64),
)
def test_a_filter_that_fills_is_followed_by_a_larger_one_and_nothing_is_missed_meanwhile(
    batches: list[int], run_entries: int, capacity: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "RUN_ENTRIES", run_entries)
        index = IdentityIndex(capacity)
        end = 0
        for count in batches:
            first, end = end, end + count
            index.add(prints(list(range(first, end))), at(list(range(first, end))), end)
            assert sorted(index.find(prints(list(range(end))))) == [(n, n) for n in range(end)]
            assert index._filter is not None
            assert end <= index._filter.capacity <= max(8 * end, 2 * capacity)


def test_what_was_never_there_is_rarely_suspected() -> None:
    index = IdentityIndex()
    index.add(prints(list(range(20_000))), at(list(range(20_000))), 20_000)
    assert index.find(prints(list(range(20_000, 40_000)))) == []


def test_no_entries_is_no_change() -> None:
    index = IdentityIndex()
    assert index.add(fingerprints_of([]), at([]), 7) is None
    assert index.find(fingerprints_of([])) == []


WORD = 1 << 32
SALTS = (
    *(0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D),
    *(0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31),
)


def bits_of(fingerprint: int, blocks: int) -> list[tuple[int, int, int]]:
    """(block, word, bit) that an entry sets, as Parquet's BloomFilter.md has them."""
    block, key = (fingerprint >> 32) * blocks >> 32, fingerprint % WORD
    return [(block, word, key * salt % WORD >> 27) for word, salt in enumerate(SALTS)]


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_a_filter_sets_the_bits_of_the_format(put: list[int], asked: list[int]) -> None:
    kept = filters.Filter(100)
    kept.add(np.array(put, dtype=np.uint64))
    wanted = np.zeros_like(kept._words)
    for fingerprint in put:
        for block, word, bit in bits_of(fingerprint, len(wanted)):
            wanted[block, word] |= np.uint32(1 << bit)
    assert np.array_equal(kept._words, wanted)
    found = np.zeros(len(put + asked), dtype=np.bool_)
    kept.look(np.array(put + asked, dtype=np.uint64), found)
    assert found.tolist() == [
        all(wanted[block, word] >> bit & 1 for block, word, bit in bits_of(item, len(wanted)))
        for item in put + asked
    ]


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9) | st.integers(2**64 - 9, 2**64 - 1)),
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9) | st.integers(2**64 - 9, 2**64 - 1)),
)
def test_a_place_in_a_run_is_found_however_its_entries_are_spread(
    entries: list[int], asked: list[int]
) -> None:
    run = np.sort(np.array(entries, dtype=np.uint64))
    wanted = np.array(asked + entries, dtype=np.uint64)
    first = np.empty(len(wanted), dtype=np.int64)
    found = filters.lookup(run, wanted, first)
    assert found == sum(number in entries for number in asked + entries)
    assert first.tolist() == np.searchsorted(run, wanted).tolist()
