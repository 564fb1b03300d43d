"""A witness over its HTTP interface, on its real file: what it cosigns, and what never."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernel import merkle
from kernel.cosignature import CosignerKey, cosigners_of, with_lines
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tlogwitness import Request
from witness.app import LogKeys, Witness, app_of
from witness.keygen import follow
from witness.protocol import RefusedError
from witness.store import Store, StoreError, open_store

LOG = SignerKey("tollbook.test/usage-0", bytes(range(32)))
KEY = SignerKey("witness.test/w1", bytes([9]) * 32)
NOW_S = 1_700_000_000


class Tree:
    """A log's leaf hashes, and what a log says of them."""

    def __init__(self, seed: int, size: int) -> None:
        self.hashes = [merkle.leaf_hash(b"%d/%d" % (seed, number)) for number in range(size)]

    def _read(self, level: int, at: int) -> bytes:
        return merkle.root_of(self.hashes[at << level : at + 1 << level])

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(LOG.name, size, merkle.root_of(self.hashes[:size]))

    def request(self, old: int, size: int) -> Request:
        proof = merkle.consistency_proof(old, size, self._read)
        return Request(old, proof, sign_checkpoint(self.checkpoint(size), LOG))


TREE = Tree(0, 300)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "memory")
    yield opened
    opened.close()


def witness_of(store: Store, folder: Path) -> Witness:
    keys = folder / "logs"
    keys.write_text(f"# the logs\n{LOG.verifier}\n")
    return Witness(KEY, store, LogKeys(keys), lambda: NOW_S)


async def post(witness: Witness, body: bytes) -> httpx.Response:
    transport = httpx.ASGITransport(app_of(witness))
    async with httpx.AsyncClient(transport=transport, base_url="http://witness") as client:
        return await client.post("/add-checkpoint", content=body)


async def test_a_log_that_grows_is_cosigned(store: Store, tmp_path: Path) -> None:
    witness = witness_of(store, tmp_path)
    for old, size in ((0, 0), (0, 1), (1, 1), (1, 255), (255, 256), (256, 257), (257, 300)):
        request = TREE.request(old, size)
        answer = await post(witness, request.to_bytes())
        assert answer.status_code == 200, answer.text
        note = with_lines(request.note, [answer.content])
        assert cosigners_of(note, [CosignerKey.of(KEY)]) == {CosignerKey.of(KEY): NOW_S}
    assert store.seen(LOG.name).size == 300


async def test_what_is_not_cosigned_and_why(store: Store, tmp_path: Path) -> None:
    witness = witness_of(store, tmp_path)
    assert (await post(witness, TREE.request(0, 100).to_bytes())).status_code == 200
    stranger = SignerKey("tollbook.test/other", LOG.seed)
    forger = SignerKey(LOG.name, bytes(32))
    other = Tree(1, 300)
    good = TREE.request(100, 200)
    cases = [
        (TREE.request(0, 200), 409),
        (TREE.request(50, 200), 409),
        (other.request(100, 100), 409),
        (other.request(100, 200), 422),
        (good._replace(proof=[]), 422),
        (good._replace(proof=[*good.proof, bytes(32)]), 422),
        (good._replace(old_size=201), 400),
        (good._replace(note=b"no note"), 400),
        (
            good._replace(note=sign_checkpoint(Checkpoint(stranger.name, 1, bytes(32)), stranger)),
            404,
        ),
        (good._replace(note=sign_checkpoint(TREE.checkpoint(200), forger)), 403),
        (good._replace(proof=[bytes(32)] * 64), 400),
    ]
    for request, status in cases:
        answer = await post(witness, request.to_bytes())
        assert answer.status_code == status, (request, answer.text)
        if status == 409:
            assert answer.headers["content-type"] == "text/x.tlog.size"
            assert answer.text == "100\n"
        assert store.seen(LOG.name).size == 100
    for body in (b"", b"old 1", b"new 1\n\n" + good.note, b"old 01\n\n" + good.note):
        assert (await post(witness, body)).status_code == 400
    assert (await post(witness, b"old 100\nAAAA\n\n" + good.note)).status_code == 400
    assert (await post(witness, good.to_bytes() + b"x" * 2_000_000)).status_code == 400
    assert (await post(witness, good.to_bytes())).status_code == 200


