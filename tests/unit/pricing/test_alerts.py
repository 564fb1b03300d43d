"""Alerts: when they fire, what the file may say, and how what is sent is signed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.errors import InvalidArgument
from pricing.adapters import alert_rules, webhooks
from pricing.domain import alerting, windows

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
GOOD = f"""
webhooks:
  - {{name: ops, url: "https://ops.example/hook", secret: {SECRET}}}
rules:
  - {{id: low, kind: balance_below, amount: "5.00", accounts: [acme]}}
  - {{id: day, kind: spent, window: day, time_zone: Europe/Berlin, amount: "100"}}
  - {{id: fast, kind: burn_rate, hours: 24}}
  - {{id: jump, kind: spike, window: hour, times: 10, amount: "1.00"}}
  - {{id: unpriced, kind: suspense, entries: 1}}
"""


def test_a_signature_is_the_published_one() -> None:
    """The example of Standard Webhooks' own libraries."""
    key = alert_rules.secret_of(SECRET)
    made = webhooks.signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_file_is_read_and_says_whom_a_rule_watches(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(GOOD)
    alerts = alert_rules.read(str(path))
    low, day, fast = alerts.rules[:3]
    assert low.amount == 5 * 10**12
    assert (low.covers("acme"), low.covers("bolt"), day.covers("bolt")) == (True, False, True)
    assert (low.span, day.span, fast.span) == (None, "day", "hour")
    assert SECRET not in repr(alerts)
    assert alert_rules.read("") == alert_rules.NONE


def test_the_documents_example_can_be_read(tmp_path: Path) -> None:
    text = Path("docs/accounts.md").read_text()
    example = text[text.index("```\nwebhooks:") + 4 :].partition("```")[0]
    path = tmp_path / "alerts.yaml"
    path.write_text(example)
    assert {rule.kind for rule in alert_rules.read(str(path)).rules} == {
        "balance_below",
        "spent",
        "burn_rate",
        "spike",
        "suspense",
    }


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"5.00"', "5.00", "an amount stands in quotes"),
        ('"5.00"', '"-1"', "not below 0"),
        ("hours: 24", 'hours: 24, amount: "1"', "burn_rate has hours and none of the others"),
        ("window: hour", "window: month", "the window of a spike is one of"),
        ("id: fast", "id: low", "two rules have the same name"),
        ("Europe/Berlin", "Europe/Atlantis", "no time zone"),
        ("https://ops", "file://ops", "a url is http:// or https://"),
        ("https://ops", "https://a:b@ops", "without a password"),
        (SECRET, "whsec_AAAA", "base64 of 24 to 64 bytes"),
        ("kind: spent", "kind: sent", "rules.1.kind"),
        ("rules:", "rule:", "rule: Extra inputs are not permitted"),
        ("webhooks:", "webhooks: [", "while parsing"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_without_its_secret(
    tmp_path: Path, old: str, new: str, why: str
) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InvalidArgument) as refused:
        alert_rules.read(str(path))
    assert why in str(refused.value)
    assert "MfKQ9r8G" not in str(refused.value)


@given(st.lists(st.booleans(), max_size=40))
def test_a_level_fires_once_for_each_crossing(looks: list[bool]) -> None:
    level, fired = alerting.NEW, 0
    for is_over in looks:
        level, fires = alerting.crossed(level, is_over)
        fired += fires
    # As often as it is bad right after it was good.
    assert fired == sum(now and not before for before, now in itertools.pairwise(looks))
    assert level.crossings == fired


@pytest.mark.parametrize(
    ("spent", "earlier", "is_spike"),
    [
        (10, [24], True),
        (9, [24], False),
        (10, [1] * 24, True),
        (9, [1] * 24, False),
        (1_000, [], False),
        (1_000, [0, 0], False),
    ],
)
def test_a_spike_is_ten_times_the_mean_and_at_least_so_much(
    spent: int, earlier: list[int], is_spike: bool
) -> None:
    assert alerting.is_spike(spent, earlier, 10, 1) == is_spike
    assert not alerting.is_spike(spent, earlier, 10, spent + 1)


def test_credit_that_does_not_last_is_fast() -> None:
    assert alerting.is_fast(23, 1, 24)
    assert not alerting.is_fast(24, 1, 24)
    assert not alerting.is_fast(-5, 0, 24)


def test_days_before_a_day_are_days_also_where_clocks_change() -> None:
    start = windows.window_start_us(
        "day", "Europe/Berlin", windows.instant_us(datetime(2026, 3, 30, 12, tzinfo=UTC))
    )
    hours = 3_600 * 10**6
    before = windows.windows_before("day", "Europe/Berlin", start, 2)
    assert [start - before[0], before[0] - before[1]] == [23 * hours, 24 * hours]


@given(st.integers(1, 60), st.floats(0, 1))
def test_a_retry_waits_longer_each_time_up_to_an_hour(attempts: int, spread: float) -> None:
    wait = webhooks.retry_s(attempts, spread)
    assert webhooks.FIRST_RETRY_S / 2 <= wait <= webhooks.LONGEST_RETRY_S
    assert webhooks.retry_s(attempts + 2, 0) >= min(wait, webhooks.LONGEST_RETRY_S / 2)


def test_an_alerts_id_is_of_its_crossing_alone() -> None:
    assert alerting.alert_id("r", "a", "1") == alerting.alert_id("r", "a", "1")
    assert len({alerting.alert_id(*of) for of in (("r", "a", "1"), ("ra", "", "1"))}) == 2
