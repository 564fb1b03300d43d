"""The law of the queue before the engine: one account's flood is not in another's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inference.scripted import bench, order

from inference.app.gate import Gate
from inference.app.order import Caller
from inference.app.reader import Reader
from inference.domain.fairness import FairQueue, Ticket
from inference.domain.outcome import End
from kernel import errors

COSTS = st.integers(1, 5_000)


def admitted(queue: FairQueue) -> list[Ticket]:
    """All that go now."""
    found = []
    while (ticket := queue.pop()) is not None:
        found.append(ticket)
    return found


@given(flood=st.integers(1, 300), cost=COSTS, own=COSTS, places=st.integers(1, 40))
def test_the_length_of_a_flood_does_not_delay_who_comes_after_it(
    flood: int, cost: int, own: int, places: int
) -> None:
    """Two of the flood at the most go before it: the one whose turn it was, and one by a tie."""
    queue = FairQueue(places)
    for _ in range(flood):
        queue.push("flood", 1, cost)
    running = admitted(queue)
    mine = queue.push("quiet", 1, own)
    before = 0
    while mine not in (now := admitted(queue)):
        before += len(now)
        running += now
        queue.leave(running.pop(0))
    before += now.index(mine)
    assert before <= 1


@given(
    costs=st.lists(st.tuples(st.sampled_from("abc"), COSTS), min_size=30, max_size=200),
    places=st.integers(1, 4),
)
def test_accounts_that_always_wait_get_the_same_to_within_a_request(
    costs: list[tuple[str, int]], places: int
) -> None:
    """Goyal's bound for equal weights: the difference is no more than a request of each."""
    queue = FairQueue(places)
    left: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for account, cost in costs:
        queue.push(account, 1, cost)
        left[account] += 1
        most[account] = max(most[account], cost)
    served: Counter[str] = Counter()
    while min(left.get(account, 0) for account in most) > 0:
        ticket = queue.pop()
        assert ticket is not None
        served[ticket.account_id] += ticket.cost
        left[ticket.account_id] -= 1
        queue.leave(ticket)
        for one in most:
            for other in most:
                assert served[one] - served[other] <= most[one] + most[other]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["push", "leave", "withdraw"]), st.integers(0, 5), st.integers(1, 9)
        ),
        max_size=80,
    ),
    places=st.integers(1, 12),
)
def test_places_are_never_overdrawn_and_never_idle_without_reason(
    steps: list[tuple[str, int, int]], places: int
) -> None:
    queue = FairQueue(places)
    waiting: list[Ticket] = []
    running: list[Ticket] = []
    for step, who, amount in steps:
        if step == "push":
            waiting.append(queue.push(f"a{who}", amount, amount * 7))
        elif step == "leave" and running:
            queue.leave(running.pop(who % len(running)))
        elif step == "withdraw" and waiting:
            queue.withdraw(waiting.pop(who % len(waiting)))
        for ticket in admitted(queue):
            waiting.remove(ticket)
            running.append(ticket)
        taken: Counter[str] = Counter()
        for ticket in running:
            taken[ticket.account_id] += ticket.places
        assert taken.total() == places - queue.free <= places
        assert all(count <= queue.account_places for count in taken.values())
        assert queue.waiting == len(waiting)
        # Whoever waits is kept by its own account's bound or by a lack of places.
        if queue.free == places:
            assert not waiting
    for ticket in running:
        queue.leave(ticket)
    while waiting:
        now = admitted(queue)
        assert now, "who waits at an empty engine goes"
        for ticket in now:
            waiting.remove(ticket)
            queue.leave(ticket)


def test_some_places_are_kept_from_an_account_that_has_all_others() -> None:
    queue = FairQueue(16)
    for _ in range(100):
        queue.push("flood", 1, 10)
    assert len(admitted(queue)) == queue.account_places == 14
    mine = queue.push("quiet", 1, 10)
    assert queue.pop() is mine


def test_what_is_large_is_not_overtaken_for_ever() -> None:
    queue = FairQueue(8)
    running = [queue.push("a", 1, 10) for _ in range(7)]
    assert admitted(queue) == running
    large = queue.push("b", 7, 10)
    small = queue.push("c", 1, 10)
    for ticket in running[:-1]:
        assert queue.pop() is None
        queue.leave(ticket)
    assert admitted(queue) == [large]
    queue.leave(running[-1])
    assert admitted(queue) == [small]


@pytest.mark.parametrize(("places", "cost"), [(0, 1), (1, 0)])
def test_a_request_of_nothing_is_refused(places: int, cost: int) -> None:
    with pytest.raises(ValueError, match="places"):
        FairQueue(4).push("a", places, cost)


