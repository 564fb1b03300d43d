"""Body digests by identity for a log too large to keep them in memory: on disk, in SQLite.

Newest first in memory, older ones in a temporary file that goes with the
mapping. Only what admission needs: setting and getting.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

KEPT_IN_MEMORY: Final = 1_000_000
"""About 250 MB of identities and digests."""


class SpilledBodies(MutableMapping[bytes, bytes]):
    """A mapping whose memory is bounded by `keep` entries."""

    def __init__(self, keep: int = KEPT_IN_MEMORY) -> None:
        self._keep = keep
        self._newest: dict[bytes, bytes] = {}
        self._spilled = 0
        self._folder = tempfile.TemporaryDirectory(prefix="tollbook-audit-")
        self._db = sqlite3.connect(Path(self._folder.name) / "bodies", isolation_level=None)
        # The file is scratch: nothing of it must outlive a crash.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE body (identity BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID")

    def __getitem__(self, identity: bytes) -> bytes:
        found = self._newest.get(identity)
        if found is not None:
            return found
        if self._spilled:
            row = self._db.execute(
                "SELECT digest FROM body WHERE identity = ?", (identity,)
            ).fetchone()
            if row is not None:
                digest: bytes = row[0]
                return digest
        raise KeyError(identity)

    def __setitem__(self, identity: bytes, digest: bytes) -> None:
        self._newest[identity] = digest
        if len(self._newest) >= self._keep:
            # In order of key, so that the pages of the tree are each written once.
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR REPLACE INTO body VALUES (?, ?)", sorted(self._newest.items())
            )
            self._db.execute("COMMIT")
            self._spilled += len(self._newest)
            self._newest.clear()

    def __delitem__(self, identity: bytes) -> None:
        raise TypeError("an identity never expires")

    def __iter__(self) -> Iterator[bytes]:
        raise TypeError("identities are only ever looked up")

    def __len__(self) -> int:
        return self._spilled + len(self._newest)

    def close(self) -> None:
        """Remove the file."""
        self._db.close()
        self._folder.cleanup()
