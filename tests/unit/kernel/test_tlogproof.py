"""Proofs as texts: what verifies, and that nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel import merkle
from kernel.cosignature import CosignerKey, cosign, with_lines
from kernel.note import Checkpoint, SignerKey, sign_checkpoint, split_note
from kernel.tlogproof import TlogProof, TlogProofError

SIGNER = SignerKey("tollbook.test/usage-0", bytes(range(32)))
WITNESS = SignerKey("witness.test", bytes([9]) * 32)


def leaf(number: int) -> bytes:
    return b"leaf %d" % number


def proof_of(index: int, size: int, extra: bytes = b"") -> TlogProof:
    hashes = [merkle.leaf_hash(leaf(number)) for number in range(size)]

    def read(level: int, at: int) -> bytes:
        return merkle.root_of(hashes[at << level : at + 1 << level])

    checkpoint = Checkpoint(SIGNER.name, size, merkle.root_of(hashes))
    note = with_lines(
        sign_checkpoint(checkpoint, SIGNER), [cosign(checkpoint.text(), WITNESS, 1_700_000_000)]
    )
    return TlogProof(index, merkle.inclusion_proof(index, size, read), note, extra)


@given(size=st.integers(1, 70), data=st.data(), extra=st.binary(max_size=40))
def test_a_proof_comes_back_from_its_text_and_proves(
    size: int, data: st.DataObject, extra: bytes
) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = proof_of(index, size, extra)
    read = TlogProof.parse(proof.to_bytes())
    assert read == proof
    cosigner = CosignerKey.of(WITNESS)
    checkpoint, cosigners = read.verify(leaf(index), [SIGNER.verifier], [cosigner])
    assert (checkpoint.size, cosigners) == (size, {cosigner: 1_700_000_000})
    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises(TlogProofError):
            read.verify(leaf(other), [SIGNER.verifier])


def test_the_text_is_that_of_the_specification() -> None:
    lines = proof_of(1, 3, b"extra").to_bytes().decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra ZXh0cmE=", "index 1"]
    assert lines[5:8] == ["", SIGNER.name, "3"]


@given(at=st.integers(0), bit=st.integers(0, 7))
@example(at=-1, bit=5)  # the newline before the dash of the next line: a letter beyond ASCII
def test_no_flipped_bit_proves_anything_else(at: int, bit: int) -> None:
    good = proof_of(11, 21)
    text = bytearray(good.to_bytes())
    # The witness's line is not what this verifier asks for.
    end = text.index(b"\xe2\x80\x94 witness.test")
    text[at % end] ^= 1 << bit
    try:
        read = TlogProof.parse(bytes(text))
        read.verify(leaf(11), [SIGNER.verifier])
    except TlogProofError:
        return
    # Bits that base64 does not use: another text of the very same proof.
    assert (read.index, read.hashes) == (good.index, good.hashes)
    assert split_note(read.checkpoint) == split_note(good.checkpoint)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"proof@v1", b"proof@v2", "begins with"),
        (b"index 1\n", b"", "a line `index N`"),
        (b"index 1\n", b"index 01\n", "decimal"),
        (b"index 1\n", b"index -1\n", "decimal"),
        (b"index 1\n", b"index 1\nAAAA\n", "32 bytes"),
        (b"index 1\n", b"index 1\n" + b"A" * 43 + b"=\n", "too long|not under"),
        (b"index 1\n", b"index 3\n", "not in a tree"),
        (b"\n\n", b"\n", "not a|an empty line|decimal|base64"),
    ],
)
def test_what_is_no_proof_says_so(old: bytes, new: bytes, told: str) -> None:
    text = proof_of(1, 3).to_bytes().replace(old, new, 1)
    with pytest.raises(TlogProofError, match=told):
        TlogProof.parse(text).verify(leaf(1), [SIGNER.verifier])


def test_a_strangers_checkpoint_does_not_count() -> None:
    stranger = SignerKey(SIGNER.name, bytes(32))
    for keys in ([], [stranger.verifier]):
        with pytest.raises(TlogProofError):
            proof_of(0, 1).verify(leaf(0), keys)
