"""What the database is told of windows: those of the accounts that ask, each kind once, bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.unit.pricing import builders as make

from pricing.adapters import hold_windows
from pricing.adapters.hold_ops import Releasing, Reserving
from pricing.adapters.hold_windows import Columns, Windows
from pricing.domain import windows
from pricing.domain.holds import Ask, hold_id_of
from pricing.domain.state import Limit

DAY_US = 86_400_000_000
NOBODY = Columns([], [], [], [])


def limits(*kinds: tuple[str, str]) -> Sequence[Limit]:
    return [Limit(0, f"l{n}", "a", "", "", span, zone, 5) for n, (span, zone) in enumerate(kinds)]


async def asked(account_id: str, at_us: int, *, grows: bool = False) -> Reserving:
    hold_id = hold_id_of(account_id, f"e{at_us}")
    return Reserving(Ask(hold_id, account_id, "", "", 1, at_us), "USD", 1, grows)


async def test_each_kind_of_window_is_told_once_by_its_first_ask() -> None:
    known = Windows()
    known.learn("acme", limits((windows.DAY, "UTC"), (windows.DAY, "UTC")))
    known.learn("birch", limits((windows.DAY, "UTC"), (windows.EVER, "")))
    batch = [await asked("acme", make.T0_US), await asked("birch", make.T0_US + DAY_US)]
    told = known.columns(batch)
    rows = set(zip(*told, strict=True))
    assert rows == {
        (windows.DAY, "UTC", make.T0_US, make.T0_US + DAY_US),
        (windows.EVER, "", *windows.stretch_of(windows.EVER, "", 0)),  # type: ignore[misc]
    }
    # The next day's ask gets the next day's window, whatever was found before.
    later = known.columns([await asked("acme", make.T0_US + DAY_US)])
    assert list(later.starts_us) == [make.T0_US + DAY_US]


async def test_one_that_grows_guesses_its_window_where_no_other_knows_one() -> None:
    known = Windows()
    known.learn("acme", limits((windows.DAY, "UTC")))
    grown = await asked("acme", make.T0_US, grows=True)
    assert list(known.columns([grown]).starts_us) == [make.T0_US]
    sure = await asked("acme", make.T0_US + DAY_US)
    assert list(known.columns([grown, sure]).starts_us) == [make.T0_US + DAY_US]


async def test_nothing_is_told_of_who_has_no_limit_or_asks_for_none() -> None:
    known = Windows()
    known.learn("acme", limits((windows.DAY, "UTC")))
    released = Releasing("acme", hold_id_of("acme", "e"))
    assert known.columns([released, await asked("cedar", make.T0_US)]) == NOBODY
    # Limits that are gone are forgotten.
    known.learn("acme", ())
    assert known.columns([await asked("acme", make.T0_US)]) == NOBODY


async def test_the_accounts_learnt_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_windows, "MAX_ACCOUNTS", 2)
    known = Windows()
    for account_id in ("a", "b", "a", "c"):
        known.learn(account_id, limits((windows.DAY, "UTC")))
    told = [known.columns([await asked(name, make.T0_US)]) != NOBODY for name in "abc"]
    assert told == [True, False, True]
