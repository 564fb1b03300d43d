"""What is odd about a draft beside the cards in force: for a person to look at.

What is wrong with it in itself is card_rules.py's; of what is found here a tie with
another card (ERRORS) keeps it from being put in force, and nothing else does.
A line is looked at through a leaf that it is for, rated by the very rules that
charge: by the cards as they are, and by the cards with the draft. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final, NamedTuple

from kernel.clock import rfc3339
from kernel.money import format_pico
from pricing.domain.card import Card, Line, content_hash
from pricing.domain.card_diff import factor_of
from pricing.domain.card_samples import priced_sample, sample_of, words_of
from pricing.domain.card_ties import ties
from pricing.domain.catalogue import Catalogue, PublishedCard, published_card
from pricing.domain.dimensions import Context
from pricing.domain.price_list import leaf_words, usual_leaves

TENFOLD: Final = "TENFOLD"
UNIT_TYPO: Final = "UNIT_TYPO"
FREE: Final = "FREE"
GAP: Final = "GAP"
TIME_GAP: Final = "TIME_GAP"
OVERLAP: Final = "OVERLAP"
AMBIGUOUS: Final = "AMBIGUOUS"
ERRORS: Final = frozenset({AMBIGUOUS})
"""What a card is not put in force with."""
UNPRICED_IN_USE: Final = "UNPRICED_IN_USE"

# What published prices of a token lie between, with a wide margin: 0.001 to 10,000 a million.
_LEAST_TOKEN_PICO: Final = 10**3
_MOST_TOKEN_PICO: Final = 10**10
_PER_STEPS: Final = (10**3, 10**6)
_MAX_FINDINGS: Final = 500
_DRAFT_VERSION: Final = 2**31 - 1

Where = Callable[[str], tuple[int, int]]
"""Line and column in the YAML of a line's id; (0, 0) when it is not there."""


class Finding(NamedTuple):
    """Something to look at."""

    reason: str
    line: int
    column: int
    message: str


def review(
    draft: Card, entries: Sequence[PublishedCard], now_us: int, where: Where
) -> list[Finding]:
    """Everything odd about a draft, beside a catalogue's entries, in order of place."""
    card = replace(draft, effective_from_us=0, effective_to_us=None)
    entry = published_card(0, card, _DRAFT_VERSION, content_hash(draft.document()))
    others = [known for known in entries if known.card.card_id != draft.card_id]
    now = Catalogue(entries, draft.purpose)
    # With the draft instead of its card's versions.
    then = Catalogue([*others, entry], draft.purpose)
    before = _in_force(draft.card_id, entries, now_us)
    found = [
        *price_flags(draft, before, now, now_us, where),
        *_ambiguous(draft, entries, now_us, where),
        *_unreached(draft, then, now_us, where),
        *_gaps(draft, before, then, now_us, where),
        *_time_gaps(draft, entries),
    ]
    return sorted(found, key=lambda one: (one.line, one.column))[:_MAX_FINDINGS]


def _in_force(card_id: str, entries: Sequence[PublishedCard], now_us: int) -> Card | None:
    """The newest version of a card that is in force or will be."""
    for entry in reversed(entries):
        ends_us = entry.card.effective_to_us
        if entry.card.card_id == card_id and (ends_us is None or ends_us > now_us):
            return entry.card
    return None


def price_flags(
    draft: Card, before: Card | None, now: Catalogue, now_us: int, where: Where
) -> Iterator[Finding]:
    """Prices that change tenfold, that look like another unit's, or that are 0."""
    old_lines = {line.line_id: line for line in before.lines} if before is not None else {}
    for line in draft.lines:
        place = where(line.line_id)
        if line.price_pico == 0:
            yield Finding(FREE, *place, f"line {line.line_id!r} is free: its price is 0")
        old = old_lines.get(line.line_id)
        if old is None:
            known = priced_sample(now, draft, sample_of(line), now_us)
            old = known.line if known is not None else None
        if old is not None and old.unit == line.unit and old.price_pico and line.price_pico:
            if message := _jump(line, old.price_pico):
                yield Finding(message[0], *place, message[1])
        elif line.unit == "token" and _is_no_token_price(line.price_pico):
            a_million = format_pico(line.price_pico * 10**6)
            yield Finding(
                UNIT_TYPO,
                *place,
                f"line {line.line_id!r} costs {a_million} {draft.currency} a million tokens;"
                " is 'per' what was meant?",
            )


