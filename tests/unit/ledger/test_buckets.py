"""Tiles and sealed segments in a bucket: the same as in a directory, over real HTTP."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.ledger.s3_server import BUCKET, s3_server
from tests.unit.ledger.test_archive import ENTRIES, ROOT, START, leaf

from kernel.tiles import encode_bundle
from ledger.adapters.archive import GROUP_ENTRIES, Archive, ArchiveError, Sealed
from ledger.adapters.sealing import batch_of
from ledger.adapters.tile_store import StoreUnusableError, TileStore
from ledger.domain import leafrun


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty bucket; its settings are the environment's while the module runs."""
    with (
        s3_server(tmp_path_factory.mktemp("s3")) as settings,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in settings.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


async def test_tiles_are_put_found_listed_and_deleted(bucket: str) -> None:
    store, other = TileStore(f"{bucket}/tiles"), TileStore(f"{bucket}/others")
    path = "logs/control/checkpoint"
    assert await store.get(path) is None
    for data in (b"one", b"", b"x" * 6_000_000):
        await store.put(path, data)
        assert await store.get(path) == data
    assert await other.get(path) is None
    parts = [f"logs/control/tile/0/000.p/{number}" for number in range(1, 5)]
    for part in parts:
        await store.put(part, b"hashes")
    await store.put("logs/control/tile/0/000", b"full")
    assert sorted(await store.names("logs/control/tile/0/000.p/")) == parts
    await store.delete([*parts, "logs/control/tile/0/000.p/9"])
    assert await store.names("logs/control/tile/0/000.p/") == []
    assert await store.get("logs/control/tile/0/000") == b"full"


async def test_an_object_says_how_long_it_may_be_kept(bucket: str) -> None:
    import obstore

    store = TileStore(f"{bucket}/tiles")
    wanted = {
        "logs/control/checkpoint": ("text/plain; charset=utf-8", "no-cache"),
        "logs/control/tile/0/001": (
            "application/octet-stream",
            "public, max-age=31536000, immutable",
        ),
    }
    for path, (kind, caching) in wanted.items():
        await store.put(path, b"x")
        found = (await obstore.get_async(store._store, path)).attributes
        assert (found["Content-Type"], found["Cache-Control"]) == (kind, caching)


@functools.cache
def _batches() -> list[pa.RecordBatch]:
    leaves = [leaf(at) for at in range(START, START + ENTRIES)]
    found = []
    for at in range(0, ENTRIES, GROUP_ENTRIES):
        part = leaves[at : at + GROUP_ENTRIES]
        found.append(batch_of(leafrun.of_bundles(START + at, [encode_bundle(part)], len(part))))
    return found


def _sealed(files: Archive, file: str, end_root: bytes) -> Sealed:
    _, digest = files.write(file, _batches(), {"end_root": end_root.hex()})
    return Sealed(100, START, START + ENTRIES, file, digest, ROOT)


async def test_a_segment_is_read_back_by_position_and_told_from_another(bucket: str) -> None:
    files = Archive(f"{bucket}/segments")
    sealed = _sealed(files, "usage-0/one.parquet", ROOT)
    at = START + GROUP_ENTRIES - 2
    for first, end in ((START, START + 3), (at, at + 9), (START + ENTRIES - 1, START + ENTRIES)):
        run = await Archive(f"{bucket}/segments").run(sealed, first, end)
        assert run.leaves() == [leaf(position) for position in range(first, run.end)]
        assert run.first == first
    # What stands in the bucket is the file that was digested, and any Parquet reader's.
    content = pq.read_table(pa.BufferReader(await _content(bucket, sealed.file)), columns=["leaf"])
    assert content["leaf"].to_pylist()[-1] == leaf(START + ENTRIES - 1)
    another = _sealed(files, "usage-0/two.parquet", bytes(32))
    with pytest.raises(ArchiveError, match=f"is not what was sealed.*{another.sha256.hex()}"):
        await Archive(f"{bucket}/segments").run(another, START, START + 1)
    gone = sealed._replace(file="usage-0/none.parquet")
    with pytest.raises(ArchiveError, match=r"none\.parquet.*cannot be read"):
        await Archive(f"{bucket}/segments").run(gone, START, START + 1)


async def _content(bucket: str, file: str) -> bytes:
    data = await TileStore(f"{bucket}/segments").get(file)
    assert data is not None
    files = Archive(f"{bucket}/segments")
    assert files.digest(file) == (len(data), hashlib.sha256(data).digest())
    return data


async def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    del bucket
    store = TileStore("s3://nobody/tiles")
    path = "logs/control/checkpoint"
    asks: dict[str, Callable[[], Awaitable[object]]] = {
        "read": lambda: store.get(path),
        "written": lambda: store.put(path, b"x"),
        "listed": lambda: store.names("logs/"),
        "cleared": lambda: store.delete([path]),
    }
    for done, ask in asks.items():
        said = f"s3://nobody/tiles cannot be {done}: there is no bucket 'nobody'; correct"
        with pytest.raises(StoreUnusableError, match=said):
            await ask()
    with pytest.raises(OSError, match="nobody"):
        _sealed(Archive("s3://nobody/segments"), "usage-0/one.parquet", ROOT)
