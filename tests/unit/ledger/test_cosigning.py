"""The signer's side of witnessing, against real witnesses over their HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from tests.unit.witness.test_witness import LOG, NOW_S, TREE, Tree

from kernel import merkle, tlogpolicy
from kernel.cosignature import CosignerKey, cosigners_of
from kernel.note import SignerKey, sign_checkpoint
from ledger.adapters.cosigning import Cosigners
from witness.app import LogKeys, Witness, app_of
from witness.store import open_store

KEYS = [SignerKey(f"w{number}.test", bytes([60 + number]) * 32) for number in range(3)]


class World:
    """Three witnesses of one log; some of them may be away."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        logs = folder / "logs"
        logs.write_text(f"{LOG.verifier}\n")
        self.away: set[str] = set()
        self.transports = {}
        for number, key in enumerate(KEYS):
            store = stack.enter_context(closing(open_store(folder / f"memory-{number}")))
            witness = Witness(key, store, LogKeys(logs), lambda: NOW_S)
            self.transports[f"w{number}"] = httpx.ASGITransport(app_of(witness))

    def cosigners(self, quorum: str = "two") -> Cosigners:
        lines = [
            f"witness w{number} {CosignerKey.of(key)} http://w{number}"
            for number, key in enumerate(KEYS)
        ]
        policy = tlogpolicy.parse(
            "\n".join([*lines, "group two 2 w0 w1 w2", f"quorum {quorum}", ""])
        )
        return Cosigners(policy, httpx.AsyncClient(transport=_Router(self)))

    async def show(
        self, cosigners: Cosigners, size: int, last: int, tree: Tree = TREE
    ) -> tuple[set[str], str]:
        checkpoint = tree.checkpoint(size)

        async def prove(old: int) -> list[bytes]:
            return merkle.consistency_proof(old, size, tree._read)

        note, problem = await cosigners.cosign(
            sign_checkpoint(checkpoint, LOG), checkpoint, last, prove
        )
        return {key.name for key in cosigners_of(note, map(CosignerKey.of, KEYS))}, problem


class _Router(httpx.AsyncBaseTransport):
    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self._world.away:
            raise httpx.ConnectError("away")
        return await self._world.transports[host].handle_async_request(request)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


ALL = {key.name for key in KEYS}


async def test_a_growing_log_is_cosigned_by_all(world: World) -> None:
    cosigners = world.cosigners()
    last = 0
    for size in (0, 1, 200, 257):
        assert await world.show(cosigners, size, last) == (ALL, "")
        last = size


async def test_a_witness_that_was_away_is_caught_up_by_a_proof_from_where_it_is(
    world: World,
) -> None:
    cosigners = world.cosigners()
    assert await world.show(cosigners, 10, 0) == (ALL, "")
    world.away = {"w2"}
    assert await world.show(cosigners, 100, 10) == (ALL - {"w2.test"}, "")
    world.away = {"w1", "w2"}
    names, problem = await world.show(cosigners, 120, 100)
    assert names == {"w0.test"}
    assert problem == "not published: no cosignature of w1, w2"
    world.away = set()
    # Also by a signer that was started anew and knows only what it signed last.
    assert await world.show(world.cosigners(), 130, 120) == (ALL, "")


async def test_a_second_history_is_cosigned_by_nobody(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cosigners = world.cosigners()
    assert await world.show(cosigners, 50, 0) == (ALL, "")
    other = Tree(9, 100)
    for size in (50, 60):
        names, problem = await world.show(cosigners, size, 50, other)
        assert names == set()
        assert problem.startswith("not published")
    assert "THE LOG HAS TWO HISTORIES" in capsys.readouterr().out


async def test_a_log_that_shrank_is_cosigned_by_nobody(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cosigners = world.cosigners()
    assert await world.show(cosigners, 50, 0) == (ALL, "")
    assert (await world.show(world.cosigners(), 40, 40))[0] == set()
    assert "it has cosigned 50 entries, this is 40" in capsys.readouterr().out


async def test_no_quorum_is_needed_where_none_is_asked_for(world: World) -> None:
    world.away = {"w0", "w1", "w2"}
    assert await world.show(world.cosigners("none"), 5, 0) == (set(), "")


def test_a_witness_without_an_url_cannot_be_asked() -> None:
    policy = tlogpolicy.parse(f"witness w {CosignerKey.of(KEYS[0])}\nquorum w\n")
    with pytest.raises(ValueError, match="'w' has no URL"):
        Cosigners(policy, httpx.AsyncClient())
