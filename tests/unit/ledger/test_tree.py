"""The tile-shaped tree edge gives the kernel's roots and frontiers, and each full tile once."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.merkle import EMPTY_ROOT, Frontier
from kernel.tiles import TILE_WIDTH, tile_root
from ledger.domain.tree import Tile, TreeBuilder


def hashes(first: int, count: int) -> list[bytes]:
    return [
        hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(first, first + count)
    ]


def frontier_of(size: int) -> Frontier:
    frontier = Frontier()
    frontier.extend(hashes(0, size))
    return frontier


def edge_of(size: int) -> list[list[bytes]]:
    """The hashes of each level's partial tile, from the leaves alone."""
    row, partial = hashes(0, size), []
    while True:
        whole = len(row) // TILE_WIDTH
        partial.append(row[whole * TILE_WIDTH :])
        if not whole:
            return partial
        row = [
            tile_root(b"".join(row[at * TILE_WIDTH : (at + 1) * TILE_WIDTH])) for at in range(whole)
        ]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537])
def test_roots_and_frontiers_are_the_kernels(size: int) -> None:
    tree = TreeBuilder()
    tree.extend(hashes(0, size))
    expected = frontier_of(size)
    assert (tree.size, tree.root(), tree.frontier()) == (size, expected.root(), expected.to_bytes())


def test_an_empty_tree_has_the_empty_root() -> None:
    assert TreeBuilder().root() == EMPTY_ROOT
    assert TreeBuilder().extend([]) == []


@given(st.lists(st.integers(0, 700), max_size=8))
def test_any_cut_into_batches_gives_one_tree(cuts: list[int]) -> None:
    tree = TreeBuilder()
    tiles: list[Tile] = []
    for count in cuts:
        tiles += tree.extend(hashes(tree.size, count))
        # Asked for between batches too: a kept peak must never go stale.
        assert tree.root() == frontier_of(tree.size).root()
    whole = TreeBuilder()
    assert sorted(tiles) == sorted(whole.extend(hashes(0, sum(cuts))))
    assert tree.frontier() == whole.frontier()
    assert all(len(tile.hashes) == TILE_WIDTH * 32 for tile in tiles)


@given(st.integers(0, 1_500), st.integers(0, 600))
def test_a_restored_edge_goes_on_as_if_never_put_away(size: int, more: int) -> None:
    whole = TreeBuilder()
    whole.extend(hashes(0, size))
    restored = TreeBuilder(size, edge_of(size))
    assert restored.extend(hashes(size, more)) == whole.extend(hashes(size, more))
    assert (restored.root(), restored.frontier()) == (whole.root(), whole.frontier())


@pytest.mark.parametrize(
    ("size", "partial"),
    [(3, [hashes(0, 2)]), (0, [hashes(0, 1)]), (256, [[]]), (256, [[], []]), (1, [])],
)
def test_an_edge_that_does_not_fit_its_size_is_refused(
    size: int, partial: list[list[bytes]]
) -> None:
    with pytest.raises(ValueError, match=f"tree of {size} leaves"):
        TreeBuilder(size, partial)
