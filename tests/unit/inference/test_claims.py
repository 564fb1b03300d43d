"""An engine's own statement, held against what it handed out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.domain.claims import Claim, Verdict, judge, says_the_same
from inference.domain.counting import Tally
from tollbook.usage.v1 import usage_pb2 as usage

COUNTS = st.integers(0, 10_000)
CLAIMS = st.builds(Claim, COUNTS, COUNTS, st.none() | COUNTS)


def held(claim: Claim | None, prompt: int, output: int, **evidence: bool) -> Verdict:
    seen = {"told_ids": True, "spoken_agrees": True} | evidence
    return judge(claim, prompt, output, **seen)


@given(CLAIMS, COUNTS, COUNTS, st.booleans(), st.booleans())
def test_no_token_is_billed_that_is_not_both_handed_out_and_claimed(
    claim: Claim, prompt: int, output: int, told_ids: bool, agrees: bool
) -> None:
    verdict = held(claim, prompt, output, told_ids=told_ids, spoken_agrees=agrees)
    tally = Tally(prompt, 1)
    tally.add(0, [7] * output)
    tally.note_cached(0, verdict.cached_tokens)
    tally.doubt(0, verdict.doubt)
    leaves = tally.quantities()

    def amount(unit: int, direction: int = 0) -> int:
        return sum(
            leaf.amount for leaf in leaves if (leaf.unit, leaf.direction) == (unit, direction)
        )

    billed_in = amount(usage.UNIT_TOKEN, usage.DIRECTION_IN)
    billed_out = amount(usage.UNIT_TOKEN, usage.DIRECTION_OUT)
    disputed = amount(usage.UNIT_DISPUTED_TOKEN)
    assert billed_in <= min(prompt, claim.prompt_tokens)
    assert billed_out <= min(output, claim.output_tokens)
    # Nothing is lost: what either side says stands in one quantity or the other.
    assert billed_in + billed_out + disputed == max(prompt, claim.prompt_tokens) + max(
        output, claim.output_tokens
    )
    # The engine's counter, claims included, is billed output and waste.
    counter = output + verdict.surplus_tokens
    assert counter == billed_out + verdict.surplus_tokens + tally.doubted_output_tokens
    assert verdict.reasons or not disputed


@given(COUNTS, COUNTS)
def test_what_agrees_is_not_disputed(prompt: int, output: int) -> None:
    verdict = held(Claim(prompt, output, prompt), prompt, output)
    assert (verdict.reasons, verdict.doubt.total, verdict.cached_tokens) == ((), 0, prompt)


def test_ids_stand_by_themselves_and_text_alone_does_not() -> None:
    assert not held(None, 5, 9).reasons
    assert held(None, 5, 9, told_ids=False).doubt.output_tokens == 9
    assert not held(None, 5, 0, told_ids=False).reasons


@pytest.mark.parametrize(
    ("decoded", "text", "stops", "same"),
    [
        ("a toll", "a toll", [], True),
        ("a toll", "a bridge", [], False),
        ("a toll road", "a toll", [], False),
        ("a toll road", "a toll", [" road"], True),
        ("a toll road", "a ", ["ll"], True),
        ("a \ufffd\ufffdtoll", "a \ufffdtoll", [], True),
        ("a toll \ufffd", "a", [], True),
        ("a", "a toll", [], False),
    ],
)
def test_a_text_is_what_its_ids_say(decoded: str, text: str, stops: list[str], same: bool) -> None:
    assert says_the_same(decoded, text, stops) is same
