"""Tiles over HTTP and in a bucket, cosigned checkpoints, and a rotated key, on the real parts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.deadlines import told_in_time
from tests.integration.free_port import free_port
from tests.unit.kernel import fsck
from tests.unit.ledger.s3_server import BUCKET, s3_server

from kernel import grpcs, merkle, tiles, tlogpolicy
from kernel.cosignature import cosigners_of
from kernel.note import Checkpoint, NoteError, VerifierKey, open_checkpoint
from ledger.adapters.publishing import Publisher
from ledger.adapters.tile_store import TileStore
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc
from tollbook.stack.control import Stack

pytestmark = pytest.mark.integration

WAIT_S = 120.0
_LOG = "control"


@pytest.fixture
def stack(evidence_stack: Stack) -> Stack:
    return evidence_stack


@asynccontextmanager
async def ledger(stack: Stack) -> AsyncIterator[Any]:
    async with grpcs.channel(stack.address("ledger-server")) as channel:
        yield ledger_pb2_grpc.LedgerServiceStub(channel)


async def append(stub: Any, count: int, payload: bytes = b"x", log: str = _LOG) -> int:
    """Append records; gives the log's size."""
    room = asyncio.Semaphore(64)

    async def one() -> int:
        request = pb.AppendRequest(log=log, idempotency_key=os.urandom(12).hex(), payload=payload)
        async with room:
            size: int = (await stub.Append(request, timeout=WAIT_S)).size
            return size

    return max(await asyncio.gather(*(one() for _ in range(count))))


async def until(what: str, check: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := await check()):
        assert time.monotonic() < deadline, f"not in {WAIT_S} s: {what}"
        await asyncio.sleep(0.05)
    return found


def keys_of(stack: Stack, log: str = _LOG) -> list[VerifierKey]:
    lines = Path(stack.environment()["TOLLBOOK_VERIFIER_KEYS"]).read_text().splitlines()
    return [key for key in map(VerifierKey.parse, lines) if key.name.endswith(f"/{log}")]


def opened(note: bytes, keys: list[VerifierKey]) -> Checkpoint:
    for key in keys:
        try:
            return open_checkpoint(note, key)
        except NoteError:
            continue
    raise AssertionError("no key opens the checkpoint")


def log_url(stack: Stack, log: str = _LOG) -> str:
    return f"http://{stack.address('ledger-tiles')}/logs/{log}/"


async def published(
    client: httpx.AsyncClient, url: str, keys: list[VerifierKey], size: int
) -> tuple[Checkpoint, bytes]:
    """The checkpoint over HTTP, once it has a size."""

    async def there() -> tuple[Checkpoint, bytes] | None:
        answer = await client.get(url + "checkpoint")
        if answer.status_code != 200:
            return None
        checkpoint = opened(answer.content, keys)
        return (checkpoint, answer.content) if checkpoint.size >= size else None

    found: tuple[Checkpoint, bytes] = await until(f"{size} entries at {url}", there)
    return found


async def published_size(stack: Stack, log: str) -> int:
    """Size of the checkpoint over HTTP; -1 while there is none."""
    async with httpx.AsyncClient(timeout=WAIT_S) as client:
        answer = await client.get(log_url(stack, log) + "checkpoint")
    if answer.status_code != 200:
        return -1
    return opened(answer.content, keys_of(stack, log)).size


async def check_files(client: httpx.AsyncClient, url: str, checkpoint: Checkpoint) -> None:
    """Every tile and bundle of a size is there, and gives the checkpoint's root."""
    hashes: list[bytes] = []
    for index, width in tiles.bundles_of(checkpoint.size):
        answer = await client.get(url + tiles.bundle_path(index, width))
        assert answer.status_code == 200
        leaves = tiles.decode_bundle(answer.content)
        assert len(leaves) == width
        hashes += map(merkle.leaf_hash, leaves)
    assert merkle.root_of(hashes) == checkpoint.root
    level_hashes = hashes
    for level, index, width in tiles.tiles_of(checkpoint.size):
        if level and index == 0:
            level_hashes = [
                merkle.root_of(hashes[at << 8 * level : (at + 1) << 8 * level])
                for at in range(checkpoint.size >> 8 * level)
            ]
        data = (await client.get(url + tiles.tile_path(level, index, width))).content
        assert data == b"".join(level_hashes[index * 256 : index * 256 + width])


