"""Where things stand in an export, and reading them with a limit on every size.

    EXPORT/logs/LOG/checkpoint       a C2SP tlog-tiles directory for each log
    EXPORT/logs/LOG/tile/...
    EXPORT/aside/HEX                 records too large for a tile's entry, by SHA-256
    EXPORT/served.json               what ListBalances answered, in protobuf's JSON
    EXPORT/keys                      verifier keys, a line each, for convenience only
    EXPORT/README

Nothing in an export is trusted; the verifier keys come from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from audit.findings import UnusableError
from kernel import tiles
from kernel.merkle import HASH_BYTES
from kernel.note import MAX_NOTE_BYTES
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from kernel.tilebuilder import CHECKPOINT_PATH

LOGS_DIR: Final = "logs"
ASIDE_DIR: Final = "aside"
SERVED_FILE: Final = "served.json"
KEYS_FILE: Final = "keys"
README_FILE: Final = "README"

MAX_ASIDE_BYTES: Final = 16 * 1024 * 1024
MAX_SERVED_BYTES: Final = 1024 * 1024 * 1024
_MAX_BUNDLE_BYTES: Final = tiles.TILE_WIDTH * (tiles.MAX_ENTRY_BYTES + 2)


def read_limited(path: Path, limit_bytes: int) -> bytes | None:
    """Read a file; None when it is not there. What is beyond the limit is cut off."""
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UnusableError(f"cannot read {path}: {error.strerror}") from None


class LogFiles:
    """The files of one log."""

    def __init__(self, log: str, directory: Path) -> None:
        self.log = log
        self.directory = directory

    def checkpoint(self) -> bytes | None:
        """The signed note."""
        return read_limited(self.directory / CHECKPOINT_PATH, MAX_NOTE_BYTES + 1)

    def tile(self, level: int, index: int, width: int) -> bytes | None:
        """Hashes of a tile; of a full one, where a log that grew has it instead of the partial."""
        limit_bytes = width * HASH_BYTES + 1
        data = read_limited(self.directory / tiles.tile_path(level, index, width), limit_bytes)
        if data is None and width < tiles.TILE_WIDTH:
            full = read_limited(self.directory / tiles.tile_path(level, index), limit_bytes)
            data = None if full is None else full[: width * HASH_BYTES]
        return data

    def bundle(self, index: int, width: int) -> bytes | None:
        """Bytes of an entry bundle, or of the full one, as in `tile`."""
        data = read_limited(self.directory / tiles.bundle_path(index, width), _MAX_BUNDLE_BYTES + 1)
        if data is None and width < tiles.TILE_WIDTH:
            full = read_limited(self.directory / tiles.bundle_path(index), _MAX_BUNDLE_BYTES + 1)
            if full is not None:
                entries, _ = split_bundle(full, width)
                data = tiles.encode_bundle(entries)
        return data


def split_bundle(data: bytes, most: int) -> tuple[list[bytes], bool]:
    """Entries of a bundle, at most `most`, as far as it can be read, and whether that was all."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < most:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            return entries, False
        entries.append(data[at + 2 : end])
        at = end
    return entries, at == len(data)


class Export:
    """An export's directory."""

    def __init__(self, root: Path) -> None:
        """Errors: UnusableError when it is no export."""
        self.root = root
        if not root.is_dir():
            raise UnusableError(f"there is no directory {root}")
        if not (root / LOGS_DIR).is_dir():
            raise UnusableError(
                f"{root} is no export: it has no directory {LOGS_DIR!r} (write one with"
                " `tollbook export DIR`)"
            )

    def logs(self) -> list[str]:
        """Names of the logs in it: control, cuts, then usage logs by number."""
        names = {path.name for path in (self.root / LOGS_DIR).iterdir() if path.is_dir()}
        usage = sorted(
            (name for name in names if partition_of_log(name) is not None),
            key=lambda name: partition_of_log(name) or 0,
        )
        return [name for name in (CONTROL_LOG, CUT_LOG) if name in names] + usage

    def strangers(self) -> list[str]:
        """What stands among the logs and is none."""
        names = {path.name for path in (self.root / LOGS_DIR).iterdir()}
        return sorted(names - set(self.logs()))

    def log(self, name: str) -> LogFiles:
        """The files of a log."""
        return LogFiles(name, self.root / LOGS_DIR / name)

    def aside(self, digest: bytes) -> bytes | None:
        """A record that stands aside, by its SHA-256."""
        return read_limited(self.root / ASIDE_DIR / digest.hex(), MAX_ASIDE_BYTES + 1)

    def served(self) -> bytes | None:
        """What was served."""
        return read_limited(self.root / SERVED_FILE, MAX_SERVED_BYTES)
