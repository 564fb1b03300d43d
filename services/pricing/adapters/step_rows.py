"""A step's rows, made before its transaction: what depends on nothing in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pricing.adapters import bill_store, credit_store, event_rows
from pricing.adapters.together import Together, columns, numbers
from pricing.adapters.turns import let_others
from pricing.domain import books
from pricing.domain.text import escaped

if TYPE_CHECKING:
    from pricing.adapters.store import Step


class Gathered(NamedTuple):
    """What a step writes that depends on nothing in the database: made before its transaction."""

    together: Together
    """Most of it, as one statement."""
    copied: Sequence[bytes]
    """Events that are too many for it: what COPY takes, in pieces."""


class Known:
    """What the steps of one projector wrote so far."""

    def __init__(self) -> None:
        self.uses = credit_store.known_uses()
        self.bills = bill_store.known_bills()


async def gather(step: Step, known: Known) -> Gathered:
    """Make the rows of a step, which must be written after those of the steps before it.

    Between its parts the step before it goes on being written.
    """
    together = Together()
    copied = _write_events(together, step)
    await let_others()
    _write_engines(together, step)
    _write_balances(together, step)
    _write_postings(together, step)
    _write_totals(together, step)
    await let_others()
    bill_store.write(together, (effects for _, effects in step.effects), known.bills)
    await let_others()
    credit_store.write(together, step, known.uses)
    return Gathered(together, copied)


_COPIED_FROM: Final = 2_000
"""From so many rows on, COPY's own round trips cost less than it saves: 1 to 2 us a row."""


def _write_events(together: Together, step: Step) -> Sequence[bytes]:
    """Gives what is to be copied instead."""
    if step.events >= _COPIED_FROM:
        return event_rows.whole((log, effects.applied.placed()) for log, effects in step.effects)
    places = [
        (identity, log, position)
        for log, effects in step.effects
        for position, identity in effects.applied.places()
    ]
    if places:
        together.add(
            "INSERT INTO usage_event SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[])",
            *columns(places),
        )
    return ()


def _write_engines(together: Together, step: Step) -> None:
    if step.engines:
        together.add(
            "INSERT INTO engine SELECT * FROM"
            " unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[])"
            " ON CONFLICT (engine_id) DO UPDATE"
            " SET event_tokens = engine.event_tokens + excluded.event_tokens,"
            " generation_tokens = greatest(engine.generation_tokens, excluded.generation_tokens),"
            " waste_tokens = greatest(engine.waste_tokens, excluded.waste_tokens),"
            " final = engine.final OR excluded.final",
            *columns(
                (
                    escaped(engine_id),
                    engine.event_tokens,
                    engine.generation_tokens,
                    engine.waste_tokens,
                    engine.final,
                )
                for engine_id, engine in sorted(step.engines.items())
            ),
        )


def _write_balances(together: Together, step: Step) -> None:
    if not step.balances:
        return
    changes = sorted(step.balances.items())
    together.add(
        "INSERT INTO balance SELECT * FROM unnest($1::text[], $2::text[], $3::text[]::numeric[])"
        " ON CONFLICT (ledger_account, currency)"
        " DO UPDATE SET amount_pico = balance.amount_pico + excluded.amount_pico",
        [account for (account, _), _ in changes],
        [currency for (_, currency), _ in changes],
        numbers(amount_pico for _, amount_pico in changes),
    )


def _customer_of(posting: books.Posting) -> str:
    """The account a posting is listed under: the customer's side of it."""
    prefix = books.customer("")
    side = posting.debit if posting.debit.startswith(prefix) else posting.credit
    return side.removeprefix(prefix)


_POSTINGS = """
INSERT INTO posting (account_id, kind, debit_account, credit_account, currency, amount_pico, log,
    from_position, to_position, card_id, card_version, card_hash, line_id, quantity,
    rated_at_control, rule, period)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
    $6::text[]::numeric[], $7::text[], $8::bigint[], $9::bigint[], $10::text[], $11::int[],
    $12::bytea[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::text[])
"""


def _write_postings(together: Together, step: Step) -> None:
    postings = [posting for _, effects in step.effects for posting in effects.postings]
    if postings:
        # A posting's fields stand in the columns' order, after the account it is listed under.
        kind, debit, credit, currency, amounts, *rest = columns(postings)
        accounts = [_customer_of(posting) for posting in postings]
        amounts = numbers(amounts)
        together.add(_POSTINGS, accounts, kind, debit, credit, currency, amounts, *rest)


def _write_totals(together: Together, step: Step) -> None:
    if not step.totals:
        return
    together.add(
        "INSERT INTO account_usage SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[],"
        " $4::bigint[], $5::bigint[], $6::bigint[])"
        " ON CONFLICT (account_id) DO UPDATE SET"
        " requests = account_usage.requests + excluded.requests,"
        " input_tokens = account_usage.input_tokens + excluded.input_tokens,"
        " cached_tokens = account_usage.cached_tokens + excluded.cached_tokens,"
        " output_tokens = account_usage.output_tokens + excluded.output_tokens,"
        " cache_write_tokens = account_usage.cache_write_tokens + excluded.cache_write_tokens",
        *columns(
            (
                escaped(account_id),
                totals.requests,
                totals.input_tokens,
                totals.cached_tokens,
                totals.output_tokens,
                totals.cache_write_tokens,
            )
            for account_id, totals in sorted(step.totals.items())
        ),
    )
