"""Rating as one would write it on paper: one event, one unit after the other, and no sharing.

It has its own matching, its own clocks, its own factors and its own months, so
that what it agrees with is right and not only the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import NamedTuple
from zoneinfo import ZoneInfo

from pricing.domain.card import Card, Line, Match, Multiplier
from tollbook.usage.v1 import usage_pb2 as usage

Meter = tuple[str, str, str, str]
"""(account, card, meter, month)"""
_RANK = {"read": 0, "write": 1}
_ALL_FIELDS = ("model", "base_model", "adapter", "service_tier", "region")


class Leaf(NamedTuple):
    words: dict[str, str]
    amount: int
    undelivered: int


class Known(NamedTuple):
    """A version, and the order it was published in."""

    card: Card
    version: int


def _leaves(event: usage.UsageEvent) -> list[Leaf]:
    found = []
    for item in event.quantities:
        if not item.amount:
            continue
        kinds = {0: "plain", 1: "plain", 2: "reasoning"}
        words = {
            "unit": {1: "token", 4: "search"}[item.unit],
            "direction": {0: "none", 1: "in", 2: "out"}[item.direction],
            "modality": "text",
            "cache_use": {0: "none", 1: "none", 2: "read"}[item.cache_use],
            "cache_ttl": "default",
            "token_kind": kinds[item.token_kind],
            "attribute": "",
            "model": event.served_model,
            "base_model": event.base_model,
            "adapter": event.adapter,
            "service_tier": event.service_tier or "standard",
            "region": event.region,
        }
        found.append(Leaf(words, item.amount, item.undelivered_amount))
    return found


def _when(event: usage.UsageEvent, card: Card) -> datetime:
    at = datetime.fromtimestamp(event.event_time.seconds, tz=UTC)
    return at.astimezone(ZoneInfo(card.timezone))


def _at_us(event: usage.UsageEvent) -> int:
    return event.event_time.seconds * 1_000_000 + event.event_time.nanos // 1_000


def _in_window(card: Card, name: str, when: datetime) -> bool:
    window = next(one for one in card.windows if one.name == name)
    # Wall clocks have no zone: as the clock shows it, whatever it showed an hour ago.
    wall = when.replace(tzinfo=None, fold=0)
    midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    for back in (0, 1):
        day = midnight - timedelta(days=back)
        if day.weekday() in window.days:
            start = day + timedelta(seconds=window.start_s)
            end = day + timedelta(seconds=window.end_s)
            if window.end_s <= window.start_s:
                end += timedelta(days=1)
            if start <= wall < end:
                return True
    return False


def _holds(card: Card, match: Match, words: dict[str, str], when: datetime) -> bool:
    for name, word in match:
        if name == "time_window":
            if not _in_window(card, word, when):
                return False
        elif word == "*":
            if not words[name]:
                return False
        elif words[name] != word:
            return False
    return True


def _best(card: Card, words: dict[str, str], when: datetime) -> Line | None:
    found = [
        line
        for line in card.lines
        if not line.surcharge
        and line.unit == words["unit"]
        and _holds(card, line.match, words, when)
    ]
    return max(
        found,
        key=lambda line: (
            line.priority,
            sum(word != "*" for _, word in line.match),
            len(line.match),
        ),
        default=None,
    )


def _factors(card: Card, line: Line, words: dict[str, str], when: datetime) -> list[Multiplier]:
    own = {name for name, word in line.match if (name, word) != ("service_tier", "standard")}
    protected = {"service_tier", "adapter", "region", "time_window"} & own
    return [
        one
        for one in ((() if line.surcharge else card.multipliers) + line.multipliers)
        if _holds(card, one.match, words, when) and not protected & {name for name, _ in one.match}
    ]


class Found(NamedTuple):
    known: Known
    line: Line
    factors: list[Multiplier]
    rule: str


def _look(
    known: Known, words: dict[str, str], actual: dict[str, str], when: datetime, rule: str
) -> Found | None:
    card = known.card
    line = _best(card, words, when)
    if line is not None:
        return Found(known, line, _factors(card, line, actual, when), rule)
    tier = words["service_tier"]
    if tier != "standard":
        line = _best(card, words | {"service_tier": "standard"}, when)
        if line is not None:
            factors = _factors(card, line, actual, when)
            if any(("service_tier", tier) in one.match for one in factors):
                return Found(known, line, factors, rule)
    return None


def _parents(words: dict[str, str]) -> list[dict[str, str]]:
    answer = []
    for name, plain in (("token_kind", "plain"), ("cache_use", "none")):
        if words["unit"] == "token" and words[name] != plain:
            words = words | {name: plain}
            answer.append(words)
    return answer


def _find(cards: list[Known], leaf: Leaf, event: usage.UsageEvent) -> Found | None:
    words = leaf.words
    base = words | {"model": words["base_model"], "adapter": ""}
    has_base = words["model"] != words["base_model"] or words["adapter"]
    for known in cards:
        if found := _look(known, words, words, _when(event, known.card), "line"):
            return found
    for rank in range(3):
        for known in cards:
            steps = list(known.card.fallback)
            if len(steps) == 2:
                steps.append("both")
            if rank >= len(steps):
                continue
            step, when = steps[rank], _when(event, known.card)
            tried: list[dict[str, str]] = []
            if step == "base_model" and has_base:
                tried = [base]
            elif step == "parent_class":
                tried = _parents(words)
            elif step == "both" and has_base:
                tried = _parents(base)
            for one in tried:
                if found := _look(known, one, words, when, step):
                    return found
    return None


def _rounded(value: Fraction, how: str) -> int:
    if how == "up":
        return math.ceil(value)
    if how == "down":
        return math.floor(value)
    return round(value)


def _unit_price(found: Found, number: int, volume: int | None = None) -> int:
    """Price of the unit with this number, from 1; or of every unit, by a volume."""
    line, price = found.line, found.line.price_pico
    for step in line.tiers.steps if line.tiers else ():
        reached = number if volume is None else volume
        beyond = reached > step.over
        assert line.tiers is not None
        if beyond or (line.tiers.boundary == "gte" and reached == step.over):
            price = step.price_pico
    whole = Fraction(price)
    for one in found.factors:
        whole *= one.factor
    if not line.surcharge:
        whole += whole * line.percentage / 100
    return _rounded(whole, line.rounding)


class Books:
    """Charges so far: of requests, and the units of each month."""

    def __init__(self, versions: Sequence[Known]) -> None:
        self.versions = list(versions)
        self.charged: dict[str, int] = {}
        self.months: dict[Meter, list[tuple[tuple[object, ...], Found]]] = {}
        self.by_card: dict[tuple[str, str, str], dict[int, int]] = {}
        self.unpriced: dict[str, int] = {}

    def _in_force(self, event: usage.UsageEvent) -> list[Known]:
        newest: dict[str, Known] = {}
        at_us = _at_us(event)
        for known in self.versions:
            card = known.card
            ends = card.effective_to_us
            is_now = card.effective_from_us <= at_us and (ends is None or at_us < ends)
            if is_now and (not card.accounts or event.account_id in card.accounts):
                newest[card.card_id] = known
        return sorted(
            newest.values(),
            key=lambda known: (not known.card.accounts, -known.card.priority, known.card.card_id),
        )

    def add(self, event: usage.UsageEvent) -> None:
        leaves = _leaves(event)
        context = sum(
            leaf.amount
            for leaf in leaves
            if leaf.words["unit"] == "token" and leaf.words["direction"] == "in"
        )
        in_context = sorted(
            (leaf for leaf in leaves if leaf.words["unit"] == "token"),
            key=lambda leaf: (
                leaf.words["direction"] != "in",
                _RANK.get(leaf.words["cache_use"], 2) if leaf.words["direction"] == "in" else 3,
            ),
        )
        waits = False
        for leaf in leaves:
            found = _find(self._in_force(event), leaf, event)
            if found is None:
                waits = True
                continue
            card = found.known.card
            outcome = {1: "complete", 2: "client_abort", 6: "engine_lost"}[event.outcome]
            how = dict(card.outcomes)[outcome]
            units = {
                "generated": leaf.amount,
                "delivered": leaf.amount - leaf.undelivered,
                "none": 0,
            }[how]
            start = 0
            for other in in_context:
                if other is leaf:
                    break
                start += other.amount
            self._charge(event, found, units, context, start)
            when = _when(event, card)
            for line in card.lines:
                if (
                    line.surcharge
                    and line.unit == leaf.words["unit"]
                    and _holds(card, line.match, leaf.words, when)
                ):
                    on_top = Found(found.known, line, _factors(card, line, leaf.words, when), "")
                    self._surcharge(event, on_top, found, units, context)
        if waits:
            self.unpriced[event.account_id] = self.unpriced.get(event.account_id, 0) + 1

    def _charge(
        self, event: usage.UsageEvent, found: Found, units: int, context: int, start: int
    ) -> None:
        line = found.line
        if not units:
            return
        tiers = line.tiers
        if line.included_units or (tiers and tiers.by == "monthly_volume"):
            period = f"{_when(event, found.known.card):%Y-%m}"
            meter = (event.account_id, found.known.card.card_id, line.meter or line.line_id, period)
            factor = math.prod((one.factor for one in found.factors), start=Fraction(1))
            rule = "*".join((_RULES[found.rule], *(one.multiplier_id for one in found.factors)))
            layer = (found.known.version, line.line_id, factor, rule)
            self.months.setdefault(meter, []).extend([(layer, found)] * units)
            return
        units = max(units, line.minimum_units)
        if tiers and tiers.mode == "graduated":
            amount = sum(_unit_price(found, start + number) for number in range(1, units + 1))
        elif line.package_units:
            amount = math.ceil(Fraction(units, line.package_units)) * _unit_price(found, context)
        else:
            amount = units * _unit_price(found, context)
        self._pay(event, found, max(amount, line.minimum_pico))

    def _surcharge(
        self, event: usage.UsageEvent, found: Found, base: Found, units: int, context: int
    ) -> None:
        line = found.line
        if line.percentage:
            share = line.percentage / 100
            for one in found.factors:
                share *= one.factor
            price = _rounded(_unit_price(base, context) * share, line.rounding)
        else:
            price = _unit_price(found, 0)
        self._pay(event, found, units * price)

    def _pay(self, event: usage.UsageEvent, found: Found, amount: int) -> None:
        self.charged[event.account_id] = self.charged.get(event.account_id, 0) + amount
        period = f"{_when(event, found.known.card):%Y-%m}"
        self._commit(event.account_id, found.known, period, amount)

    def _commit(self, account: str, known: Known, period: str, amount: int) -> None:
        if known.card.commitment is not None and amount:
            of_month = self.by_card.setdefault((account, known.card.card_id, period), {})
            of_month[known.version] = of_month.get(known.version, 0) + amount

    def _units_of_months(self) -> Iterator[tuple[Meter, Found, int]]:
        """Every unit of every month that costs, in the order of its place."""
        for meter, units in self.months.items():
            ordered = sorted(units, key=lambda unit: unit[0])
            for number, (_, found) in enumerate(ordered, 1):
                if number <= found.line.included_units:
                    continue
                tiers = found.line.tiers
                volume = len(ordered) if tiers and tiers.mode == "volume" else None
                yield meter, found, _unit_price(found, number, volume)

    def meters(self) -> dict[Meter, int]:
        """What the units of each meter's month cost, by its tiers, without commitments."""
        cost: dict[Meter, int] = {}
        for meter, _, price in self._units_of_months():
            cost[meter] = cost.get(meter, 0) + price
        return {meter: amount for meter, amount in cost.items() if amount}

    def totals(self, closed: Sequence[tuple[str, str, Known]] = ()) -> dict[str, int]:
        """What each account is charged; `closed` are (account, month, terms)."""
        charged = dict(self.charged)
        saved = {key: dict(value) for key, value in self.by_card.items()}
        for (account, _, _, period), found, price in self._units_of_months():
            charged[account] = charged.get(account, 0) + price
            self._commit(account, found.known, period, price)
        months = self.by_card
        self.by_card = saved
        versions = {(known.card.card_id, known.version): known for known in self.versions}
        ends = {(account, known.card.card_id, month): known for account, month, known in closed}
        for key in {*months, *ends}:
            account, card_id, _ = key
            of_month = months.get(key, {})
            newest = max([*of_month, *([ends[key].version] if key in ends else [])])
            terms = versions[card_id, newest].card.commitment
            assert terms is not None
            paid = sum(of_month.values())
            owed = max(paid, terms.minimum_pico if key in ends else 0)
            if terms.maximum_pico is not None:
                owed = min(owed, terms.maximum_pico)
            charged[account] = charged.get(account, 0) + owed - paid
        return {account: amount for account, amount in charged.items() if amount}


_RULES = {
    "line": "line",
    "base_model": "base_model",
    "parent_class": "parent_class",
    "both": "base_model+parent_class",
}
