"""One entry's proof as a file: what is said of it, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.audit.world import ORIGIN, SIGNER, World, small_world

from audit.proof import main
from kernel import merkle
from kernel.cosignature import CosignerKey, cosign, with_lines
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tlogproof import TlogProof

WITNESS = SignerKey("w.test", bytes([7]) * 32)


def proof_of(world: World, position: int) -> TlogProof:
    entries = world.usage["usage-0"].leaves
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    signer = SIGNER.named(f"{ORIGIN}/usage-0")
    checkpoint = Checkpoint(signer.name, len(hashes), merkle.root_of(hashes))
    note = with_lines(
        sign_checkpoint(checkpoint, signer), [cosign(checkpoint.text(), WITNESS, 1_700_000_000)]
    )
    hashed = merkle.inclusion_proof(
        position,
        len(hashes),
        lambda level, at: merkle.root_of(hashes[at << level : at + 1 << level]),
    )
    return TlogProof(position, hashed, note, entries[position])


def test_what_a_proof_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = small_world()
    _, keys = world.write(tmp_path)
    policy = tmp_path / "policy"
    policy.write_text(f"witness w {CosignerKey.of(WITNESS)}\nquorum w\n")
    file = tmp_path / "entry.tlog-proof"
    good = proof_of(world, 3)
    file.write_bytes(good.to_bytes())
    options = ["--key", str(keys)]
    assert main([str(file), *options]) == 0
    assert main([str(file), *options, "--policy", str(policy)]) == 0
    assert "position 3 of tollbook.test/one/usage-0" in capsys.readouterr().out
    another = world.usage["usage-0"].leaves[4]
    for changed, status in (
        (TlogProof(4, good.hashes, good.checkpoint, good.extra).to_bytes(), 1),
        (TlogProof(3, good.hashes, good.checkpoint, another).to_bytes(), 1),
        (TlogProof(3, good.hashes[:-1], good.checkpoint, good.extra).to_bytes(), 1),
        (TlogProof(3, good.hashes, good.checkpoint).to_bytes(), 2),
        (b"nothing", 1),
    ):
        file.write_bytes(changed)
        assert main([str(file), *options]) == status
    policy.write_text(f"witness w {CosignerKey.of(SIGNER)}\nquorum w\n")
    file.write_bytes(good.to_bytes())
    assert main([str(file), *options, "--policy", str(policy)]) == 1
    assert "not enough witnesses" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), *options]) == 2
