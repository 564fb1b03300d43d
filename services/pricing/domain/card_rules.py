"""What every card must keep, whichever door it comes through: YAML or a raw control record.

Each rule is stated once, here. A problem names the place in the card by a
path such as ("lines", 3, "price"); the YAML reader turns paths into lines and
columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from pricing.domain.card import Card, Line
from pricing.domain.dimensions import ENUM_WORDS, MATCH_FIELDS, OUTCOME_BY_WORD, UNIT_BY_WORD
from pricing.domain.outcomes import RULES
from pricing.domain.selection import rivals
from pricing.domain.text import is_plain

MAX_LINES: Final = 20_000
MAX_ACCOUNTS: Final = 10_000
MAX_UNIT_PRICE_PICO: Final = 10**18
MAX_PRIORITY: Final = 1_000
MAX_WORD_CHARS: Final = 256
MAY_BE_EMPTY: Final = ("adapter", "region", "attribute")
# The years 1970 to 9999: beyond them neither the contract's timestamps nor a calendar hold.
MAX_INSTANT_US: Final = 253_402_300_799_999_999

CARD_ID: Final = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,63}")
LINE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
ACCOUNT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CURRENCY: Final = re.compile(r"[A-Z]{3}")

Path = tuple[str | int, ...]
Found = tuple[Path, str]


def problems(card: Card) -> Iterator[Found]:
    """Every rule that a card breaks: (where, what to do)."""
    if not CARD_ID.fullmatch(card.card_id):
        yield (
            ("card",),
            "'card' is 1-64 of a-z 0-9 . _ : / - and begins with a letter or digit,"
            f" not {card.card_id[:70]!r}",
        )
    if not CURRENCY.fullmatch(card.currency):
        yield ("currency",), f"'currency' is an ISO 4217 code such as USD, not {card.currency!r}"
    yield from _instants(card)
    yield from _priority(("priority",), card.priority)
    yield from _accounts(card.accounts)
    for word, rule in card.outcomes:
        if word not in OUTCOME_BY_WORD:
            known = ", ".join(OUTCOME_BY_WORD)
            yield ("outcomes", word), f"there is no outcome {word!r}; there are {known}"
        elif rule not in RULES:
            yield (
                ("outcomes", word),
                f"an outcome's rule is one of {', '.join(RULES)}, not {rule!r}",
            )
    if not card.lines:
        yield ("lines",), "'lines' is a list with at least one line"
    elif len(card.lines) > MAX_LINES:
        yield ("lines",), f"a card has at most {MAX_LINES} lines; split it"
    else:
        yield from _lines(card.lines)


def _instants(card: Card) -> Iterator[Found]:
    if not 0 <= card.effective_from_us <= MAX_INSTANT_US:
        yield ("effective_from",), "'effective_from' is in the years 1970 to 9999"
    if card.effective_to_us is None:
        return
    if not 0 <= card.effective_to_us <= MAX_INSTANT_US:
        yield ("effective_to",), "'effective_to' is in the years 1970 to 9999"
    elif card.effective_to_us <= card.effective_from_us:
        yield ("effective_to",), "'effective_to' is not after 'effective_from'"


def _priority(path: Path, priority: int) -> Iterator[Found]:
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        yield path, f"'priority' is a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"


def _accounts(accounts: tuple[str, ...]) -> Iterator[Found]:
    if len(accounts) > MAX_ACCOUNTS:
        yield ("accounts",), f"a card names at most {MAX_ACCOUNTS} accounts"
    if list(accounts) != sorted(set(accounts)):
        yield ("accounts",), "'accounts' stand sorted and once"
    for account_id in accounts:
        if not ACCOUNT_ID.fullmatch(account_id):
            yield ("accounts",), f"{account_id[:70]!r} is no account's id"


def _lines(lines: tuple[Line, ...]) -> Iterator[Found]:
    broken: set[int] = set()
    for index, line in enumerate(lines):
        for path, message in _line(line):
            broken.add(index)
            yield ("lines", index, *path), message
    counts = Counter(line.line_id for line in lines)
    seen: set[str] = set()
    for index, line in enumerate(lines):
        if counts[line.line_id] > 1 and line.line_id in seen:
            broken.add(index)
            yield (
                ("lines", index, "id"),
                f"line id {line.line_id!r} stands twice; ids are unique in a card",
            )
        seen.add(line.line_id)
    sound = [(index, line) for index, line in enumerate(lines) if index not in broken]
    for index, line, rival in rivals(sound):
        yield (
            ("lines", index),
            f"line {line.line_id!r} and line {rival.line_id!r} can match the same"
            " leaf with equal specificity; name one more dimension or set 'priority'",
        )


def _line(line: Line) -> Iterator[Found]:
    if not LINE_ID.fullmatch(line.line_id):
        yield (
            ("id",),
            "'id' is 1-128 of letters, digits and . _ : / @ + - and begins with a letter or"
            f" digit, not {line.line_id[:70]!r}",
        )
    if line.unit not in UNIT_BY_WORD:
        yield ("unit",), f"'unit' is one of {', '.join(UNIT_BY_WORD)}, not {line.unit!r}"
    if line.price_pico < 0:
        yield ("price",), "'price' is not negative; credit is given by a grant"
    elif line.price_pico > MAX_UNIT_PRICE_PICO:
        yield ("price",), "'price' is over 1,000,000 for one unit; check 'per'"
    yield from _priority(("priority",), line.priority)
    yield from _match(line.match)


def _match(match: Iterable[tuple[str, str]]) -> Iterator[Found]:
    for name, word in match:
        words = ENUM_WORDS.get(name)
        if name not in MATCH_FIELDS:
            yield (
                ("match", name),
                f"a match has no {name!r}; it has {', '.join(MATCH_FIELDS)}",
            )
        elif words is not None and word not in words:
            allowed = ", ".join(sorted(words))
            yield ("match", name), f"{name!r} is one of {allowed}, not {word!r}"
        elif not word and name not in MAY_BE_EMPTY:
            yield ("match", name), f"{name!r} has no value; leave it out to match all"
        elif not is_plain(word) or len(word) > MAX_WORD_CHARS:
            yield (
                ("match", name),
                f"{name!r} is at most {MAX_WORD_CHARS} characters without control characters",
            )


def check(card: Card) -> Card:
    """Give the card back if it keeps every rule. Errors: ValueError with the first it breaks."""
    for path, message in problems(card):
        raise ValueError(f"{'.'.join(str(part) for part in path)}: {message}")
    return card
