"""What was served (ListBalances, in protobuf's JSON), held against the recomputed books."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import json_format

from audit.findings import Finding
from audit.layout import SERVED_FILE
from kernel.money import format_pico
from pricing.domain import books
from pricing.domain.replay import Replay
from pricing.domain.state import Totals
from tollbook.pricing.v1.pricing_pb2 import AccountBalance, ListBalancesResponse


def read_served(data: bytes | None) -> ListBalancesResponse | Finding:
    """Read served.json."""
    if data is None:
        return Finding(SERVED_FILE, "there is no such file: balances were not compared")
    try:
        return json_format.Parse(data.decode(), ListBalancesResponse())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        return Finding(SERVED_FILE, f"it is not ListBalances' answer as JSON: {error}")


def positions_of(served: ListBalancesResponse) -> dict[str, int]:
    """The positions that the balances are said to be true at."""
    return {at.log: at.size for at in served.positions}


def compare(served: ListBalancesResponse, replay: Replay) -> Iterator[Finding]:
    """Every account's balance, and the digest, against the books at the same positions."""
    accounts = replay.projection.control.accounts
    suspense = replay.suspense()
    seen: set[str] = set()
    for balance in served.balances:
        account = accounts.get(balance.account_id)
        place = f"{SERVED_FILE} account {balance.account_id!r}"
        if account is None or balance.account_id in seen:
            yield Finding(
                place,
                "the control log has no such account" if account is None else "it stands twice",
            )
            continue
        seen.add(balance.account_id)
        for what in _differences(
            balance, account.currency, replay, suspense.get(balance.account_id, 0)
        ):
            yield Finding(place, what)
    for account_id in accounts.keys() - seen:
        yield Finding(f"{SERVED_FILE} account {account_id!r}", "no balance was served")
    if served.balances_digest != replay.digest():
        yield Finding(
            SERVED_FILE,
            f"the digest {served.balances_digest.hex()} was served, the logs give"
            f" {replay.digest().hex()}",
        )


def _differences(
    served: AccountBalance, currency: str, replay: Replay, suspense: int
) -> Iterator[str]:
    account_id = served.account_id
    amounts = (
        ("available", served.available, replay.balance(books.customer(account_id), currency)),
        ("granted", served.granted, -replay.balance(books.granted(account_id), currency)),
        ("charged", served.charged, replay.balance(books.revenue(account_id), currency)),
    )
    for name, amount, pico in amounts:
        if (amount.currency, amount.amount_pico) != (currency, str(pico)):
            yield (
                f"{name} {amount.amount_pico} pico {amount.currency} was served, the logs give"
                f" {pico} pico {currency} ({format_pico(pico)})"
            )
    totals = replay.totals.get(account_id, Totals())
    counts = (
        ("suspense_entries", served.suspense_entries, suspense),
        ("requests", served.usage.requests, totals.requests),
        ("input_tokens", served.usage.input_tokens, totals.input_tokens),
        ("cached_tokens", served.usage.cached_tokens, totals.cached_tokens),
        ("output_tokens", served.usage.output_tokens, totals.output_tokens),
        ("cache_write_tokens", served.usage.cache_write_tokens, totals.cache_write_tokens),
    )
    for name, said, computed in counts:
        if said != computed:
            yield f"{name} {said} was served, the logs give {computed}"
