"""The account of a conservation run: what engines counted beside what was charged for it.

*Metered* is what stands in the topic's events; *billed* what the running ledger and pricing charge
of it, by each request's receipt. They differ where a card charges only what was delivered, and what
they differ by is itemised by outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from tests.chaos.conservation_books import billed_of, word_of
from tests.integration.inference_service import (
    Received,
    events_of,
    output_of,
    undelivered_of,
    unique,
)
from tests.integration.whole_world import Identity

from tollbook.pricing.v1 import pricing_pb2
from tollbook.usage.v1 import usage_pb2 as usage

# Whose undelivered tokens are the house's loss, said here once more than in pricing.
FORGIVEN: Final = (usage.OUTCOME_ENGINE_LOST, usage.OUTCOME_ERROR_MID_STREAM)


def table(
    received: Sequence[Received],
    receipts: Mapping[Identity, pricing_pb2.Receipt],
    planned: Sequence[str],
    kills: Mapping[str, int],
) -> tuple[str, int]:
    """The account as text, with its residual. `planned`: the situation of each request."""
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name in planned:
        rows[name]["requests"] += 1
    outcomes, forgiven = Counter[str](), Counter[str]()
    for identity, event in events_of(received).items():
        row = rows[situation_of(event.event_id)]
        row["events"] += 1
        row["metered"] += output_of(event)
        row["undelivered"] += undelivered_of(event)
        row["billed"] += billed_of(receipts[identity])
        outcomes[word_of(event.outcome)] += 1
        if event.outcome in FORGIVEN:
            forgiven[word_of(event.outcome)] += undelivered_of(event)
    counted, inferred, waste = 0, 0, Counter[str]()
    for item in unique(received):
        reading = item.record.engine_reading
        if reading.final:
            counted += reading.generation_tokens - reading.inferred_tokens
            inferred += reading.inferred_tokens
            for part in reading.waste:
                waste[usage.WasteKind.Name(part.kind).removeprefix("WASTE_KIND_").lower()] += (
                    part.tokens
                )
    billed = sum(row["billed"] for row in rows.values())
    residual = counted + inferred - billed - forgiven.total() - waste.total()
    columns = ("requests", "events", "metered", "undelivered", "billed")
    head = f"{'situation':<16}" + "".join(f"{column:>13}" for column in columns)
    sums = {
        "engines counted": counted,
        "inferred of killed engines": inferred,
        "billed": billed,
        **{f"not charged: {word}": tokens for word, tokens in sorted(forgiven.items()) if tokens},
        **{f"waste: {kind}": tokens for kind, tokens in sorted(waste.items())},
        "residual": residual,
    }
    width = len(head) - 34
    lines = [
        head,
        "-" * len(head),
        *(
            f"{name:<16}" + "".join(f"{row[column]:>13}" for column in columns)
            for name, row in sorted(rows.items())
        ),
        "-" * len(head),
        *(f"{name:<34}{tokens:>{width}}" for name, tokens in sums.items()),
        f"outcomes: {dict(sorted(outcomes.items()))}",
        f"killed with signal 9: {dict(kills)}; engines: {sum(kills.values()) + 1}",
    ]
    return "\n".join(lines), residual


def situation_of(event_id: str) -> str:
    """The situation that an id like `c:SITUATION:NUMBER` names."""
    return event_id.rpartition(":")[0].partition(":")[2]
