"""Signed notes and checkpoints, against the vectors of Go's sumdb/note."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import note
from kernel.note import Checkpoint, NoteError, SignerKey, VerifierKey

# The example of golang.org/x/mod/sumdb/note: key, text and signature.
SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = (
    b"If you think cryptography is the answer to your problem,\n"
    b"then you don't know what your problem is.\n"
)
SIGNATURE = (
    "\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    "\n"
).encode()

ORIGIN = "tollbook.test/usage-0"
SIGNER = SignerKey(ORIGIN, bytes(range(32)))
ROOT = hashlib.sha256(b"").digest()
CHECKPOINT = Checkpoint(ORIGIN, 20_852_163, ROOT)


def test_go_keys_are_read_and_written_as_they_stand() -> None:
    signer = SignerKey.parse(SKEY)
    assert str(signer) == SKEY
    assert str(signer.verifier) == VKEY
    assert VerifierKey.parse(VKEY + "\n") == signer.verifier
    assert signer.verifier.key_id == bytes.fromhex("c74f20a3")


def test_the_signature_is_gos_byte_for_byte() -> None:
    signer = SignerKey.parse(SKEY)
    line = note.signature_line(signer.name, signer.verifier.key_id, signer.sign(TEXT))
    assert line == SIGNATURE
    text, signatures = note.split_note(TEXT + b"\n" + SIGNATURE)
    assert text == TEXT
    [(name, key_id, signature)] = signatures
    assert (name, key_id) == ("PeterNeumann", signer.verifier.key_id)
    assert VerifierKey.parse(VKEY).verify(text, signature)
    assert not VerifierKey.parse(VKEY).verify(text + b" ", signature)


def test_no_mangled_verifier_key_is_accepted() -> None:
    """As in Go's own test: every proper substring, and every letter moved by one."""
    for start in range(len(VKEY) + 1):
        for end in range(start + 1, len(VKEY) + 1):
            if (start, end) != (0, len(VKEY)):
                with pytest.raises(NoteError):
                    VerifierKey.parse(VKEY[start:end])
    for at in range(len(VKEY)):
        with pytest.raises(NoteError):
            VerifierKey.parse(VKEY[:at] + chr(ord(VKEY[at]) + 1) + VKEY[at + 1 :])
    for wrong in (
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "",
        "name",
        "a b+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ):
        with pytest.raises(NoteError):
            VerifierKey.parse(wrong)


def test_no_mangled_signer_key_is_accepted_and_no_error_shows_the_seed() -> None:
    secret = SKEY.rsplit("+", 2)[-1]
    for at in range(len(SKEY)):
        with pytest.raises(NoteError) as caught:
            SignerKey.parse(SKEY[:at] + chr(ord(SKEY[at]) + 1) + SKEY[at + 1 :])
        assert secret not in str(caught.value)
    assert "AYEKFALVF" not in repr(SignerKey.parse(SKEY))


def test_a_generated_key_round_trips_and_signs_under_several_names() -> None:
    key = SignerKey.generate("tollbook.test")
    assert SignerKey.parse(str(key)) == key
    one, other = key.named("tollbook.test/control"), key.named("tollbook.test/cuts")
    assert one.verifier.public == other.verifier.public
    assert one.verifier.key_id != other.verifier.key_id
    assert SignerKey.generate("tollbook.test").seed != key.seed
    for wrong in ("", "a b", "a+b", "a\n", "a\x00"):
        with pytest.raises(NoteError):
            key.named(wrong)


def test_a_checkpoint_has_the_bytes_of_the_specification() -> None:
    text = f"{ORIGIN}\n20852163\n{base64.b64encode(ROOT).decode()}\n".encode()
    assert CHECKPOINT.text() == text
    signed = note.sign_checkpoint(CHECKPOINT, SIGNER)
    assert signed.startswith(text + "\n\N{EM DASH} ".encode() + ORIGIN.encode() + b" ")
    assert signed.endswith(b"\n")
    assert note.open_checkpoint(signed, SIGNER.verifier) == CHECKPOINT


def test_the_specifications_extension_lines_and_other_signatures_are_allowed() -> None:
    other = SignerKey.generate("witness.example/w1")
    text = CHECKPOINT.text() + b"an extension line\n"
    lines = [
        note.signature_line(other.name, other.verifier.key_id, other.sign(text)),
        note.signature_line(SIGNER.name, SIGNER.verifier.key_id, SIGNER.sign(text)),
        # Same name, another key: a rotated one, for instance.
        note.signature_line(SIGNER.name, b"\1\2\3\4", b"?" * 64),
    ]
    assert note.open_checkpoint(text + b"\n" + b"".join(lines), SIGNER.verifier) == CHECKPOINT


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_of_a_signed_checkpoint_goes_unseen(at: int, bit: int) -> None:
    signed = note.sign_checkpoint(CHECKPOINT, SIGNER)
    at %= len(signed)
    changed = signed[:at] + bytes([signed[at] ^ 1 << bit]) + signed[at + 1 :]
    try:
        opened = note.open_checkpoint(changed, SIGNER.verifier)
    except NoteError:
        return
    # Base64 has unused bits at its end: another spelling of the very same signature.
    assert opened == CHECKPOINT
    assert note.split_note(changed)[1] == note.split_note(signed)[1]


def test_who_signed_and_for_what_must_fit() -> None:
    signed = note.sign_checkpoint(CHECKPOINT, SIGNER)
    with pytest.raises(NoteError, match="the key is of"):
        note.open_checkpoint(signed, SIGNER.named("tollbook.test/usage-1").verifier)
    with pytest.raises(NoteError, match="no signature by the key"):
        note.open_checkpoint(signed, SignerKey.generate(ORIGIN).verifier)
    with pytest.raises(NoteError, match="does not sign"):
        note.sign_checkpoint(CHECKPOINT, SIGNER.named("tollbook.test/usage-1"))
    forged = Checkpoint(ORIGIN, 1, ROOT).text() + b"\n" + signed.split(b"\n\n")[1]
    with pytest.raises(NoteError, match="does not verify"):
        note.open_checkpoint(forged, SIGNER.verifier)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"origin\n1\n",
        b"\n1\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n01\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n-1\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n+1\n" + base64.b64encode(ROOT) + b"\n",
        "origin\n\N{ARABIC-INDIC DIGIT ONE}\n".encode() + base64.b64encode(ROOT) + b"\n",
        b"origin\n1_0\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n9223372036854775808\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n" + b"9" * 5000 + b"\n" + base64.b64encode(ROOT) + b"\n",
        b"origin\n1\n" + base64.b64encode(ROOT[:-1]) + b"\n",
        b"origin\n1\n!" + base64.b64encode(ROOT) + b"\n",
        b"origin\n1\n" + base64.b64encode(ROOT),
    ],
)
def test_what_is_no_checkpoint_is_refused(text: bytes) -> None:
    with pytest.raises(NoteError):
        note.parse_checkpoint(text)


