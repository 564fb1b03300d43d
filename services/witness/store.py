"""What a witness cosigned last of each log: one SQLite file, on disk before an answer leaves.

The file is the whole of a witness's worth: with an older copy of it in its place
the witness would cosign a second history. It is never made anew beside a key that
has been used (see `open_store`).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from kernel.merkle import EMPTY_ROOT
from witness.protocol import Seen

_VERSION: Final = 1


class StoreError(RuntimeError):
    """The file cannot be used; says what to do."""


class Store:
    """The latest cosigned tree of each origin."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def seen(self, origin: str) -> Seen:
        """What was cosigned last; the empty tree when nothing was."""
        row = self._db.execute("SELECT size, root FROM seen WHERE origin = ?", (origin,)).fetchone()
        return Seen(0, EMPTY_ROOT) if row is None else Seen(row[0], row[1])

    def advance(self, origin: str, old: Seen, new: Seen, note: bytes) -> bool:
        """Keep a newer tree if `old` is still the last one: on disk when this returns True."""
        self._db.execute("BEGIN IMMEDIATE")
        if self.seen(origin) != old:
            self._db.execute("ROLLBACK")
            return False
        self._db.execute(
            "INSERT INTO seen VALUES (?1, ?2, ?3, ?4)"
            " ON CONFLICT (origin) DO UPDATE SET size = ?2, root = ?3, note = ?4",
            (origin, new.size, new.root, note),
        )
        self._db.execute("COMMIT")
        return True

    def origins(self) -> list[str]:
        """The logs of which something was cosigned."""
        return [row[0] for row in self._db.execute("SELECT origin FROM seen ORDER BY origin")]

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def open_store(path: Path) -> Store:
    """Open the file, or make it. Errors: StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA synchronous = EXTRA")
        # One witness to a file: two would each believe that they saw the last.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StoreError(f"{path} is of version {version}, this witness knows {_VERSION}")
        db.execute(
            "CREATE TABLE IF NOT EXISTS seen (origin TEXT PRIMARY KEY, size INTEGER NOT NULL,"
            " root BLOB NOT NULL, note BLOB NOT NULL) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"the witness's memory {path} cannot be used ({error}); it must not be made anew:"
            " restore it"
        ) from None
    return Store(db)
