"""RFC 6962 Merkle trees over SHA-256: hashes, frontiers, proofs, verification.

A node is addressed as (level, index): level 0 is the leaf hashes, and node
(l, i) covers the leaves [i * 2**l, (i + 1) * 2**l). Only full nodes are ever
stored; what a proof needs beyond them is folded from full nodes. So a proof
can be read out of C2SP tiles, out of a table or out of a list by the same
code: it asks a `ReadNode` for each node.

Sources: RFC 6962 sections 2.1, 2.1.1, 2.1.2; RFC 9162 sections 2.1.3.2 and
2.1.4.2 for the verification algorithms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

ReadNode = Callable[[int, int], bytes]
"""(level, index) -> hash of that full node. Raises KeyError when it is not there."""


class ProofError(ValueError):
    """A proof that does not prove what it claims."""


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root of the tree over these leaf hashes."""
    frontier = Frontier()
    frontier.extend(leaf_hashes)
    return frontier.root()


class Frontier:
    """The right edge of a growing tree: at most 64 hashes, whatever its size.

    `peaks[l]` is the full node at level l on the edge, or None.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes | None] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self.extend((leaf,))

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        """Add leaf hashes in order."""
        peaks = self._peaks
        sha256 = hashlib.sha256
        added = 0
        for leaf in leaf_hashes:
            added += 1
            node = leaf
            level = 0
            while level < len(peaks) and (left := peaks[level]) is not None:
                node = sha256(b"\x01" + left + node).digest()
                peaks[level] = None
                level += 1
            if level == len(peaks):
                peaks.append(node)
            else:
                peaks[level] = node
        self.size += added

    def root(self) -> bytes:
        """Root of the tree so far."""
        root: bytes | None = None
        for peak in self._peaks:
            if peak is not None:
                root = peak if root is None else node_hash(peak, root)
        return EMPTY_ROOT if root is None else root

    def peaks(self) -> list[bytes]:
        """The full nodes on the edge, rightmost (lowest) first."""
        return [peak for peak in self._peaks if peak is not None]

    def copy(self) -> Frontier:
        """An independent frontier of the same tree."""
        other = Frontier()
        other.size = self.size
        other._peaks = list(self._peaks)
        return other

    def to_bytes(self) -> bytes:
        """The peaks from the lowest level up, 32 bytes each; the size tells their levels."""
        return b"".join(peak for peak in self._peaks if peak is not None)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Frontier:
        """Read `to_bytes` back. Errors: ValueError when size and data do not fit."""
        if size < 0 or len(data) != size.bit_count() * HASH_BYTES:
            raise ValueError(f"a frontier of size {size} is not {len(data)} bytes long")
        frontier = cls()
        frontier.size = size
        at = 0
        for level in range(size.bit_length()):
            if size >> level & 1:
                frontier._peaks.append(data[at : at + HASH_BYTES])
                at += HASH_BYTES
            else:
                frontier._peaks.append(None)
        return frontier


def _range_root(start: int, end: int, read: ReadNode) -> bytes:
    """Root of the leaves [start, end); start is a multiple of the range's top power of two."""
    size = end - start
    root: bytes | None = None
    at = end
    # Fold the full nodes of the range from the right, smallest first.
    for level in range(size.bit_length()):
        if size >> level & 1:
            at -= 1 << level
            node = read(level, at >> level)
            root = node if root is None else node_hash(node, root)
    return EMPTY_ROOT if root is None else root


def root_at(size: int, read: ReadNode) -> bytes:
    """Root of the tree of the first `size` leaves, read from full nodes."""
    return _range_root(0, size, read)


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (size >= 2)."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(index: int, size: int, read: ReadNode) -> list[bytes]:
    """Audit path of leaf `index` in the tree of `size` leaves, leaf's sibling first.

    Errors: ValueError unless 0 <= index < size.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(middle, end, read))
            end = middle
        else:
            path.append(_range_root(start, middle, read))
            start = middle
    path.reverse()
    return path


def consistency_proof(first: int, second: int, read: ReadNode) -> list[bytes]:
    """Proof that the tree of `first` leaves is a prefix of the tree of `second`.

    Empty when first is 0 or equals second. Errors: ValueError unless
    0 <= first <= second.
    """
    if not 0 <= first <= second:
        raise ValueError(f"a tree of {first} leaves is no prefix of one of {second}")
    if first in (0, second):
        return []
    proof: list[bytes] = []
    start, end = 0, second
    whole = True  # the subtree under way is a subtree of the first tree as a whole
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(start, middle, read))
            start = middle
            whole = False
    if not whole:
        proof.append(_range_root(start, end, read))
    proof.reverse()
    return proof


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Root that the proof gives for this leaf hash (RFC 9162 section 2.1.3.2).

    Errors: ProofError when the proof's length does not fit index and size.
    """
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} is not in a tree of {size} leaves")
    node, edge = index, size - 1
    root = leaf
    for sibling in proof:
        if len(sibling) != HASH_BYTES:
            raise ProofError(f"a proof's node has {HASH_BYTES} bytes, this one has {len(sibling)}")
        if edge == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == edge:
            root = node_hash(sibling, root)
            while node & 1 == 0 and node != 0:
                node >>= 1
                edge >>= 1
        else:
            root = node_hash(root, sibling)
        node >>= 1
        edge >>= 1
    if edge != 0:
        raise ProofError("the inclusion proof is too short")
    return root


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hash stands at `index` under `root`. Errors: ProofError."""
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise ProofError(f"leaf {index} is not under the root of the tree of {size} leaves")


def verify_consistency(
    first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the first tree is a prefix of the second (RFC 9162 section 2.1.4.2).

    Errors: ProofError.
    """
    if not 0 <= first <= second:
        raise ProofError(f"a tree of {first} leaves is no prefix of one of {second}")
    if first == second:
        if proof:
            raise ProofError("trees of one size need an empty proof")
        if first_root != second_root:
            raise ProofError(f"two roots for the tree of {first} leaves: the log forked")
        return
    if first == 0:
        if proof or first_root != EMPTY_ROOT:
            raise ProofError("the empty tree has an empty proof and the empty root")
        return
    if any(len(node) != HASH_BYTES for node in proof):
        raise ProofError(f"a proof's node has {HASH_BYTES} bytes")
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        raise ProofError("the consistency proof is too short")
    node, edge = first - 1, second - 1
    while node & 1:
        node >>= 1
        edge >>= 1
    older = newer = path[0]
    for sibling in path[1:]:
        if edge == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == edge:
            older = node_hash(sibling, older)
            newer = node_hash(sibling, newer)
            while node & 1 == 0 and node != 0:
                node >>= 1
                edge >>= 1
        else:
            newer = node_hash(newer, sibling)
        node >>= 1
        edge >>= 1
    if edge != 0:
        raise ProofError("the consistency proof is too short")
    if older != first_root or newer != second_root:
        raise ProofError(f"the tree of {first} leaves is not a prefix of the tree of {second}")
