"""Whose signatures count: rotated keys, and witnesses as a policy wants them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.audit.world import ORIGIN, SIGNER, World, small_world

from audit.auditor import audit
from audit.findings import UnusableError
from kernel.cosignature import CosignerKey
from kernel.note import SignerKey

SECOND = SignerKey(ORIGIN, bytes([2]) * 32)
THIRD = SignerKey(ORIGIN, bytes([3]) * 32)
WITNESSES = [SignerKey(f"w{number}.test", bytes([40 + number]) * 32) for number in range(3)]


def told(world: World, root: Path) -> str:
    return str(audit(*world.write(root)).first)


def test_who_trusts_the_first_key_follows_the_chain_to_the_newest(tmp_path: Path) -> None:
    world = small_world()
    for key in (SECOND, THIRD):
        world.rotate(key)
    world.cut()
    report = audit(*world.write(tmp_path))
    assert report.ok, report.as_text()
    assert sum("was retired at control position" in note for note in report.notes) == 2


def test_who_trusts_the_middle_key_follows_from_there(tmp_path: Path) -> None:
    world = small_world()
    for key in (SECOND, THIRD):
        world.rotate(key)
    export, keys = world.write(tmp_path)
    middle = [f"{SECOND.named(f'{ORIGIN}/{log}').verifier}\n" for log in world.entries()]
    keys.write_text("".join(middle))
    assert audit(export, keys).ok
    # Who trusts only the newest needs no chain.
    newest = [f"{THIRD.named(f'{ORIGIN}/{log}').verifier}\n" for log in world.entries()]
    keys.write_text("".join(newest))
    assert audit(export, keys).ok


def test_a_new_key_that_the_old_one_did_not_sign_counts_for_nothing(tmp_path: Path) -> None:
    world = small_world()
    world.rotate(SECOND, by=THIRD)
    with pytest.raises(UnusableError, match="none of the 4 checkpoints is signed by the keys"):
        audit(*world.write(tmp_path))


def test_a_retired_key_does_not_sign_a_control_log_that_retired_it(tmp_path: Path) -> None:
    world = small_world()
    world.rotate(SECOND)
    world.signers["control"] = SIGNER
    assert "which position 7 of the log, before its end, retired" in told(world, tmp_path)


def test_a_log_that_did_not_grow_since_is_signed_by_the_key_of_then(tmp_path: Path) -> None:
    world = small_world()
    world.rotate(SECOND)
    world.cut()
    world.signers["usage-1"] = SIGNER
    report = audit(*world.write(tmp_path))
    assert report.ok, report.as_text()
    assert any("usage-1: its checkpoint is signed by a key" in note for note in report.notes)


def test_a_key_once_retired_never_comes_back(tmp_path: Path) -> None:
    world = small_world()
    world.rotate(SECOND)
    world.rotate(SIGNER)
    assert "which position 7 of the log, before its end, retired" in told(world, tmp_path)


def policy_of(path: Path, quorum: str) -> Path:
    lines = [f"witness w{number} {CosignerKey.of(key)}" for number, key in enumerate(WITNESSES)]
    path.write_text("\n".join([*lines, "group two 2 w0 w1 w2", f"quorum {quorum}", ""]))
    return path


def test_a_policy_wants_every_checkpoint_cosigned(tmp_path: Path) -> None:
    world = small_world()
    policy = policy_of(tmp_path / "policy", "two")
    none = policy_of(tmp_path / "none", "none")
    for count in range(4):
        world.witnesses = WITNESSES[:count]
        root = tmp_path / str(count)
        root.mkdir()
        export, keys = world.write(root)
        assert audit(export, keys).ok
        assert audit(export, keys, none).ok
        report = audit(export, keys, policy)
        assert report.ok == (count >= 2)
        if count < 2:
            assert "not enough witnesses cosigned it" in str(report.first)
            assert len(list(report.findings)) == 4


def test_a_policy_that_is_none_is_said(tmp_path: Path) -> None:
    export, keys = small_world().write(tmp_path)
    (tmp_path / "policy").write_text("quorum nobody\n")
    with pytest.raises(UnusableError, match="'nobody' is not defined above"):
        audit(export, keys, tmp_path / "policy")
