"""Root of an exported log from its entries alone: standard library, no code of Tollbook's.

    python3 docs/examples/root.py EXPORT/logs/usage-0 [SIZE]

With SIZE, the root over the first SIZE entries: what an earlier checkpoint of
that size must have signed.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path


def bundle_path(index: int, width: int) -> str:
    """Name of an entry bundle: 1234067 is x001/x234/067, and a partial one ends in .p/WIDTH."""
    name = f"{index % 1000:03d}"
    while index := index // 1000:
        name = f"x{index % 1000:03d}/{name}"
    return f"tile/entries/{name}" + (f".p/{width}" if width < 256 else "")


def entries(log: Path, size: int) -> Iterator[bytes]:
    """Every leaf of a log, in order."""
    for first in range(0, size, 256):
        width = min(256, size - first)
        data = (log / bundle_path(first // 256, width)).read_bytes()
        while data:
            length = int.from_bytes(data[:2], "big")
            yield data[2 : 2 + length]
            data = data[2 + length :]


def root(leaves: list[bytes]) -> bytes:
    """RFC 6962, as it is defined there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def main() -> int:
    log = Path(sys.argv[1])
    origin, signed_size, signed_root = (log / "checkpoint").read_text().split("\n")[:3]
    size = int(sys.argv[2]) if len(sys.argv) > 2 else int(signed_size)
    leaves = list(entries(log, int(signed_size)))
    found = root(leaves[:size])
    print(f"{origin}: {len(leaves)} entries, root at size {size} is {found.hex()}")
    if size < int(signed_size):
        return 0
    same = found == base64.b64decode(signed_root) and len(leaves) == size
    print("the checkpoint signs this root" if same else "the checkpoint signs ANOTHER root")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
