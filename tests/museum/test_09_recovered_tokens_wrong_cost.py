"""An interrupted answer's tokens were recovered, their cost was not: litellm#39893, #37734.

Here there is no second way to a price: a request that ended early, however it ended and whatever
of it was read, is one event of the same form, and its charge is the price of each of its counts.
The sum here is a plain one, over tokens that are dealt out one by one.
"""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from inference.domain.counting import Tally
from inference.domain.event import complete
from inference.domain.outcome import End
from kernel.clock import timestamp_of
from pricing.domain.card_yaml import parse_card
from pricing.domain.offline import OfflineRater
from pricing.domain.readers.usage_line import read_line
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = pytest.mark.museum

CARD = parse_card("""
card: m9
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {direction: in, cache_use: none}, per: 1_000_000, price: 3.00}
  - {id: read, match: {direction: in, cache_use: read}, per: 1_000_000, price: 0.30}
  - {id: out, match: {direction: out}, per: 1_000_000, price: 15.00}
""")
PLAIN_PICO, READ_PICO, OUT_PICO = 3_000_000, 300_000, 15_000_000
AT_US = 1_770_000_000_000_000

# What the caller's own doing ended is charged as generated; what ours ended, as delivered;
# what ended before it began, not at all.
GENERATED = {"COMPLETE", "EMPTY", "CLIENT_ABORT", "DEADLINE"}
DELIVERED = {"ERROR_MID_STREAM", "ENGINE_LOST"}
NOTHING = {"ERROR_BEFORE_FIRST_TOKEN"}


@given(
    end=st.sampled_from(End),
    prompt=st.integers(1, 40),
    cached=st.integers(0, 40),
    chunks=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans()), max_size=30),
)
def test_a_partial_event_costs_the_price_of_its_tokens(
    end: End, prompt: int, cached: int, chunks: list[tuple[int, int, bool]]
) -> None:
    cached = min(cached, prompt)
    tally = Tally(prompt, 3)
    tally.note_cached(0, cached)
    generated = [0, 0, 0]
    delivered = [0, 0, 0]
    for choice, tokens, is_read in chunks:
        tally.add(choice, [5] * tokens)
        generated[choice] += tokens
        if is_read:
            tally.hand_over(choice, generated[choice])
            delivered[choice] = generated[choice]
    template = usage.UsageEvent(
        event_id="r", account_id="a", served_model="m", event_time=timestamp_of(AT_US)
    )
    event = complete(template, tally, end, AT_US if any(generated) else 0, AT_US + 1)

    rated = OfflineRater([CARD], "USD").rate(read_line(json_format.MessageToDict(event)))

    outcome = usage.Outcome.Name(event.outcome).removeprefix("OUTCOME_")
    assert outcome in GENERATED | DELIVERED | NOTHING
    charged = delivered if outcome in DELIVERED else generated
    tokens_pico = (prompt - cached) * PLAIN_PICO + cached * READ_PICO + sum(charged) * OUT_PICO
    # Of what failed by us and gave the caller nothing, the prompt is not theirs to pay either.
    nothing = outcome in NOTHING or (outcome in DELIVERED and not any(delivered))
    assert rated.amount_pico == (0 if nothing else tokens_pico)
    assert rated.unpriced == 0
