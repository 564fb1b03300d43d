"""A disconnect or an error billed more than was used: new-api#5289, #4168, langfuse#8775.

Here how a request ended and how many tokens came decide the outcome, the card's policy decides
which count is charged, and neither ever is more than the engine generated.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.domain.counting import Tally
from inference.domain.event import complete
from inference.domain.outcome import End
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = pytest.mark.museum

# How it ended: the outcome with tokens, and without any.
TABLE = {
    End.ENGINE_FINISHED: (usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY),
    End.CALLER_LEFT: (usage.OUTCOME_CLIENT_ABORT, usage.OUTCOME_CLIENT_ABORT),
    End.DEADLINE: (usage.OUTCOME_DEADLINE, usage.OUTCOME_DEADLINE),
    End.ENGINE_LOST: (usage.OUTCOME_ENGINE_LOST, usage.OUTCOME_ENGINE_LOST),
    End.ENGINE_FAILED: (
        usage.OUTCOME_ERROR_MID_STREAM,
        usage.OUTCOME_ERROR_BEFORE_FIRST_TOKEN,
    ),
    End.DRAINED: (usage.OUTCOME_ERROR_MID_STREAM, usage.OUTCOME_ERROR_BEFORE_FIRST_TOKEN),
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(End)


@given(
    end=st.sampled_from(End),
    prompt=st.integers(1, 500),
    outputs=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    read=st.data(),
)
def test_every_end_has_its_row_and_none_counts_more_than_came(
    end: End, prompt: int, outputs: list[int], read: st.DataObject
) -> None:
    tally = Tally(prompt, len(outputs))
    delivered = 0
    for choice, count in enumerate(outputs):
        tally.add(choice, [7] * count)
        seen = read.draw(st.integers(0, count))
        tally.hand_over(choice, seen)
        delivered += seen
    event = complete(usage.UsageEvent(event_id="r", account_id="a"), tally, end, 0, 1)
    again = complete(usage.UsageEvent(event_id="r", account_id="a"), tally, end, 0, 1)
    assert event.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    assert event.outcome == TABLE[end][0 if sum(outputs) else 1]
    out = [leaf for leaf in event.quantities if leaf.direction == usage.DIRECTION_OUT]
    assert sum(leaf.amount for leaf in out) == sum(outputs)
    assert sum(leaf.amount - leaf.undelivered_amount for leaf in out) == delivered
    # The prompt once, whatever the end and however many choices read it.
    into = [leaf for leaf in event.quantities if leaf.direction == usage.DIRECTION_IN]
    assert sum(leaf.amount for leaf in into) == prompt
