"""Sealed segments as files: zstd Parquet, in a directory or a bucket.

Owns the files' layout. A row is a leaf; `leaf` alone is the log, the other
columns are read out of it so that any Parquet reader can search without
knowing our formats. Row groups have a fixed number of rows, so that a position
tells where it stands.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ledger.adapters.store import BrokenLogError
from ledger.domain.leafrun import LeafRun

GROUP_ENTRIES: Final = 16_384
_LEVEL: Final = 6
_MAX_KEPT: Final = 4
_READ_BYTES: Final = 1 << 20

SCHEMA: Final = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("disposition", pa.int8(), nullable=False),
        pa.field("reason", pa.int8(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("account_id", pa.string()),
        pa.field("served_model", pa.string()),
        pa.field("event_time_ns", pa.int64()),
        pa.field("leaf", pa.binary(), nullable=False),
    ]
)


class ArchiveError(BrokenLogError):
    """A file of the archive that is not there, or is not what was sealed."""


class Sealed(NamedTuple):
    """A sealed segment: where it is and what proves it."""

    log_id: int
    start: int
    end: int
    file: str
    sha256: bytes
    end_root: bytes


def file_name(log: str, start: int, end: int) -> str:
    """Name of a segment's file below the archive's root."""
    return f"{log}/{start:016d}-{end:016d}.parquet"


class Archive:
    """Files below a directory, or below a URL such as s3://BUCKET/PREFIX."""

    def __init__(self, where: str) -> None:
        """Errors: ArchiveError when `where` is no place that can be used."""
        try:
            if "://" in where:
                self._files, self._root = pafs.FileSystem.from_uri(where)
            else:
                self._files, self._root = pafs.LocalFileSystem(), str(Path(where).absolute())
        except (pa.ArrowInvalid, OSError) as error:
            raise ArchiveError(f"{where} cannot hold segments: {error}") from None
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], LeafRun] = OrderedDict()

    def path(self, file: str) -> str:
        """Where a file is, for people."""
        return f"{self._root}/{file}"

    async def run(self, sealed: Sealed, first: int, end: int) -> LeafRun:
        """Leaves from `first` on, at least one, up to `end` or the end of their row group.

        Errors: ArchiveError.
        """
        group = (first - sealed.start) // GROUP_ENTRIES
        key = (sealed.file, group)
        found = self._groups.get(key)
        if found is None:
            found = await asyncio.to_thread(self._read_group, sealed, group)
            self._groups[key] = found
            while len(self._groups) > _MAX_KEPT:
                self._groups.popitem(last=False)
        return found.part(first, min(end, sealed.end))

    def _read_group(self, sealed: Sealed, group: int) -> LeafRun:
        try:
            file = self._open.get(sealed.file)
            if file is None:
                file = pq.ParquetFile(self._files.open_input_file(self.path(sealed.file)))
                self._check(file, sealed)
                self._open[sealed.file] = file
                while len(self._open) > _MAX_KEPT:
                    self._open.popitem(last=False)
            column = file.read_row_group(group, columns=["leaf"])["leaf"]
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(
                f"positions [{sealed.start}, {sealed.end}) were sealed into"
                f" {self.path(sealed.file)} (SHA-256 {sealed.sha256.hex()}), which cannot be read:"
                f" {error}"
            ) from None
        return _run_of(sealed.start + group * GROUP_ENTRIES, column.combine_chunks())

    def _check(self, file: pq.ParquetFile, sealed: Sealed) -> None:
        """That this is the segment's own file: cheaply, the digest is the sealer's to check."""
        told = (file.schema_arrow.metadata or {}).get(b"tollbook.end_root")
        rows = file.metadata.num_rows
        if told != sealed.end_root.hex().encode() or rows != sealed.end - sealed.start:
            raise ArchiveError(
                f"{self.path(sealed.file)} is not what was sealed: {rows} rows, end root"
                f" {(told or b'').decode()}; restore the file whose SHA-256 is"
                f" {sealed.sha256.hex()}"
            )

    def write(
        self, file: str, batches: Iterable[pa.RecordBatch], metadata: dict[str, str]
    ) -> tuple[int, bytes]:
        """Write a file of row groups, then read it again; gives (bytes, SHA-256) of what is there.

        Errors: OSError.
        """
        path = self.path(file)
        self._files.create_dir(path.rpartition("/")[0])
        schema = SCHEMA.with_metadata({f"tollbook.{name}": text for name, text in metadata.items()})
        with (
            self._files.open_output_stream(path) as out,
            pq.ParquetWriter(
                out,
                schema,
                compression="zstd",
                compression_level=_LEVEL,
                use_dictionary=["account_id", "served_model", "disposition", "reason"],
                column_encoding={
                    "position": "DELTA_BINARY_PACKED",
                    "timestamp_ms": "DELTA_BINARY_PACKED",
                    "event_time_ns": "DELTA_BINARY_PACKED",
                },
                write_page_checksum=True,
            ) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch, row_group_size=GROUP_ENTRIES)
        return self.digest(file)

    def digest(self, file: str) -> tuple[int, bytes]:
        """(bytes, SHA-256) of a file. Errors: ArchiveError when it cannot be read."""
        digest, size = hashlib.sha256(), 0
        try:
            with self._files.open_input_stream(self.path(file)) as stream:
                while piece := stream.read(_READ_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise ArchiveError(f"{self.path(file)} cannot be read: {error}") from None
        return size, digest.digest()


def _run_of(first: int, leaves: Any) -> LeafRun:
    """A run out of an Arrow array of binary, in its own bytes."""
    _, offsets, data = leaves.buffers()
    narrow = np.frombuffer(offsets, dtype=np.int32)[leaves.offset :][: len(leaves) + 1]
    bounds = narrow.astype(np.int64)
    return LeafRun(first, np.frombuffer(data, dtype=np.uint8), bounds[:-1], bounds[1:])
