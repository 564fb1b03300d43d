"""What would be charged: previews and re-ratings against books that knew the prices all along."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.pricing import builders
from tests.unit.pricing.builders import T0_US

from kernel.clock import timestamp_of
from pricing.domain import books
from pricing.domain.card_review import review
from pricing.domain.card_yaml import parse_card
from pricing.domain.events import read_event
from pricing.domain.preview import Preview
from pricing.domain.replay import Replay
from pricing.domain.rerating import batch_digest, batches
from pricing.domain.what_if import Corrections, Rerating
from tollbook.pricing.v1 import card_records_pb2 as records

ACCOUNTS = ("acme", "globex")
MODELS = ("tiny", "large")
HOUR_US = 3_600_000_000


class Use(NamedTuple):
    """An event."""

    account: str
    model: str
    plain: int
    output: int
    hours: int


USES = st.lists(
    st.builds(
        Use,
        st.sampled_from(ACCOUNTS),
        st.sampled_from(MODELS),
        st.integers(0, 50),
        st.integers(0, 50),
        st.integers(0, 9),
    ),
    max_size=25,
)
PRICES = st.tuples(st.integers(0, 9), st.integers(0, 9))


def yaml(price_in: int, price_out: int, models: tuple[str, ...] = MODELS) -> str:
    lines = "".join(
        f"  - {{id: {model}-{way}, match: {{model: {model}, direction: {way}}}, price: {price}}}\n"
        for model in models
        for way, price in (("in", price_in), ("out", price_out))
    )
    return f"card: c\ncurrency: USD\neffective_from: 2026-01-01T00:00:00Z\nlines:\n{lines}"


def leaf(position: int, use: Use) -> bytes:
    return builders.event(
        position,
        account_id=use.account,
        model=use.model,
        plain=use.plain,
        output=use.output,
        time_us=T0_US + use.hours * HOUR_US,
    )


class Book:
    """A control log and one usage log, and what they come to."""

    def __init__(self) -> None:
        self.replay = Replay()
        self.runs: list[tuple[int, int, list[bytes]]] = []
        for name in ACCOUNTS:
            self.control(builders.account(self.pin, name))

    @property
    def pin(self) -> int:
        return self.replay.sizes.get("control", 0)

    @property
    def size(self) -> int:
        return self.replay.sizes.get("usage-0", 0)

    def control(self, raw: bytes) -> None:
        effects = self.replay.apply_control(self.pin, raw)
        assert effects.ignored == []

    def publish(self, text: str, version: int) -> None:
        self.control(builders.card(self.pin, text, version))

    def use(self, uses: list[Use]) -> None:
        first = self.size
        data = [leaf(first + index, use) for index, use in enumerate(uses)]
        self.replay.apply_usage("usage-0", first, self.pin, data)
        self.runs.append((first, self.pin, data))

    def charged(self, account: str) -> int:
        return self.replay.balance(books.revenue(account), "USD")

    def rerating(
        self, from_hours: int, to_hours: int, name: str = "r"
    ) -> tuple[records.ReratePlanned, Rerating]:
        plan = records.ReratePlanned(
            rerate_id=name,
            card_id="c",
            event_from=timestamp_of(T0_US + from_hours * HOUR_US),
            event_to=timestamp_of(T0_US + to_hours * HOUR_US),
            control_size=self.pin,
            logs=[records.LogSize(log="usage-0", size=self.size)],
        )
        rerating = Rerating(self.replay.projection.control, plan)
        for first, pin, data in self.runs:
            rerating.add("usage-0", first, pin, data)
        return plan, rerating

    def post(self, plan: records.ReratePlanned, rerating: Rerating) -> None:
        parts = batches(rerating.difference.corrections())
        plan.corrections = sum(len(part) for part in parts)
        plan.batch_digests.extend(batch_digest(part) for part in parts)
        self.control(builders.control(self.pin, rerate_planned=plan))
        for number, part in enumerate(parts):
            made = records.CorrectionsPosted(
                rerate_id=plan.rerate_id, batch=number, corrections=part
            )
            self.control(builders.control(self.pin, corrections_posted=made))


def cost(uses: list[Use], prices: tuple[int, int], account: str) -> int:
    """By hand, in pico-dollars."""
    return sum(
        (use.plain * prices[0] + use.output * prices[1]) * 10**12
        for use in uses
        if use.account == account
    )


@given(USES, USES, PRICES, PRICES, PRICES)
def test_a_preview_is_what_the_draft_would_have_charged(
    first: list[Use],
    second: list[Use],
    old: tuple[int, int],
    newer: tuple[int, int],
    draft: tuple[int, int],
) -> None:
    book = Book()
    book.publish(yaml(*old), 1)
    book.use(first)
    book.publish(yaml(*newer), 2)
    book.use(second)
    preview = Preview(book.replay.projection.control, book.pin, parse_card(yaml(*draft)))
    for start, pin, data in book.runs:
        preview.add("usage-0", start, pin, data)
    assert preview.events == len(first) + len(second)
    by_account = {one.name: one for one in preview.accounts()}
    for account in ACCOUNTS:
        found = by_account.get(account)
        before = cost(first, old, account) + cost(second, newer, account)
        assert (found.before_pico if found else 0) == before
        assert (found.after_pico if found else 0) == cost(first + second, draft, account)
    models = {one.name: one.after_pico for one in preview.models()}
    for model in MODELS:
        mine = [use for use in first + second if use.model == model]
        assert models.get(model, 0) == sum(cost(mine, draft, account) for account in ACCOUNTS)
    used = {
        f"{use.model}-{way}"
        for use in first + second
        for way, count in (("in", use.plain), ("out", use.output))
        if count
    }
    assert (
        set(preview.unmatched_lines()) == {f"{m}-{w}" for m in MODELS for w in ("in", "out")} - used
    )
    assert preview.newly_unpriced() == []


@given(USES, PRICES)
def test_a_preview_counts_what_would_have_no_price(
    uses: list[Use], prices: tuple[int, int]
) -> None:
    book = Book()
    book.publish(yaml(*prices), 1)
    book.use(uses)
    draft = parse_card(yaml(*prices, models=("tiny",)))
    preview = Preview(book.replay.projection.control, book.pin, draft)
    for start, pin, data in book.runs:
        preview.add("usage-0", start, pin, data)
    found = {(one.model, one.leaf): one.entries for one in preview.newly_unpriced()}
    large = [use for use in uses if use.model == "large"]
    expected = {
        ("large", "token in"): sum(use.plain > 0 for use in large),
        ("large", "token out"): sum(use.output > 0 for use in large),
    }
    assert found == {key: entries for key, entries in expected.items() if entries}


@given(USES, USES, PRICES, PRICES, PRICES, st.integers(0, 9), st.integers(1, 9))
def test_a_repair_comes_to_what_the_right_price_would_have_charged(
    first: list[Use],
    second: list[Use],
    old: tuple[int, int],
    wrong: tuple[int, int],
    right: tuple[int, int],
    from_hours: int,
    hours: int,
) -> None:
    book = Book()
    book.publish(yaml(*old), 1)
    book.use(first)
    book.publish(yaml(*wrong), 2)
    book.use(second)
    book.publish(yaml(*right), 3)
    to_hours = from_hours + hours
    plan, rerating = book.rerating(from_hours, to_hours)
    originals = {account: book.charged(account) for account in ACCOUNTS}
    book.post(plan, rerating)

    def covered(use: Use) -> bool:
        return from_hours <= use.hours < to_hours

    for account in ACCOUNTS:
        inside = [use for use in first + second if covered(use)]
        expected = (
            cost(inside, right, account)
            + cost([use for use in first if not covered(use)], old, account)
            + cost([use for use in second if not covered(use)], wrong, account)
        )
        assert book.charged(account) == expected
        assert originals[account] == cost(first, old, account) + cost(second, wrong, account)
    assert sum(book.replay.balances.values()) == 0
    # Receipts, corrected, come to the books.
    corrections = Corrections(book.replay.projection.control)
    total = dict.fromkeys(ACCOUNTS, 0)
    for start, pin, data in book.runs:
        for position, raw in enumerate(data, start):
            event = read_event(position, raw)
            parts = book.replay.projection.receipt(event, pin)
            amount = sum(part.amount_pico for part, _ in parts)
            for _, after in corrections.of("usage-0", event, pin):
                amount = after
            total[event.account_id] += amount
    assert total == {account: book.charged(account) for account in ACCOUNTS}
    _, again = book.rerating(from_hours, to_hours, "again")
    assert again.difference.corrections() == []


@given(USES, PRICES, PRICES)
def test_what_waited_and_was_released_is_set_right_too(
    uses: list[Use], wrong: tuple[int, int], right: tuple[int, int]
) -> None:
    book = Book()
    book.use(uses)
    book.publish(yaml(*wrong), 1)
    book.publish(yaml(*right), 2)
    plan, rerating = book.rerating(0, 10)
    assert rerating.newly_unpriced() == 0
    book.post(plan, rerating)
    for account in ACCOUNTS:
        assert book.charged(account) == cost(uses, right, account)


def found(draft: str, *others: str) -> dict[str, list[str]]:
    """Reasons and messages of a review beside published cards."""
    book = Book()
    for text in others:
        book.publish(text, book.replay.projection.control.cards.newest_version("c") + 1)
    entries = book.replay.projection.control.cards.entries(book.pin)
    answer: dict[str, list[str]] = {}
    for one in review(parse_card(draft), entries, T0_US, lambda line_id: (1, 1)):
        answer.setdefault(one.reason, []).append(one.message)
    return answer


def test_a_review_finds_jumps_typos_gaps_and_overlaps() -> None:
    base = yaml(1, 2).replace("price: ", "per: 1000000, price: ")
    assert "TENFOLD" not in found(base.replace("price: 2", "price: 19"), base)
    assert "TENFOLD" in found(base.replace("price: 2", "price: 20"), base)
    assert "TENFOLD" in found(base.replace("price: 2", "price: 0.2"), base)
    assert "UNIT_TYPO" in found(base.replace("per: 1000000, price: 2", "price: 2"), base)
    assert "UNIT_TYPO" in found(base.replace("per: 1000000, price: 2", "per: 1000, price: 2"), base)
    # A card of which nothing is known yet: by what tokens cost at all.
    assert "UNIT_TYPO" in found(yaml(1, 2))
    assert "UNIT_TYPO" not in found(base)
    assert "FREE" in found(base.replace("price: 2", "price: 0"), base)
    without = yaml(1, 2, ("tiny",)).replace("price: ", "per: 1000000, price: ")
    assert any("large" in message for message in found(without, base)["GAP"])
    assert "OVERLAP" not in found(base, base)
    twin = base.replace("card: c", "card: d")
    assert any("'priority'" in message for message in found(twin, base)["AMBIGUOUS"])
    behind = twin.replace("currency: USD", "currency: USD\npriority: -1")
    assert any("not reached" in message for message in found(behind, base)["OVERLAP"])
    ended = base.replace("lines:", "effective_to: 2026-01-02T00:00:00Z\nlines:")
    late = base.replace("2026-01-01", "2026-01-03")
    assert "TIME_GAP" in found(late, ended)
    assert "TIME_GAP" not in found(late, base)