async def test_a_log_is_served_over_http_as_the_specification_has_it(stack: Stack) -> None:
    async with ledger(stack) as stub, httpx.AsyncClient(timeout=WAIT_S) as client:
        first = await append(stub, 3)
        url, keys = log_url(stack), keys_of(stack)
        await published(client, url, keys, first)
        size = await append(stub, 600)
        checkpoint, _ = await published(client, url, keys, size)
        await check_files(client, url, checkpoint)
        answer = await client.get(url + "checkpoint")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        # How many were published at once is the publisher's affair, so which partial tile is there.
        above = tiles.tile_path(1, 0, checkpoint.size >> 8)
        for path in ("tile/0/000", "tile/entries/000", above):
            answer = await client.get(url + path)
            assert answer.headers["content-type"] == "application/octet-stream"
            assert "immutable" in answer.headers["cache-control"]
        # Entry bundles travel compressed when asked, as they are when not.
        zipped = await client.get(url + "tile/entries/000", headers={"accept-encoding": "gzip"})
        plain = await client.get(url + "tile/entries/000", headers={"accept-encoding": "identity"})
        assert zipped.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert zipped.content == plain.content
        assert (await client.head(url + "tile/0/000")).status_code == 200
        # A partial tile that gave way to the full one is answered out of it.
        whole = (await client.get(url + "tile/0/000")).content
        assert (await client.get(url + "tile/0/000.p/3")).content == whole[: 3 * 32]
        bundle = (await client.get(url + "tile/entries/000.p/3")).content
        assert tiles.decode_bundle(bundle) == tiles.decode_bundle(plain.content)[:3]
        for path in (
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/0",
            "tile/00/000",
            "tile/64/000",
            "tile/0/999",
            "tile/entries/",
            "..%2f..%2fkeys/signer.key",
            "",
        ):
            assert (await client.get(url + path)).status_code == 404, path
        assert (await client.post(url + "checkpoint")).status_code == 405


async def test_partial_tiles_do_not_pile_up(stack: Stack) -> None:
    folder = Path(stack.environment()["TOLLBOOK_TILES_URL"].removeprefix("file://"))
    async with ledger(stack) as stub, httpx.AsyncClient(timeout=WAIT_S) as client:
        size = 0
        for _ in range(4):
            size = await append(stub, 130)
            await published(client, log_url(stack), keys_of(stack), size)
        for level in ("0", "entries"):
            full = size // 256

            async def gone(level: str = level, full: int = full) -> bool:
                at = folder / "logs" / _LOG / "tile" / level
                return not [path for n in range(full) for path in at.glob(f"{n:03d}.p/*")]

            await until("partial tiles are gone", gone)


async def test_a_strangers_checker_accepts_the_log_over_http(stack: Stack, tmp_path: Path) -> None:
    program = fsck.find()
    async with ledger(stack) as stub, httpx.AsyncClient(timeout=WAIT_S) as client:
        size = await append(stub, 300)
        checkpoint, _ = await published(client, log_url(stack), keys_of(stack), size)
    key_file = tmp_path / "key"
    key_file.write_text(f"{keys_of(stack)[-1]}\n")
    verdict = await asyncio.to_thread(fsck.run, program, log_url(stack), key_file)
    assert verdict.ok, verdict.said
    assert f"size {checkpoint.size}" in verdict.said


async def test_every_published_checkpoint_is_cosigned(stack: Stack) -> None:
    policy = tlogpolicy.read(Path(stack.environment()["TOLLBOOK_WITNESS_POLICY"]))
    async with ledger(stack) as stub, httpx.AsyncClient(timeout=WAIT_S) as client:
        size = await append(stub, 5)
        _, note = await published(client, log_url(stack), keys_of(stack), size)
        assert policy.is_met(cosigners_of(note, policy.keys))
        # Without the witness nothing new is shown; with it, what waited.
        await asyncio.to_thread(stack.hold, "witness")
        try:
            size = await append(stub, 1)
            request = pb.GetCheckpointRequest(log=_LOG, min_size=size)
            error = await told_in_time(lambda s: stub.GetCheckpoint(request, timeout=s), 3)
            assert "signed so far" in (error.details() or "")
        finally:
            await asyncio.to_thread(stack.release, "witness")
        signed = await stub.GetCheckpoint(request, timeout=WAIT_S)
        assert policy.is_met(cosigners_of(signed.note, policy.keys))


async def test_tiles_in_a_bucket(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path) as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        async with ledger(stack) as stub:
            size = await append(stub, 300)
            await append(stub, 1, payload=b"y" * 70_000)
            await stub.GetCheckpoint(
                pb.GetCheckpointRequest(log=_LOG, min_size=size + 1), timeout=WAIT_S
            )
            store = TileStore(f"s3://{BUCKET}/tiles")
            assert await Publisher(stub, store).publish_grown()
            # Another publisher goes on where the first one stopped.
            grown = await append(stub, 300)
            await stub.GetCheckpoint(
                pb.GetCheckpointRequest(log=_LOG, min_size=grown), timeout=WAIT_S
            )
            second = Publisher(stub, store)
            assert await second.publish_grown() == 1
            assert await second.publish_grown() == 0
        assert len(await store.names("aside/")) >= 1
        kept = await obstore_headers(store, f"logs/{_LOG}/checkpoint")
        assert kept == {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache"}
        # Served by a process of its own out of the bucket, and checked by a stranger.
        address = f"127.0.0.1:{free_port()}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ledger.entrypoints.tiles",
            env={
                **os.environ,
                **stack.environment(),
                **settings,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "TOLLBOOK_TILES_URL": f"s3://{BUCKET}/tiles",
                "TOLLBOOK_TILES_ADDRESS": address,
            },
        )
        try:
            url = f"http://{address}/logs/{_LOG}/"
            async with httpx.AsyncClient(timeout=WAIT_S) as client:

                async def answers() -> bool:
                    try:
                        return (await client.get(f"http://{address}/healthz")).status_code == 200
                    except httpx.ConnectError:
                        return False

                await until("the tiles are served", answers)
                checkpoint, _ = await published(client, url, keys_of(stack), grown)
                await check_files(client, url, checkpoint)
            key_file = tmp_path / "key"
            key_file.write_text(f"{keys_of(stack)[-1]}\n")
            verdict = await asyncio.to_thread(fsck.run, fsck.find(), url, key_file)
            assert verdict.ok, verdict.said
        finally:
            process.terminate()
            await process.wait()


