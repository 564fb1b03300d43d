"""What every card must keep, whichever door it comes through: YAML or a raw control record.

Each rule is stated once, here and, for lines, in line_rules.py. A problem
names the place in the card by a path such as ("lines", 3, "price"); the YAML
reader turns paths into lines and columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pricing.domain import hours, line_rules
from pricing.domain.card import BASE_MODEL, COST, PARENT_CLASS, SELL, Card, TimeWindow
from pricing.domain.dimensions import OUTCOME_BY_WORD
from pricing.domain.line_rules import Found
from pricing.domain.outcomes import RULES

MAX_LINES: Final = 20_000
MAX_ACCOUNTS: Final = 10_000
MAX_WINDOWS: Final = 32
MAX_COMMITMENT_PICO: Final = 10**30
# The years 1970 to 9999: beyond them neither the contract's timestamps nor a calendar hold.
MAX_INSTANT_US: Final = 253_402_300_799_999_999

CARD_ID: Final = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,63}")
ACCOUNT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CURRENCY: Final = re.compile(r"[A-Z]{3}")
WINDOW_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


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
    yield from line_rules.priority(("priority",), card.priority)
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
    if card.purpose not in (SELL, COST):
        yield ("purpose",), f"'purpose' is {SELL} or {COST}, not {card.purpose[:40]!r}"
    yield from _clock(card)
    yield from _fallback(card)
    yield from _commitment(card)
    if not card.lines:
        yield ("lines",), "'lines' is a list with at least one line"
    elif len(card.lines) > MAX_LINES:
        yield ("lines",), f"a card has at most {MAX_LINES} lines; split it"
    else:
        yield from line_rules.problems(card)


def _instants(card: Card) -> Iterator[Found]:
    if not 0 <= card.effective_from_us <= MAX_INSTANT_US:
        yield ("effective_from",), "'effective_from' is in the years 1970 to 9999"
    if card.effective_to_us is None:
        return
    if not 0 <= card.effective_to_us <= MAX_INSTANT_US:
        yield ("effective_to",), "'effective_to' is in the years 1970 to 9999"
    elif card.effective_to_us <= card.effective_from_us:
        yield ("effective_to",), "'effective_to' is not after 'effective_from'"


def _accounts(accounts: tuple[str, ...]) -> Iterator[Found]:
    if len(accounts) > MAX_ACCOUNTS:
        yield ("accounts",), f"a card names at most {MAX_ACCOUNTS} accounts"
    if list(accounts) != sorted(set(accounts)):
        yield ("accounts",), "'accounts' stand sorted and once"
    for account_id in accounts:
        if not ACCOUNT_ID.fullmatch(account_id):
            yield ("accounts",), f"{account_id[:70]!r} is no account's id"


def _clock(card: Card) -> Iterator[Found]:
    try:
        hours.zone(card.timezone)
    except ValueError as error:
        yield ("timezone",), f"'timezone': {error}"
    if len(card.windows) > MAX_WINDOWS:
        yield ("time_windows",), f"a card has at most {MAX_WINDOWS} time windows"
    names = [window.name for window in card.windows]
    if names != sorted(set(names)):
        yield ("time_windows",), "time windows stand sorted by name, and once"
    for window in card.windows:
        yield from _window(window)


def _window(window: TimeWindow) -> Iterator[Found]:
    path = ("time_windows", window.name)
    if not WINDOW_NAME.fullmatch(window.name):
        yield path, f"a window's name is 1-32 of a-z 0-9 _ -, not {window.name[:40]!r}"
    days = list(window.days)
    if not days or days != sorted(set(days)) or not set(days) <= set(range(7)):
        yield (*path, "days"), "'days' is some of mon, tue, wed, thu, fri, sat, sun, each once"
    if not 0 <= window.start_s < hours.DAY_S:
        yield (*path, "from"), "'from' is 00:00 to 23:59:59"
    if not 0 < window.end_s <= hours.DAY_S:
        yield (*path, "to"), "'to' is 00:00:01 to 24:00"
    elif window.end_s == window.start_s:
        yield (*path, "to"), "'to' is not 'from'; the whole day is from 00:00 to 24:00"


def _fallback(card: Card) -> Iterator[Found]:
    known = (BASE_MODEL, PARENT_CLASS)
    if len(set(card.fallback)) != len(card.fallback) or not set(card.fallback) <= set(known):
        yield (
            ("fallback",),
            f"'fallback' is some of {', '.join(known)}, each once; what they do not price waits"
            " in suspense",
        )


def _commitment(card: Card) -> Iterator[Found]:
    found = card.commitment
    if found is None:
        return
    if not 0 <= found.minimum_pico <= MAX_COMMITMENT_PICO:
        yield ("commitment", "minimum"), "'minimum' is 0 to 10^18 units of the currency"
    if found.minimum_pico and not card.accounts:
        yield ("commitment", "minimum"), "a 'minimum' is owed by the 'accounts' that the card names"
    if found.maximum_pico is None:
        if not found.minimum_pico:
            yield ("commitment",), "'commitment' has a 'minimum', a 'maximum' or both"
    elif not 0 < found.maximum_pico <= MAX_COMMITMENT_PICO:
        yield ("commitment", "maximum"), "'maximum' is more than 0"
    elif found.maximum_pico < found.minimum_pico:
        yield ("commitment", "maximum"), "'maximum' is not below 'minimum'"


def check(card: Card) -> Card:
    """Give the card back if it keeps every rule. Errors: ValueError with the first it breaks."""
    for path, message in problems(card):
        raise ValueError(f"{'.'.join(str(part) for part in path)}: {message}")
    return card
