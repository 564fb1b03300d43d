"""Cosignatures and policies, against another implementation's vector, and every mangling of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import cosignature, tlogpolicy
from kernel.cosignature import CosignerKey
from kernel.note import NoteError, SignerKey, VerifierKey, split_note
from kernel.tlogpolicy import PolicyError

# Made by transparency-dev/formats (NewSignerForCosignatureV1, VKeyToCosignatureV1).
SKEY = "PRIVATE+KEY+witness.example/w1+68cca5d4+AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"
VKEY = "witness.example/w1+aa4a09d1+BOpKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs"
TEXT = b"example.com/log\n1\nbjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=\n"
TIME_S = 1_795_526_192
LINE = (
    "\N{EM DASH} witness.example/w1 qkoJ0QAAAABrBY4wJz+/NUrFkvZVnMv8vTZR/3cCU4wcSY5R5IsEFX9N51Yl"
    "tN2kU0NnTVSYXVJtWmnuAM2WKmnMQ6bAqPBsw+fxCA==\n"
).encode()


def key_of(number: int) -> CosignerKey:
    return CosignerKey.of(SignerKey(f"w{number}.example", bytes([number]) * 32))


def test_the_cosignature_is_the_others_byte_for_byte() -> None:
    signer = SignerKey.parse(SKEY)
    assert str(CosignerKey.of(signer)) == VKEY
    assert CosignerKey.parse(VKEY + "\n") == CosignerKey.of(signer)
    assert cosignature.cosign(TEXT, signer, TIME_S) == LINE


def test_who_cosigned_and_when() -> None:
    key = CosignerKey.parse(VKEY)
    note = TEXT + b"\n" + LINE
    assert cosignature.cosigners_of(note, [key, key_of(1)]) == {key: TIME_S}
    again = cosignature.with_lines(
        note, [cosignature.cosign(TEXT, SignerKey.parse(SKEY), TIME_S + 9)]
    )
    assert cosignature.cosigners_of(again, [key]) == {key: TIME_S + 9}
    assert cosignature.cosigners_of(TEXT.replace(b"\n1\n", b"\n2\n") + b"\n" + LINE, [key]) == {}


@given(at=st.integers(0, 71), bit=st.integers(0, 7))
def test_no_flipped_bit_of_time_or_signature_goes_unseen(at: int, bit: int) -> None:
    key = CosignerKey.parse(VKEY)
    line = cosignature.cosign(TEXT, SignerKey.parse(SKEY), TIME_S)
    _, [(_, _, good)] = split_note(TEXT + b"\n" + line)
    assert key.time_of(TEXT, good) == TIME_S
    signature = bytearray(good)
    signature[at] ^= 1 << bit
    assert key.time_of(TEXT, bytes(signature)) is None


def test_no_key_of_another_kind_or_mangled_is_accepted() -> None:
    plain = str(SignerKey.parse(SKEY).verifier)
    with pytest.raises(NoteError):
        CosignerKey.parse(plain)
    with pytest.raises(NoteError):
        VerifierKey.parse(VKEY)
    for at in range(len(VKEY)):
        with pytest.raises(NoteError):
            CosignerKey.parse(VKEY[:at] + chr(ord(VKEY[at]) ^ 1) + VKEY[at + 1 :])


POLICY = f"""
# two organisations
log example.com/log+00000000+abc https://example.com
witness X1 {key_of(1)} https://w1.example/
witness\tX2  {key_of(2)}
  witness X3 {key_of(3)}
group X 2 X1 X2 X3
witness Y1 {key_of(4)}
witness Y2 {key_of(5)}
group Y any Y1 Y2
group both all X Y
quorum both
"""


@given(who=st.sets(st.integers(1, 6)))
def test_a_quorum_of_groups(who: set[int]) -> None:
    policy = tlogpolicy.parse(POLICY)
    enough = len(who & {1, 2, 3}) >= 2 and bool(who & {4, 5})
    assert policy.is_met({key_of(number) for number in who}) == enough


def test_a_policy_without_witnesses_is_always_met() -> None:
    assert tlogpolicy.parse("quorum none\n").is_met(())
    assert tlogpolicy.parse(POLICY).witnesses["X1"].url == "https://w1.example"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "one line `quorum"),
        ("quorum none\nquorum none", "line 2: there is a second quorum"),
        ("quorum w", "line 1: 'w' is not defined above"),
        (f"witness none {key_of(1)}", "taken"),
        (f"witness a {key_of(1)}\nwitness a {key_of(2)}", "line 2: the name 'a' is taken"),
        (f"witness a {key_of(1)}\nwitness b {key_of(1)}", "has the key of another"),
        (f"witness a {key_of(1)}\ngroup g 2 a", "does not fit 1 members"),
        (f"witness a {key_of(1)}\ngroup g 0 a", "does not fit 1 members"),
        (f"witness a {key_of(1)}\ngroup g some a", "a threshold is"),
        (f"witness a {key_of(1)}\ngroup g any a a", "a member already"),
        (f"witness a {key_of(1)}\ngroup g any a\ngroup h any a", "a member already"),
        ("group g all", "not a line of a policy"),
        ("group g all g", "not defined above"),
        (f"witness a {SignerKey('x', bytes(32)).verifier}", "not one for Ed25519 cosignatures"),
        ("quorum none\x00", "control characters"),
        ("quorate none", "not a line of a policy"),
    ],
)
def test_what_is_no_policy_says_where(text: str, told: str) -> None:
    with pytest.raises(PolicyError, match=told):
        tlogpolicy.parse(text)
