"""How fast rating is, on one core: leaves of a log to charges, by three sets of prices.

The usage is that of public traces (requests of two services, with the tokens
they took in and gave out), or made to the same shape where they are not there.
Every case is rated by the pure call that the services make, by a plain loop of
decimals, and, where it knows the models, by the genai-prices package, one after
the other in the same process. The loop must come to the same charges.

Time is the processor's, of this process: the machine may have other work, and
what is measured runs on one core.
"""

from __future__ import annotations

import gzip
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any, Final, NamedTuple

from bench import traces
from kernel import cycles
from kernel import leaf as leaves
from kernel.money import PICO
from pricing.domain import books, tally
from pricing.domain.card import Card, Line, content_hash
from pricing.domain.card_yaml import parse_card
from pricing.domain.catalogue import Catalogue, published_card
from pricing.domain.imports.genai_cards import import_prices
from pricing.domain.imports.price_file import read_price_file
from pricing.domain.rate import Batch, Cards, rate
from tollbook.ledger.v1 import ledger_pb2
from tollbook.usage.v1 import usage_pb2 as usage

EVENTS: Final = int(os.environ.get("TOLLBOOK_BENCH_EVENTS", "200000"))
BATCH_LEAVES: Final = tally.MAX_LEAVES
ROUNDS: Final = 3
ACCOUNTS: Final = 400
MODELS_AN_ACCOUNT: Final = 4
LOG: Final = "usage-0"
START_S: Final = 1_790_000_000  # September 2026: after the last date of the published prices

FLAT: Final = """
card: flat
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in,   match: {direction: in, cache_use: none}, per: 1_000_000, price: 3.00}
  - {id: read, match: {direction: in, cache_use: read}, per: 1_000_000, price: 0.30}
  - {id: out,  match: {direction: out},                 per: 1_000_000, price: 15.00}
"""
TIERED: Final = """
card: tiered
currency: USD
effective_from: 2026-01-01T00:00:00Z
timezone: Europe/Berlin
time_windows: {night: {from: 22:00, to: 06:00}}
multipliers: [{id: night, match: {time_window: night}, factor: 0.5}]
lines:
  - id: in
    match: {direction: in, cache_use: none}
    per: 1_000_000
    price: 3.00
    tiers: {by: context_length, mode: whole_request, steps: [{over: 8_000, price: 6.00}]}
  - id: read
    match: {direction: in, cache_use: read}
    per: 1_000_000
    price: 0.30
    tiers: {by: context_length, mode: whole_request, steps: [{over: 8_000, price: 0.60}]}
  - id: out
    match: {direction: out}
    per: 1_000_000
    price: 15.00
    tiers: {by: monthly_volume, mode: graduated, steps: [{over: 50_000, price: 12.00}]}
"""


class Request(NamedTuple):
    """A request of a trace."""

    at_s: int
    plain: int
    cached: int
    output: int


def _azure() -> Iterator[Request]:
    for row in traces.azure_rows():
        clock = row["TIMESTAMP"].split(" ")[1].split(":")
        second = int(clock[0]) * 3600 + int(clock[1]) * 60 + int(float(clock[2]))
        yield Request(second, int(row["ContextTokens"]), 0, int(row["GeneratedTokens"]))


def _mooncake() -> Iterator[Request]:
    seen: set[int] = set()
    for row in traces.mooncake_rows():
        blocks = row["hash_ids"]
        shared = 0
        while shared < len(blocks) and blocks[shared] in seen:
            shared += 1
        seen.update(blocks)
        cached = min(shared * traces.BLOCK_TOKENS, row["input_length"])
        yield Request(
            row["timestamp"] // 1000, row["input_length"] - cached, cached, row["output_length"]
        )