async def test_who_leaves_the_queue_wakes_and_takes_no_place() -> None:
    gate = Gate(1)
    first, second, third = (gate.ask("a", 1, 10) for _ in range(3))
    waiting = asyncio.create_task(gate.turn(second))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.leave(second)
    await waiting
    gate.leave(second)
    assert gate.waiting == 1
    gate.leave(first)
    await gate.turn(third)
    assert gate.waiting == 0


async def test_a_request_waits_for_its_turn_and_leaves_it_when_its_caller_goes(
    tmp_path: Path,
) -> None:
    made = bench(tmp_path, places=1)
    readers = {}
    for name in ("first", "second", "third"):
        found = made.requests.find(Caller("acct", "p", "k"), order(name))
        assert isinstance(found, Reader)
        readers[name] = found
    run = await made.engine.next_run()
    assert run.job.engine_request_id.startswith("first:")
    # No hold is taken for what waits, and none for what leaves the queue.
    assert [asked.event_id for asked in made.credit.asked] == ["first"]
    readers["second"].leave(End.CALLER_LEFT)
    made.engine.finish(run)
    readers["first"].leave(End.CALLER_LEFT)
    run = await made.engine.next_run()
    assert run.job.engine_request_id.startswith("third:")
    assert [asked.event_id for asked in made.credit.asked] == ["first", "third"]
    made.engine.finish(run)
    readers["third"].leave(End.CALLER_LEFT)
    await made.requests.settled()
    await made.spool.close()


async def test_no_account_fills_the_house(tmp_path: Path) -> None:
    made = bench(tmp_path, max_requests=3, max_account_requests=2)
    flood, quiet = Caller("flood", "p", "k"), Caller("quiet", "p", "k")
    readers = [made.requests.find(flood, order(name)) for name in ("a", "b")]
    with pytest.raises(errors.Unavailable) as caught:
        made.requests.find(flood, order("c"))
    assert caught.value.reason == "ACCOUNT_QUEUE_FULL"
    readers.append(made.requests.find(quiet, order("c")))
    with pytest.raises(errors.Unavailable) as caught:
        made.requests.find(quiet, order("d"))
    assert caught.value.reason == "QUEUE_FULL"
    for reader in readers:
        assert isinstance(reader, Reader)
        reader.leave(End.CALLER_LEFT)
    await made.requests.settled()
    again = made.requests.find(flood, order("e"))
    assert isinstance(again, Reader)
    again.leave(End.CALLER_LEFT)
    await made.requests.settled()
    await made.spool.close()


# What yields ----------------------------------------------------------------------------


async def test_what_yields_waits_while_anybody_else_does() -> None:
    gate = Gate(8)
    line = gate.ask("batch", 1, 10, yields=True)
    await asyncio.wait_for(gate.turn(line), 60)
    # Of eight places seven are an account's; one wants two and has to wait for them.
    others = [gate.ask("a", 1, 10) for _ in range(6)]
    large = gate.ask("b", 2, 10)
    turn = asyncio.create_task(gate.turn(large))
    later = gate.ask("other batch", 1, 10, yields=True)
    waiting = asyncio.create_task(gate.turn(later))
    await asyncio.sleep(0)
    assert not turn.done()
    gate.leave(line)
    await asyncio.wait_for(turn, 60)
    # A place is free again, and nobody else waits: but not before.
    assert not waiting.done()
    gate.leave(others[0])
    await asyncio.wait_for(waiting, 60)
    assert gate.waiting == 0


@given(
    places=st.integers(1, 40),
    asked=st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=80),
)
def test_what_yields_has_a_part_of_the_places_and_gives_all_back(
    places: int, asked: list[tuple[bool, int]]
) -> None:
    async def run() -> None:
        gate = Gate(places)
        turns: dict[Ticket, tuple[bool, asyncio.Task[None]]] = {}

        async def going() -> list[Ticket]:
            await asyncio.sleep(0)
            now = [ticket for ticket, (_, turn) in turns.items() if turn.done()]
            assert sum(one.places for one in now) <= places
            assert sum(one.places for one in now if turns[one][0]) <= max(1, places // 4)
            return now

        def leave(ticket: Ticket) -> None:
            gate.leave(ticket)
            del turns[ticket]

        for yields, wanted in asked:
            ticket = gate.ask(f"account {wanted}", wanted, 10, yields=yields)
            turns[ticket] = (yields, asyncio.create_task(gate.turn(ticket)))
            now = await going()
            if sum(one.places for one in now) == places:
                leave(now[0])
        while turns:
            now = await going()
            assert now, "what is left never goes"
            leave(now[0])
        assert gate.waiting == 0

    asyncio.run(run())
