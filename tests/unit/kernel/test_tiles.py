"""C2SP tlog-tiles: the specification's own examples, and tiles against the tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import merkle, tiles


def leaf(number: int) -> bytes:
    return merkle.leaf_hash(str(number).encode())


def test_the_paths_of_the_specification() -> None:
    assert tiles.tile_path(0, 0) == "tile/0/000"
    assert tiles.tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tiles.tile_path(3, 1_234_067) == "tile/3/x001/x234/067"
    assert tiles.tile_path(1, 999) == "tile/1/999"
    assert tiles.tile_path(1, 1000) == "tile/1/x001/000"
    assert tiles.tile_path(0, 273, 112) == "tile/0/273.p/112"
    assert tiles.tile_path(2, 0, 1) == "tile/2/000.p/1"
    assert tiles.bundle_path(1_234_067) == "tile/entries/x001/x234/067"
    assert tiles.bundle_path(273, 112) == "tile/entries/273.p/112"


def test_the_example_tree_of_the_specification() -> None:
    """A tree of 70,000 leaves has 273 full tiles and a partial one of 112 at level 0, and so on."""
    found = list(tiles.tiles_of(70_000))
    assert [t for t in found if t[0] == 0] == [*((0, n, 256) for n in range(273)), (0, 273, 112)]
    assert [t for t in found if t[0] == 1] == [(1, 0, 256), (1, 1, 17)]
    assert [t for t in found if t[0] == 2] == [(2, 0, 1)]
    assert max(level for level, _, _ in found) == 2
    assert list(tiles.bundles_of(70_000)) == [*((n, 256) for n in range(273)), (273, 112)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, [(0, 0, 1)]),
        (255, [(0, 0, 255)]),
        (256, [(0, 0, 256), (1, 0, 1)]),
        (257, [(0, 0, 256), (0, 1, 1), (1, 0, 1)]),
    ],
)
def test_tiles_at_the_edges(size: int, expected: list[tuple[int, int, int]]) -> None:
    assert list(tiles.tiles_of(size)) == expected


def test_tiles_at_the_second_levels_edge() -> None:
    for size, edge in (
        (65_535, {(0, 255, 255), (1, 0, 255)}),
        (65_536, {(0, 255, 256), (1, 0, 256), (2, 0, 1)}),
        (65_537, {(0, 256, 1), (1, 0, 256), (2, 0, 1)}),
    ):
        found = set(tiles.tiles_of(size))
        assert edge <= found
        assert len(found) == -(-size // 256) + len({t for t in edge if t[0] > 0})


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_no_two_tiles_share_a_path(one: int, other: int) -> None:
    assert (tiles.tile_path(0, one) == tiles.tile_path(0, other)) == (one == other)
    assert (tiles.bundle_path(one) == tiles.bundle_path(other)) == (one == other)


@given(st.integers(1, 1200), st.data())
def test_every_node_and_proof_is_read_out_of_the_tiles(size: int, data: st.DataObject) -> None:
    hashes = [leaf(number) for number in range(size)]
    stored: dict[tuple[int, int], bytes] = {}
    row = hashes
    level = 0
    while row:
        for index in range(0, len(row), 256):
            stored[level, index // 256] = b"".join(row[index : index + 256])
        row = [
            tiles.tile_root(stored[level, index]) for index in range(len(row) // tiles.TILE_WIDTH)
        ]
        level += 1
    assert {
        (level, index, len(hashes_) // 32) for (level, index), hashes_ in stored.items()
    } == set(tiles.tiles_of(size))

    def read(level: int, index: int) -> bytes:
        tile_level, tile, first, count = tiles.node_in_tile(level, index)
        return tiles.read_node_from_tile(stored[tile_level, tile], first, count)

    root = merkle.root_of(hashes)
    assert merkle.root_at(size, read) == root
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, read)
    merkle.verify_inclusion(index, size, hashes[index], proof, root)
    first = data.draw(st.integers(1, size))
    merkle.verify_consistency(
        first,
        size,
        merkle.root_of(hashes[:first]),
        root,
        merkle.consistency_proof(first, size, read),
    )


def test_a_node_beyond_a_partial_tile_is_not_there() -> None:
    with pytest.raises(KeyError):
        tiles.read_node_from_tile(leaf(0), 0, 2)
    with pytest.raises(ValueError, match="full tile"):
        tiles.tile_root(leaf(0) * 255)


@given(st.lists(st.binary(max_size=400), max_size=256))
def test_a_bundle_gives_its_leaves_back(leaves: list[bytes]) -> None:
    data = tiles.encode_bundle(leaves)
    assert len(data) == sum(2 + len(entry) for entry in leaves)
    assert tiles.decode_bundle(data) == leaves


def test_bundle_bytes_as_the_specification_writes_them() -> None:
    assert tiles.encode_bundle([b"", b"abc"]) == b"\x00\x00\x00\x03abc"
    largest = b"x" * 65_535
    assert tiles.decode_bundle(tiles.encode_bundle([largest])) == [largest]
    with pytest.raises(ValueError, match="65535"):
        tiles.encode_bundle([b"x" * 65_536])


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=10), st.data())
def test_a_cut_bundle_is_an_error_or_fewer_leaves(leaves: list[bytes], data: st.DataObject) -> None:
    whole = tiles.encode_bundle(leaves)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        got = tiles.decode_bundle(cut)
    except ValueError:
        return
    assert got == leaves[: len(got)]
    assert len(got) < len(leaves)
