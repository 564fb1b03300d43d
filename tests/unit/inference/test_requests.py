"""The registry's own rules: what it says before it serves, and what may be counted at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.inference.scripted import CALLER, bench, order

from inference.app import requests as requests_module
from inference.app.order import Caller
from inference.app.shelf import Shelf
from kernel import errors


async def test_a_service_that_starts_or_stops_names_no_model_as_unknown(tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.requests.admit(Shelf({}))
    made.requests.close(errors.Unavailable("not yet", reason="STARTING"))
    for ask in (
        lambda: made.requests.find(CALLER, order()),
        lambda: made.requests.model(CALLER, "tiny"),
    ):
        with pytest.raises(errors.Unavailable) as caught:
            ask()
        assert caught.value.reason == "STARTING"
    with pytest.raises(errors.Unavailable):
        await made.requests.count(CALLER, order())
    await made.spool.close()


async def test_counts_at_once_are_bounded_for_an_account_and_for_all(tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.engine.rendering.clear()
    accounts = [Caller(f"acct-{number}", "", "") for number in range(5)]
    own = requests_module.MAX_ACCOUNT_COUNTS
    assert 4 * own == requests_module.MAX_COUNTS
    counting = []
    for account in accounts[:4]:
        counting += [asyncio.create_task(made.requests.count(account, order())) for _ in range(own)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable, match="of this account"):
            await made.requests.count(account, order())
    # One that has none in the queue waits all the same while all places are taken.
    with pytest.raises(errors.Unavailable) as caught:
        await made.requests.count(accounts[4], order())
    assert caught.value.reason == "QUEUE_FULL"
    made.engine.rendering.set()
    assert await asyncio.gather(*counting) == [8] * len(counting)
    with pytest.raises(errors.InvalidArgument):
        await made.requests.count(accounts[0], order(prompt=64))
    assert await made.requests.count(accounts[0], order(prompt=9)) == 9
    await made.spool.close()