async def test_a_rotated_key_is_one_more_line_without_a_restart(
    store: Store, tmp_path: Path
) -> None:
    witness = witness_of(store, tmp_path)
    fresh = SignerKey(LOG.name, bytes([5]) * 32)
    request = TREE.request(0, 10)._replace(note=sign_checkpoint(TREE.checkpoint(10), fresh))
    assert (await post(witness, request.to_bytes())).status_code == 403
    (tmp_path / "logs").write_text(f"{LOG.verifier}\n{fresh.verifier}\n")
    assert (await post(witness, request.to_bytes())).status_code == 200


def test_a_policy_of_its_own_follows_the_witness_to_another_port(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    for port in (1, 2):
        follow(policy, KEY, f"127.0.0.1:{port}")
        vkey = CosignerKey.of(KEY)
        assert policy.read_text() == f"witness w1 {vkey} http://127.0.0.1:{port}\nquorum w1\n"
        assert policy.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "change",
    [
        ("127.0.0.1:1", "witness.example:1"),
        ("http:", "https:"),
        ("quorum w1\n", "witness w2 other+1+key http://127.0.0.1:9\nquorum w1\n"),
        ("quorum w1", "quorum none"),
        (str(CosignerKey.of(KEY)), str(CosignerKey.of(SignerKey("witness.test/w2", bytes(32))))),
        ("witness w1", "# ours\nwitness w1"),
    ],
)
def test_any_other_policy_is_kept(tmp_path: Path, change: tuple[str, str]) -> None:
    policy = tmp_path / "policy"
    follow(policy, KEY, "127.0.0.1:1")
    own = policy.read_text().replace(*change)
    assert own != policy.read_text()
    policy.write_text(own)
    follow(policy, KEY, "127.0.0.1:2")
    assert policy.read_text() == own


def test_memory_outlives_the_process_and_has_one_user(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    first = open_store(path)
    first.close()
    store = open_store(path)
    witness_of(store, tmp_path).add_checkpoint(TREE.request(0, 7).to_bytes())
    with pytest.raises(StoreError, match="must not be made anew"):
        open_store(path)
    store.close()
    again = open_store(path)
    with pytest.raises(RefusedError) as refused:
        witness_of(again, tmp_path).add_checkpoint(TREE.request(0, 8).to_bytes())
    assert (refused.value.status, refused.value.text) == (409, "7\n")
    again.close()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError):
        open_store(path)


def test_an_old_size_that_moved_meanwhile_is_not_rolled_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "memory")
    witness = witness_of(store, tmp_path)
    empty = store.seen(LOG.name)
    witness.add_checkpoint(TREE.request(0, 9).to_bytes())
    late = TREE.checkpoint(5)
    assert not store.advance(LOG.name, empty, empty._replace(size=5, root=late.root), b"")
    assert store.seen(LOG.name).size == 9
    store.close()


class TwoFaces(RuleBasedStateMachine):
    """A log that shows the witness two histories: all that is cosigned is one of them."""

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.store = open_store(folder / "memory")
        self.witness = witness_of(self.store, folder)
        self.random = random.Random(seed)
        # They share what comes before the fork.
        fork = self.random.randrange(30)
        self.trees = [Tree(1, 60), Tree(2, 60)]
        self.trees[1].hashes[:fork] = self.trees[0].hashes[:fork]
        self.cosigned: list[tuple[int, int]] = []

    @rule(face=st.integers(0, 1), size=st.integers(0, 60), old=st.integers(0, 60))
    def show(self, face: int, size: int, old: int) -> None:
        if self.random.random() < 0.7:
            old = self.store.seen(LOG.name).size
        if old > size:
            return
        try:
            self.witness.add_checkpoint(self.trees[face].request(old, size).to_bytes())
        except RefusedError:
            return
        self.cosigned.append((face, size))

    @invariant()
    def one_history(self) -> None:
        sizes = [size for _, size in getattr(self, "cosigned", [])]
        assert sizes == sorted(sizes)
        if not sizes:
            return
        assert any(
            all(
                self.trees[face].hashes[:size] == tree.hashes[:size] for face, size in self.cosigned
            )
            for tree in self.trees
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TwoFaces.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
TestTwoFaces = TwoFaces.TestCase
