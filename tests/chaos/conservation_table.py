"""The account of a conservation run: what engines counted beside what a rate card charges for.

Made from the topic's records alone, as an auditor would, and by pricing's own rating. *Metered* is
what stands in the events; *billed* is what rating charges of it. They differ where a card charges
only what was delivered, and what they differ by is itemised by outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from tests.integration.inference_service import (
    Received,
    events_of,
    output_of,
    undelivered_of,
    unique,
)
from tests.integration.pricing_world import CARD

from pricing.domain.card import content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.events import event_of
from pricing.domain.rating import rate_event
from tollbook.usage.v1 import usage_pb2 as usage

MODELS: Final = ("tiny", "tiny-support")
# Whose undelivered tokens are the house's loss, said here once more than in pricing.
FORGIVEN: Final = (usage.OUTCOME_ENGINE_LOST, usage.OUTCOME_ERROR_MID_STREAM)


def prices() -> Catalogue:
    """The cards of the other tests, in force."""
    cards = [parse_card(CARD.format(card=f"whole-{model}", model=model)) for model in MODELS]
    return Catalogue(
        [
            published_card(position, card, 1, content_hash(card.document()))
            for position, card in enumerate(cards)
        ]
    )


def billed_of(event: usage.UsageEvent, catalogue: Catalogue) -> int:
    """Output tokens of an event that rating charges."""
    rated = rate_event(event_of(0, event), "USD", catalogue)
    assert all(part.priced is not None for part in rated), event
    return sum(part.charged for part in rated if part.leaf.key.direction == "out")


def word_of(outcome: int) -> str:
    """An outcome's word."""
    return usage.Outcome.Name(usage.Outcome.ValueType(outcome)).removeprefix("OUTCOME_").lower()


def table(
    received: Sequence[Received], planned: Sequence[str], kills: Mapping[str, int]
) -> tuple[str, int]:
    """The account as text, with its residual. `planned`: the situation of each request."""
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name in planned:
        rows[name]["requests"] += 1
    outcomes, forgiven = Counter[str](), Counter[str]()
    catalogue = prices()
    for event in events_of(received).values():
        row = rows[situation_of(event.event_id)]
        row["events"] += 1
        row["metered"] += output_of(event)
        row["undelivered"] += undelivered_of(event)
        row["billed"] += billed_of(event, catalogue)
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