def _is_no_token_price(price_pico: int) -> bool:
    return price_pico != 0 and not _LEAST_TOKEN_PICO <= price_pico <= _MOST_TOKEN_PICO


def _jump(line: Line, old_pico: int) -> tuple[str, str] | None:
    """(reason, message) for a price that is ten times the old one or more, or a tenth or less."""
    ratio = Fraction(line.price_pico, old_pico)
    size = max(ratio, 1 / ratio)
    if size < 10:
        return None
    change = (
        f"line {line.line_id!r} costs {factor_of(old_pico, line.price_pico)} times what it did"
        f" ({format_pico(old_pico)} to {format_pico(line.price_pico)} a unit)"
    )
    for step in _PER_STEPS:
        if Fraction(step, 4) <= size <= step * 4:
            return UNIT_TYPO, f"{change}: 'per' looks wrong by {step}"
    return TENFOLD, change


def _ambiguous(
    draft: Card, entries: Sequence[PublishedCard], now_us: int, where: Where
) -> Iterator[Finding]:
    for tie in ties(draft, entries, now_us):
        yield Finding(AMBIGUOUS, *where(tie.line_id), tie.words)


def _unreached(draft: Card, then: Catalogue, now_us: int, where: Where) -> Iterator[Finding]:
    for line in draft.lines:
        sample = sample_of(line)
        winner = priced_sample(then, draft, sample, now_us)
        if winner is None or winner.published.card.card_id == draft.card_id:
            continue
        rival = winner.published.card
        if bool(rival.accounts) == bool(draft.accounts) and rival.priority == draft.priority:
            continue  # a tie, which is told as one
        yield Finding(
            OVERLAP,
            *where(line.line_id),
            f"line {line.line_id!r} is not reached for {words_of(sample)}: card"
            f" {rival.card_id!r} is asked first",
        )


def _gaps(
    draft: Card, before: Card | None, then: Catalogue, now_us: int, where: Where
) -> Iterator[Finding]:
    for line in before.lines if before is not None else ():
        sample = sample_of(line)
        if priced_sample(then, draft, sample, now_us) is None:
            yield Finding(
                GAP,
                *where(line.line_id),
                f"line {line.line_id!r} of the version in force prices {words_of(sample)}; nothing"
                " would: its usage would wait in suspense",
            )
    seen: set[Context] = set()
    for line in draft.lines:
        context, _ = sample_of(line)
        if line.unit != "token" or "model" not in dict(line.match) or context in seen:
            continue
        seen.add(context)
        missing = [
            leaf_words(key)
            for key in usual_leaves()
            if key.unit == "token"
            and key.modality == "text"
            and priced_sample(then, draft, (context, key), now_us) is None
        ]
        if missing:
            yield Finding(
                GAP,
                *where(line.line_id),
                f"model {context.model!r} has no price for {', '.join(missing)}: such usage would"
                " wait in suspense",
            )


def _time_gaps(draft: Card, entries: Sequence[PublishedCard]) -> Iterator[Finding]:
    ends = [
        known.card.effective_to_us
        for known in entries
        if known.card.card_id == draft.card_id
        and known.card.effective_from_us < draft.effective_from_us
    ]
    last_us = max((end for end in ends if end is not None), default=None)
    if ends and None not in ends and last_us is not None and last_us < draft.effective_from_us:
        yield Finding(
            TIME_GAP,
            0,
            0,
            f"no version is in force from {rfc3339(last_us)} to"
            f" {rfc3339(draft.effective_from_us)}: usage of that time would wait in suspense",
        )