def requests() -> tuple[str, list[Request]]:
    """(what they are, the requests of the traces, or made ones)."""
    try:
        return "traces of two services", [*_azure(), *_mooncake()]
    except FileNotFoundError:
        rng = random.Random(1)
        made = [
            Request(n // 9, rng.randint(40, 12_000), rng.randint(0, 8_000), rng.randint(1, 800))
            for n in range(30_000)
        ]
        return "made requests", made


def leaves_of(found: Sequence[Request], models: Sequence[str], count: int) -> list[bytes]:
    """Leaves of a usage log: the requests over and over; an account uses a few of the models."""
    rng = random.Random(7)
    own = [rng.sample(models, min(len(models), MODELS_AN_ACCOUNT)) for _ in range(ACCOUNTS)]
    data: list[bytes] = []
    for position in range(count):
        request = found[position % len(found)]
        account = rng.randrange(ACCOUNTS)
        model = rng.choice(own[account])
        event = usage.UsageEvent(
            event_id=f"request-{position:012d}",
            account_id=f"account-{account:04d}",
            key_id="key-1",
            served_model=model,
            base_model=model,
            outcome=usage.OUTCOME_COMPLETE,
            finish_reason=usage.FINISH_REASON_STOP,
            output_digest=b"\x07" * 32,
            engine_id="inference-0/boot",
            choice_count=1,
        )
        event.event_time.seconds = START_S + request.at_s
        event.end_time.seconds = START_S + request.at_s + 3
        token = usage.UNIT_TOKEN
        event.quantities.add(unit=token, direction=usage.DIRECTION_IN, amount=request.plain)
        if request.cached:
            event.quantities.add(
                unit=token,
                direction=usage.DIRECTION_IN,
                cache_use=usage.CACHE_USE_READ,
                amount=request.cached,
            )
        event.quantities.add(unit=token, direction=usage.DIRECTION_OUT, amount=request.output)
        record = usage.UsageRecord(
            stream_id="bench/0", stream_seq=position, usage_event=event.SerializeToString()
        )
        record.trace_id = position.to_bytes(16, "big")
        data.append(
            leaves.encode(
                ledger_pb2.DISPOSITION_ACCEPTED, 0, position, 0, b"", record.SerializeToString()
            )
        )
    return data


def catalogue_of(cards: Sequence[Card]) -> Catalogue:
    """The cards as published one after the other."""
    return Catalogue(
        [
            published_card(number, card, number, content_hash(card.document()))
            for number, card in enumerate(cards, 1)
        ]
    )


def _best_s(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    best_s = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        work()
        best_s = min(best_s, time.process_time() - started)
    return best_s


def charge(data: Sequence[bytes], catalogue: Catalogue) -> dict[str, int]:
    """Charges of each account in pico-units, by the pure call."""
    cards = Cards(catalogue, lambda account_id: "USD")
    balances: dict[books.BalanceKey, int] = {}
    for first in range(0, len(data), BATCH_LEAVES):
        done = rate(Batch(LOG, first, data[first : first + BATCH_LEAVES]), cards)
        if done.unpriced:
            raise AssertionError(f"{len(done.unpriced)} events have no price")
        books.apply(balances, done.postings)
    return charged(balances)


def charged(balances: Mapping[books.BalanceKey, int]) -> dict[str, int]:
    """What each account was charged, in pico-units, by the accounts of revenue."""
    prefix = books.revenue("")
    return {
        account.removeprefix(prefix): amount
        for (account, _), amount in balances.items()
        if account.startswith(prefix) and amount
    }


def events_of(data: Sequence[bytes]) -> Iterator[usage.UsageEvent]:
    """Every event, read by protobuf."""
    for raw in data:
        record = usage.UsageRecord.FromString(leaves.decode(raw).value)
        yield usage.UsageEvent.FromString(record.usage_event)


def read_alone(data: Sequence[bytes]) -> None:
    """Read every event and look at nothing."""
    for _ in events_of(data):
        pass


def by_decimals(data: Sequence[bytes], cards: Sequence[Card]) -> dict[str, int]:
    """What one would write first: a price looked up, multiplied and added for each quantity."""
    prices: dict[tuple[str, str, str], tuple[Decimal, list[tuple[int, Decimal]]]] = {}

    def put(line: Line, model: str, direction: str, cache: str) -> None:
        steps = [
            (step.over, Decimal(step.price_pico) / PICO)
            for step in (line.tiers.steps if line.tiers else ())
        ]
        prices[model, direction, cache] = Decimal(line.price_pico) / PICO, steps

    for card in cards:
        for line in sorted(card.lines, key=lambda one: len(one.match)):
            match = dict(line.match)
            if line.unit != "token" or match.get("service_tier") != "standard":
                continue
            for direction in ("in", "out"):
                for cache in ("none", "read"):
                    if (
                        match.get("direction", direction) == direction
                        and match.get("cache_use", cache) == cache
                        and match.get("modality", "text") == "text"
                    ):
                        put(line, match.get("model", ""), direction, cache)
    charged: dict[str, Decimal] = {}
    with localcontext(prec=60):
        for event in events_of(data):
            context = sum(
                item.amount for item in event.quantities if item.direction == usage.DIRECTION_IN
            )
            for item in event.quantities:
                direction = "in" if item.direction == usage.DIRECTION_IN else "out"
                cache = "read" if item.cache_use == usage.CACHE_USE_READ else "none"
                found = prices.get((event.served_model, direction, cache))
                price, steps = found or prices["", direction, cache]
                for over, higher in steps:
                    if context > over:
                        price = higher
                charged[event.account_id] = (
                    charged.get(event.account_id, Decimal(0)) + price * item.amount
                )
        return {account: int(amount * PICO) for account, amount in charged.items() if amount}


def by_genai_prices(data: Sequence[bytes]) -> None:
    """The genai-prices package over the same events, one at a time, as it works."""
    from genai_prices import Usage, calc_price

    for event in events_of(data):
        plain = cached = output = 0
        for item in event.quantities:
            if item.direction == usage.DIRECTION_OUT:
                output += item.amount
            elif item.cache_use == usage.CACHE_USE_READ:
                cached += item.amount
            else:
                plain += item.amount
        calc_price(
            Usage(input_tokens=plain + cached, cache_read_tokens=cached, output_tokens=output),
            "gpt-4o",
            provider_id="openai",
        )


def imported() -> tuple[str, list[Card], list[str]]:
    """(what they are, the cards of all published models, those that price tokens in and out)."""
    path = traces.DATA / "genai_prices_slim.json.gz"
    if not path.exists():
        names = [f"model-{number}" for number in range(1_285)]
        lines = [
            f"  - {{id: {name}-{way}, match: {{model: {name}, direction: {way}}},"
            " per: 1_000_000, price: 2.50}"
            for name in names
            for way in ("in", "out")
        ]
        head = FLAT.split("lines:")[0].replace("flat", "made")
        return "1,285 made models", [parse_card(head + "lines:\n" + "\n".join(lines))], names
    found = import_prices(read_price_file(gzip.decompress(path.read_bytes())))
    cards = [parse_card(text) for text in found.cards.values()]
    catalogue = catalogue_of(cards)
    names = sorted({dict(line.match).get("model", "") for card in cards for line in card.lines})
    probe = Request(0, 10, 5, 10)
    priced = [
        name
        for name in names
        if name
        and not rate(Batch(LOG, 0, leaves_of([probe], [name], 1)), _cards(catalogue)).unpriced
    ]
    return f"{found.models} published models, {len(priced)} of them priced", cards, priced


def _cards(catalogue: Catalogue) -> Cards:
    return Cards(catalogue, lambda account_id: "USD")


def case(cards: Sequence[Card], data: Sequence[bytes], same: bool) -> dict[str, Any]:
    """Rate by some cards. `same`: a loop of decimals can come to the same, and must."""
    catalogue = catalogue_of(cards)
    if same and charge(data, catalogue) != by_decimals(data, cards):
        raise AssertionError("rating and the loop of decimals do not come to the same charges")
    part = data[:20_000]
    ours_s = _best_s(lambda: charge(data, catalogue))
    decimals_s = _best_s(lambda: by_decimals(part, cards)) / len(part) * len(data)
    return {
        "rating_events_per_s": round(len(data) / ours_s),
        "decimal_loop_events_per_s": round(len(data) / decimals_s),
        "times_the_decimal_loop": round(decimals_s / ours_s, 1),
    }


def run() -> dict[str, Any]:
    """Measure; events a second of one core's time, the best of some rounds."""
    tally.prepare()
    # As the services that rate do.
    cycles.settle()
    what, found = requests()
    flat, tiered = parse_card(FLAT), parse_card(TIERED)
    three = ["model-a", "model-b", "model-c"]
    data = leaves_of(found, three, EVENTS)
    figures: dict[str, Any] = {
        "usage": what,
        "events": EVENTS,
        "accounts": ACCOUNTS,
        "batch_leaves": BATCH_LEAVES,
        "flat": case([flat], data, same=True),
        "tiered": case([tiered], data, same=False),
    }
    prices, cards, names = imported()
    figures["mixed_prices"] = prices
    figures["mixed"] = case(cards, leaves_of(found, names, EVENTS), same=False)
    part = data[:10_000]
    figures["genai_prices_events_per_s"] = round(len(part) / _best_s(lambda: by_genai_prices(part)))
    figures["reading_by_protobuf_alone_events_per_s"] = round(
        len(part) / _best_s(lambda: read_alone(part))
    )
    return figures
