"""The tile store on a real directory, and what it is served as over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import tiles
from ledger.adapters import tile_web
from ledger.adapters.tile_store import (
    StoreUnusableError,
    TileStore,
    aside_path,
    format_pins,
    parse_pins,
)


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return TileStore(tmp_path.as_uri() + "/")


async def test_what_is_put_is_there_whole_and_what_is_not_is_none(store: TileStore) -> None:
    assert await store.get("logs/control/checkpoint") is None
    for data in (b"one", b"", b"x" * 100_000):
        await store.put("logs/control/checkpoint", data)
        assert await store.get("logs/control/checkpoint") == data
    await store.put("logs/control/tile/0/000.p/3", b"3")
    await store.put("logs/control/tile/0/000.p/4", b"4")
    await store.put("logs/control/tile/0/000", b"full")
    found = await store.names("logs/control/tile/0/000.p/")
    assert sorted(found) == ["logs/control/tile/0/000.p/3", "logs/control/tile/0/000.p/4"]
    await store.delete([*found, "logs/control/tile/0/000.p/9"])
    assert await store.names("logs/control/tile/0/000.p/") == []
    assert await store.get("logs/control/tile/0/000") == b"full"


async def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    store = TileStore(tmp_path.as_uri() + "/")
    with pytest.raises(StoreUnusableError, match="cannot be written"):
        await store.put("logs/control/checkpoint", b"x")
    for url in ("http://somewhere/", "/a/folder", "tiles"):
        with pytest.raises(StoreUnusableError, match="file:///DIRECTORY or s3://"):
            TileStore(url)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)), max_size=20))
def test_pins_come_back(pins: list[tuple[int, int]]) -> None:
    assert parse_pins(format_pins(pins)) == pins


PATHS = {
    "logs/usage-10/checkpoint": ("text/plain; charset=utf-8", "no-cache"),
    "logs/cuts/pins": ("text/plain; charset=utf-8", "no-cache"),
    "logs/control/tile/0/x001/x234/067": ("application/octet-stream", "immutable"),
    "logs/control/tile/63/000.p/255": ("application/octet-stream", "immutable"),
    "logs/control/tile/entries/000.p/1": ("application/octet-stream", "immutable"),
    aside_path(b"\x01" * 32): ("application/octet-stream", "immutable"),
}


async def test_only_what_the_specification_names_is_served(store: TileStore) -> None:
    app = tile_web.app_of(store, lambda: "")
    hidden = ["keys/signer.key", "logs/control/secret", "logs/usage-01/checkpoint", "aside/xyz"]
    for path in (*PATHS, *hidden):
        await store.put(path, b"data")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://tiles"
    ) as client:
        for path, (kind, caching) in PATHS.items():
            answer = await client.get(path)
            assert (answer.status_code, answer.content) == (200, b"data")
            assert answer.headers["content-type"] == kind
            assert caching in answer.headers["cache-control"]
        for path in (*hidden, "logs/control/tile/0/x001/067/", "", "logs/control/tile/0/../0/000"):
            assert (await client.get(path)).status_code == 404, path


async def test_a_partial_tile_that_is_gone_is_the_full_ones_beginning(store: TileStore) -> None:
    leaves = [b"leaf %d" % number for number in range(256)]
    await store.put("logs/control/tile/entries/000", tiles.encode_bundle(leaves))
    await store.put("logs/control/tile/0/000", bytes(range(256)) * 32)
    app = tile_web.app_of(store, lambda: "the store is away")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://tiles"
    ) as client:
        bundle = await client.get("logs/control/tile/entries/000.p/7")
        assert tiles.decode_bundle(bundle.content) == leaves[:7]
        hashes = await client.get("logs/control/tile/0/000.p/7")
        assert hashes.content == (bytes(range(256)) * 32)[: 7 * 32]
        health = await client.get("healthz")
        assert (health.status_code, health.text) == (503, "the store is away\n")