def test_the_largest_and_the_smallest_tree() -> None:
    for size in (0, 2**63 - 1):
        made = Checkpoint("origin", size, ROOT)
        assert note.parse_checkpoint(made.text()) == made


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        TEXT,
        TEXT + b"\n",
        TEXT + SIGNATURE,
        TEXT + b"\n" + SIGNATURE[:-1],
        TEXT + b"\n" + SIGNATURE + b"\n",
        TEXT + b"\n" + SIGNATURE.replace("\N{EM DASH}".encode(), b"-"),
        TEXT + b"\n" + SIGNATURE.replace(b"Peter", b"Peter "),
        TEXT + b"\n" + SIGNATURE.replace(b"Peter", b"Peter+"),
        TEXT + b"\n" + "\N{EM DASH} PeterNeumann AAAA\n".encode(),
        TEXT + b"\n" + "\N{EM DASH} PeterNeumann !!!!\n".encode(),
        TEXT + b"\xff\n\n" + SIGNATURE,
        TEXT + b"\t\n\n" + SIGNATURE,
        TEXT + b"\n" + SIGNATURE * 101,
        TEXT + b"x" * note.MAX_NOTE_BYTES + b"\n\n" + SIGNATURE,
    ],
)
def test_what_is_no_note_is_refused(wrong: bytes) -> None:
    with pytest.raises(NoteError):
        note.split_note(wrong)


@given(st.binary(max_size=300))
def test_rubbish_is_never_anything_but_a_note_error(data: bytes) -> None:
    with pytest.raises(NoteError):
        note.open_checkpoint(data, SIGNER.verifier)
