"""RFC 6962 trees: published vectors, a naive model, and laws over every proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kernel import merkle

# The vectors of the Certificate Transparency reference code for RFC 6962.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
BIG_SIZES = (255, 256, 257, 65_535, 65_536, 65_537)


def leaf(number: int) -> bytes:
    return merkle.leaf_hash(str(number).encode())


def naive_root(hashes: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, as it is written there."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    left, right = naive_root(hashes[:split]), naive_root(hashes[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def naive_inclusion(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(hashes) <= 1:
        return []
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    if index < split:
        return [*naive_inclusion(index, hashes[:split]), naive_root(hashes[split:])]
    return [*naive_inclusion(index - split, hashes[split:]), naive_root(hashes[:split])]


def naive_consistency(first: int, hashes: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if first == len(hashes):
        return [] if whole else [naive_root(hashes)]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    if first <= split:
        return [*naive_consistency(first, hashes[:split], whole), naive_root(hashes[split:])]
    return [
        *naive_consistency(first - split, hashes[split:], False),
        naive_root(hashes[:split]),
    ]


def reader(hashes: Sequence[bytes]) -> merkle.ReadNode:
    """Read full nodes out of a list of leaf hashes."""

    @cache
    def read(level: int, index: int) -> bytes:
        if level == 0:
            if index >= len(hashes):
                raise KeyError(f"no leaf {index}")
            return hashes[index]
        return merkle.node_hash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1))

    return read


class Tree:
    """65,537 leaves with all their nodes, made once."""

    def __init__(self, size: int) -> None:
        self.levels = [[leaf(number) for number in range(size)]]
        while len(self.levels[-1]) > 1:
            row = self.levels[-1]
            self.levels.append(
                [merkle.node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)]
            )

    def read(self, level: int, index: int) -> bytes:
        return self.levels[level][index]


@pytest.fixture(scope="module")
def big() -> Tree:
    return Tree(65_537)


def flipped(data: bytes, bit: int) -> bytes:
    at = bit % (8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def test_published_roots() -> None:
    frontier = merkle.Frontier()
    assert frontier.root() == ROOTS[0] == merkle.EMPTY_ROOT
    for data, root in zip(LEAVES, ROOTS[1:], strict=True):
        frontier.append(merkle.leaf_hash(data))
        assert frontier.root() == root
    hashes = [merkle.leaf_hash(data) for data in LEAVES]
    for size, root in enumerate(ROOTS):
        assert merkle.root_of(hashes[:size]) == root
        assert merkle.root_at(size, reader(hashes)) == root


def test_published_inclusion_proofs() -> None:
    hashes = [merkle.leaf_hash(data) for data in LEAVES]
    for (index, size), path in INCLUSION.items():
        proof = merkle.inclusion_proof(index, size, reader(hashes))
        assert [node.hex() for node in proof] == path
        merkle.verify_inclusion(index, size, hashes[index], proof, ROOTS[size])


def test_published_consistency_proofs() -> None:
    hashes = [merkle.leaf_hash(data) for data in LEAVES]
    for (first, second), nodes in CONSISTENCY.items():
        proof = merkle.consistency_proof(first, second, reader(hashes))
        assert [node.hex() for node in proof] == nodes
        merkle.verify_consistency(first, second, ROOTS[first], ROOTS[second], proof)


def test_a_leaf_is_never_a_node() -> None:
    left, right = leaf(0), leaf(1)
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


@pytest.mark.parametrize("size", [0, 1, 2, *BIG_SIZES])
def test_frontier_and_nodes_give_the_rfc_root(size: int, big: Tree) -> None:
    hashes = big.levels[0][:size]
    root = naive_root(hashes)
    assert merkle.root_of(hashes) == root
    assert merkle.root_at(size, big.read) == root


@pytest.mark.parametrize("size", [1, 2, *BIG_SIZES])
def test_inclusion_at_the_sizes_where_tiles_turn(size: int, big: Tree) -> None:
    root = merkle.root_at(size, big.read)
    for index in sorted({0, 1, size // 2, 254, 255, 256, 65_535, size - 2, size - 1}):
        if 0 <= index < size:
            proof = merkle.inclusion_proof(index, size, big.read)
            merkle.verify_inclusion(index, size, leaf(index), proof, root)
            with pytest.raises(merkle.ProofError):
                merkle.verify_inclusion(index, size, leaf(index + 1), proof, root)


@pytest.mark.parametrize("second", [2, *BIG_SIZES])
def test_consistency_at_the_sizes_where_tiles_turn(second: int, big: Tree) -> None:
    newer = merkle.root_at(second, big.read)
    for first in (0, 1, 2, *BIG_SIZES):
        if first <= second:
            older = merkle.root_at(first, big.read)
            proof = merkle.consistency_proof(first, second, big.read)
            merkle.verify_consistency(first, second, older, newer, proof)


def test_every_proof_of_every_tree_up_to_33_leaves() -> None:
    hashes = [leaf(number) for number in range(33)]
    read = reader(hashes)
    for size in range(34):
        tree = hashes[:size]
        root = naive_root(tree)
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, read)
            assert proof == naive_inclusion(index, tree)
            merkle.verify_inclusion(index, size, hashes[index], proof, root)
        for first in range(1, size + 1):
            proof = merkle.consistency_proof(first, size, read)
            assert proof == naive_consistency(first, tree)
            merkle.verify_consistency(first, size, naive_root(tree[:first]), root, proof)


sizes = st.integers(1, 300)


@given(sizes, st.data())
def test_a_changed_inclusion_proof_never_verifies(size: int, data: st.DataObject) -> None:
    hashes = [leaf(number) for number in range(size)]
    read = reader(hashes)
    root = merkle.root_at(size, read)
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(index, size, read)
    merkle.verify_inclusion(index, size, hashes[index], proof, root)
    bit = data.draw(st.integers(0, 255))
    changes = ["leaf", "root", "index", "longer", "size"]
    if proof:
        changes += ["node", "shorter", "cut node"]
    if len(set(proof)) > 1:
        changes.append("order")
    wrong: tuple[int, int, bytes, list[bytes], bytes]
    match data.draw(st.sampled_from(changes)):
        case "leaf":
            wrong = index, size, flipped(hashes[index], bit), proof, root
        case "root":
            wrong = index, size, hashes[index], proof, flipped(root, bit)
        case "index":
            other = data.draw(st.integers(-2, size + 2))
            assume(other != index)
            wrong = other, size, hashes[index], proof, root
        case "size":
            # Another size can ask for the very same path (leaf 0 of 3 and of 4 leaves);
            # what binds the size is the checkpoint. A path of another shape must fail.
            other = data.draw(st.integers(-2, 2 * size + 2))
            assume(other <= index or len(merkle_path(index, other)) != len(proof))
            wrong = index, other, hashes[index], proof, root
        case "longer":
            at = data.draw(st.integers(0, len(proof)))
            wrong = index, size, hashes[index], [*proof[:at], leaf(-1), *proof[at:]], root
        case "shorter":
            at = data.draw(st.integers(0, len(proof) - 1))
            wrong = index, size, hashes[index], [*proof[:at], *proof[at + 1 :]], root
        case "node":
            at = data.draw(st.integers(0, len(proof) - 1))
            changed = [*proof[:at], flipped(proof[at], bit), *proof[at + 1 :]]
            wrong = index, size, hashes[index], changed, root
        case "cut node":
            at = data.draw(st.integers(0, len(proof) - 1))
            changed = [*proof[:at], proof[at][:-1], *proof[at + 1 :]]
            wrong = index, size, hashes[index], changed, root
        case _:
            order = data.draw(st.permutations(proof))
            assume(order != proof)
            wrong = index, size, hashes[index], order, root
    with pytest.raises(merkle.ProofError):
        merkle.verify_inclusion(*wrong)


def merkle_path(index: int, size: int) -> list[bytes]:
    return merkle.inclusion_proof(index, size, lambda level, at: b"\0" * 32)


@given(sizes, st.data())
def test_a_changed_consistency_proof_never_verifies(second: int, data: st.DataObject) -> None:
    hashes = [leaf(number) for number in range(second)]
    read = reader(hashes)
    first = data.draw(st.integers(1, second))
    older, newer = merkle.root_at(first, read), merkle.root_at(second, read)
    proof = merkle.consistency_proof(first, second, read)
    merkle.verify_consistency(first, second, older, newer, proof)
    bit = data.draw(st.integers(0, 255))
    changes = ["first root", "second root", "longer"]
    if proof:
        changes += ["node", "shorter", "cut node", "swapped sizes"]
    wrong: tuple[int, int, bytes, bytes, list[bytes]]
    match data.draw(st.sampled_from(changes)):
        case "first root":
            wrong = first, second, flipped(older, bit), newer, proof
        case "second root":
            wrong = first, second, older, flipped(newer, bit), proof
        case "longer":
            at = data.draw(st.integers(0, len(proof)))
            wrong = first, second, older, newer, [*proof[:at], leaf(-1), *proof[at:]]
        case "shorter":
            at = data.draw(st.integers(0, len(proof) - 1))
            wrong = first, second, older, newer, [*proof[:at], *proof[at + 1 :]]
        case "node":
            at = data.draw(st.integers(0, len(proof) - 1))
            changed = [*proof[:at], flipped(proof[at], bit), *proof[at + 1 :]]
            wrong = first, second, older, newer, changed
        case "cut node":
            at = data.draw(st.integers(0, len(proof) - 1))
            wrong = first, second, older, newer, [*proof[:at], proof[at][:-1], *proof[at + 1 :]]
        case _:
            wrong = second, first, newer, older, proof
    with pytest.raises(merkle.ProofError):
        merkle.verify_consistency(*wrong)


@given(sizes, sizes, st.integers(0, 255))
def test_a_rewritten_past_has_no_consistency_proof(first: int, more: int, at: int) -> None:
    """The new tree honestly built over a changed old entry never extends the old root."""
    second = first + more
    old = [leaf(number) for number in range(first)]
    new = [leaf(number) for number in range(second)]
    new[at % first] = leaf(-1)
    proof = merkle.consistency_proof(first, second, reader(new))
    with pytest.raises(merkle.ProofError):
        merkle.verify_consistency(first, second, merkle.root_of(old), merkle.root_of(new), proof)


@given(st.integers(0, 600), st.integers(0, 600))
def test_a_frontier_goes_on_from_its_bytes_and_from_a_copy(first: int, more: int) -> None:
    hashes = [leaf(number) for number in range(first + more)]
    frontier = merkle.Frontier()
    frontier.extend(hashes[:first])
    kept = frontier.to_bytes()
    assert len(kept) <= 64 * 32
    read_back = merkle.Frontier.from_bytes(first, kept)
    copied = frontier.copy()
    for other in (read_back, copied):
        other.extend(hashes[first:])
        assert (other.size, other.root()) == (first + more, naive_root(hashes))
    assert (frontier.size, frontier.to_bytes()) == (first, kept)


@given(st.integers(-5, 2**64), st.integers(0, 70))
@example(size=2**63, hashes=1)
def test_frontier_bytes_must_fit_the_size(size: int, hashes: int) -> None:
    data = b"\1" * 32 * hashes
    if size >= 0 and size.bit_count() == hashes:
        assert merkle.Frontier.from_bytes(size, data).to_bytes() == data
    else:
        with pytest.raises(ValueError, match="frontier"):
            merkle.Frontier.from_bytes(size, data)


def test_what_is_not_in_the_tree_has_no_proof() -> None:
    read = reader([leaf(0)])
    for index, size in ((-1, 1), (1, 1), (0, 0)):
        with pytest.raises(ValueError, match="not in a tree"):
            merkle.inclusion_proof(index, size, read)
    for first, second in ((2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="no prefix"):
            merkle.consistency_proof(first, second, read)
    with pytest.raises(KeyError):
        merkle.inclusion_proof(0, 2, read)


def test_the_empty_tree_is_a_prefix_of_every_tree_and_of_nothing_else() -> None:
    root = merkle.root_of([leaf(0)])
    merkle.verify_consistency(0, 1, merkle.EMPTY_ROOT, root, [])
    merkle.verify_consistency(0, 0, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, [])
    for older, proof in ((root, []), (merkle.EMPTY_ROOT, [root])):
        with pytest.raises(merkle.ProofError):
            merkle.verify_consistency(0, 1, older, root, proof)
    with pytest.raises(merkle.ProofError, match="forked"):
        merkle.verify_consistency(1, 1, root, leaf(1), [])