async def obstore_headers(store: TileStore, path: str) -> dict[str, str]:
    import obstore

    found = await obstore.get_async(store._store, path)
    return {str(name): str(value) for name, value in found.attributes.items()}


async def test_a_store_that_is_not_whole_is_written_again(stack: Stack, tmp_path: Path) -> None:
    async with ledger(stack) as stub:
        size = await append(stub, 10)
        if size % 256 == 0:
            size = await append(stub, 1)  # else no tile is a partial one
        await stub.GetCheckpoint(pb.GetCheckpointRequest(log=_LOG, min_size=size), timeout=WAIT_S)
        store = TileStore(tmp_path.as_uri() + "/")
        await Publisher(stub, store).publish_grown()
        [*_, partial] = sorted((tmp_path / "logs" / _LOG / "tile" / "0").glob("*.p/*"))
        good = partial.read_bytes()
        partial.write_bytes(bytes(len(good)))
        await append(stub, 1)
        await Publisher(stub, store).publish_grown()
        await stub.GetCheckpoint(
            pb.GetCheckpointRequest(log=_LOG, min_size=size + 1), timeout=WAIT_S
        )
        await Publisher(stub, store).publish_grown()
    note = (tmp_path / "logs" / _LOG / "checkpoint").read_bytes()
    checkpoint = opened(note, keys_of(stack))
    assert checkpoint.size > size
    hashes: list[bytes] = []
    for index, width in tiles.bundles_of(checkpoint.size):
        data = (tmp_path / "logs" / _LOG / tiles.bundle_path(index, width)).read_bytes()
        hashes += map(merkle.leaf_hash, tiles.decode_bundle(data))
    assert merkle.root_of(hashes) == checkpoint.root


async def test_a_proof_stands_by_itself(stack: Stack, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        **stack.environment(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )

    file = tmp_path / "entry.tlog-proof"
    async with ledger(stack) as stub:
        position = await append(stub, 1, payload=b"the record") - 1
    made = await asyncio.to_thread(
        run, "tollbook.cli", "ledger", "proof", _LOG, str(position), "--out", str(file)
    )
    assert made.returncode == 0, made.stderr
    options = ["--key", environment["TOLLBOOK_VERIFIER_KEYS"]]
    policy = ["--policy", environment["TOLLBOOK_WITNESS_POLICY"]]
    told = await asyncio.to_thread(run, "audit.proof", str(file), *options, *policy)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"position {position} of ")
    assert "cosigned by witness.local/" in told.stdout
    file.write_bytes(file.read_bytes().replace(b"index ", b"index 1", 1))
    told = await asyncio.to_thread(
        run, "tollbook.cli", "ledger", "check-proof", str(file), *options
    )
    assert (told.returncode, told.stdout) == (1, "")
    assert "DOES NOT PROVE" in told.stderr


async def test_the_signers_key_is_rotated_by_a_record_that_the_old_one_signs(stack: Stack) -> None:
    environment = {
        **os.environ,
        **stack.environment(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    [*_, old] = keys_of(stack)
    key_file = Path(environment["TOLLBOOK_SIGNER_KEY"])
    kept = text_of(key_file)

    async def rotate() -> None:
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ledger.entrypoints.rotate", env=environment
        )
        assert await done.wait() == 0

    async with ledger(stack) as stub, httpx.AsyncClient(timeout=WAIT_S) as client:
        await rotate()
        [*_, new] = keys_of(stack)
        assert new.public != old.public
        size = await append(stub, 1)
        _, note = await published(client, log_url(stack), keys_of(stack), size)
        assert open_checkpoint(note, new).size >= size
        with pytest.raises(NoteError):
            open_checkpoint(note, old)
        # The retired key put back signs nothing.
        fresh = text_of(key_file)
        replace(key_file, kept)

        async def refused() -> bool:
            return "was retired by position" in text_of(stack.log_file("ledger-signer"))

        # Before it looks at the file it signs on, and rightly.
        await until("the signer has looked at its key", refused)
        size = await append(stub, 1)
        request = pb.GetCheckpointRequest(log=_LOG, min_size=size)
        error = await told_in_time(lambda s: stub.GetCheckpoint(request, timeout=s), 3)
        assert "signed so far" in (error.details() or "")
        replace(key_file, fresh)
        signed = await stub.GetCheckpoint(request, timeout=WAIT_S)
        assert open_checkpoint(signed.note, new).size >= size


def text_of(path: Path) -> str:
    return path.read_text()


def replace(path: Path, text: str) -> None:
    fresh = path.with_name("swapped")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)
