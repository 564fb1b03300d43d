"""Readers and operators at a ledger that real workers fill: entries, filters, streams, owners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pyarrow as pa
import pytest
from click.testing import CliRunner
from tests.integration.ledger_server import LedgerServer, ledger_server
from tests.integration.ledger_world import WAIT_S, LedgerWorld, ledger_world, until
from tests.unit.ledger import builders

from kernel import leaf as leaf_format
from kernel import merkle
from ledger.adapters.gaps import HEALTH_NAME
from ledger.domain.matching import LeafFilter
from tollbook.cli.root import root
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.stack import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(ground: Stack, tmp_path: Path) -> AsyncIterator[LedgerWorld]:
    async with ledger_world(ground, tmp_path, partitions=2) as made:
        yield made


async def tollbook(server: LedgerServer, *words: str) -> str:
    """What a command prints."""
    runner = CliRunner(env={"TOLLBOOK_LEDGER_ADDRESS": server.address})
    done = await asyncio.to_thread(runner.invoke, root, ["ledger", *words])
    assert done.exit_code == 0, done.output
    return done.output


async def arrow(server: LedgerServer, **request: Any) -> tuple[pa.Table, int]:
    """The table of a ReadArrow call, and how far it reaches."""
    pieces: list[bytes] = []
    position = request.get("from_position", 0)
    async for answer in server.stub.ReadArrow(pb.ReadArrowRequest(**request)):
        assert answer.first_position == position
        position = answer.next_position
        pieces.append(answer.ipc)
    return pa.ipc.open_stream(b"".join(pieces)).read_all(), position


async def test_every_way_of_reading_gives_the_very_leaves(world: LedgerWorld) -> None:
    async with world.workforce(), ledger_server(world) as server:
        await world.produce(30_000)
        await world.put(0, b"not a record", None, b"x" * 70_000)
        await world.wait_size(60_003)
        leaves = await world.entries(0)
        first = 12_345
        messages = await server.read(log="usage-0", from_position=first)
        assert [leaf for answer in messages for leaf in answer.leaves] == leaves[first:]
        table, end = await arrow(server, log="usage-0", from_position=first)
        assert end == len(leaves)
        assert table["position"].to_pylist() == list(range(first, end))
        assert table["leaf"].to_pylist() == leaves[first:]
        assert set(table["control_size"].to_pylist()) == {0}
        [only] = await server.read(log="usage-0", from_position=5, to_position=6)
        assert (list(only.leaves), only.next_position) == ([leaves[5]], 6)
        assert await server.read(log="usage-0", from_position=len(leaves)) == []
        for call in (server.stub.ReadEvents, server.stub.ReadArrow):
            kind = pb.ReadEventsRequest if call is server.stub.ReadEvents else pb.ReadArrowRequest
            stream = call(kind(log="usage-0", from_position=len(leaves) + 1))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [answer async for answer in stream]
            assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        # What every reader that follows sees, each at its own pace.
        readers = [
            server.stub.ReadEvents(pb.ReadEventsRequest(log="usage-1", follow=True, max_batch=size))
            for size in (1, 700, 20_000)
        ]
        await world.produce(500, seed=2)
        for reader in readers:
            seen: list[bytes] = []
            async with asyncio.timeout(WAIT_S):
                while len(seen) < 30_500:
                    seen += (await reader.read()).leaves
            reader.cancel()
            assert seen == (await world.entries(1))


async def test_a_filter_tells_what_it_passed_over_and_the_root_still_follows(
    world: LedgerWorld,
) -> None:
    async with world.workforce(), ledger_server(world) as server:
        await world.produce(3_000)
        await world.put(0, b"not a record")
        await world.wait_size(6_001)
        leaves = await world.entries(0)
        [state] = [
            log
            for log in (await server.stub.ListLogs(pb.ListLogsRequest())).logs
            if log.log == "usage-0"
        ]
        # The same without its pins, for whoever asks again and again.
        lean = await server.stub.ListLogs(pb.ListLogsRequest(without_pins=True))
        assert state.pins
        assert not any(log.pins for log in lean.logs)
        assert [log.root for log in lean.logs if log.log == "usage-0"] == [state.root]
        account = some_account(leaves)
        plain = LeafFilter(account_id=account, dispositions=frozenset({1}))
        expected = {at: leaf for at, leaf in enumerate(leaves) if plain.matches(leaf)}
        assert 0 < len(expected) < len(leaves)
        wanted = pb.EventFilter(account_id=account, dispositions=[pb.DISPOSITION_ACCEPTED])
        hashes: list[bytes] = []
        found: dict[int, bytes] = {}
        for answer in await server.read(
            log="usage-0", filter=wanted, passed_over_hashes=True, max_batch=500
        ):
            assert answer.first_position == len(hashes)
            here = dict(zip(answer.positions, answer.leaves, strict=True))
            passed = answer.passed_over_hashes
            others = iter([passed[at : at + 32] for at in range(0, len(passed), 32)])
            for at in range(answer.first_position, answer.next_position):
                hashes.append(merkle.leaf_hash(here[at]) if at in here else next(others))
            found |= here
        assert found == expected
        assert merkle.root_of(hashes) == state.root
        table, end = await arrow(server, log="usage-0", filter=wanted)
        assert end == len(leaves)
        assert dict(
            zip(*(table[name].to_pylist() for name in ("position", "leaf")), strict=True)
        ) == (expected)
        file = world.folder / "events.arrow"
        await tollbook(server, "events", "--account", account, "--arrow", str(file))
        with pa.ipc.open_stream(file) as stream:
            any_disposition = LeafFilter(account_id=account)
            assert stream.read_all()["position"].to_pylist() == [
                at for at, leaf in enumerate(leaves) if any_disposition.matches(leaf)
            ]
        lines = await tollbook(server, "events", "usage-0", "--disposition", "rejected")
        assert '"reason": "malformed"' in lines
        lines = await tollbook(server, "events", "usage-0", "--account", account, "--to", "100")
        assert lines.count('"usage_event"') == sum(at < 100 for at in expected)


def some_account(leaves: list[bytes]) -> str:
    """An account that the log has events of: the key of some leaf."""
    return leaf_format.decode(leaves[17]).key.decode()


async def test_a_number_that_stays_missing_alarms_until_it_comes(world: LedgerWorld) -> None:
    stream = "inference-0/boot/0"
    sent = [builders.wrap(builders.event(f"req-{seq}"), seq, stream) for seq in range(10)]
    async with world.workforce(), ledger_server(world, ledger_gap_limit_ms=300) as server:
        await world.put(0, *sent[:3], sent[5], *sent[7:9])
        await world.put(1, builders.wrap(builders.event("other"), 0, "a"), builders.close(1, "a"))
        await world.wait_size(8)
        answer = await server.stub.ListStreams(pb.ListStreamsRequest())
        shown = {one.stream_id: one for one in answer.streams}
        assert (shown["a"].last_seq, shown["a"].closed, list(shown["a"].missing)) == (1, True, [])
        lacking = shown[stream]
        assert (lacking.log, lacking.last_seq, lacking.closed) == ("usage-0", 8, False)
        assert [(part.first_seq, part.last_seq) for part in lacking.missing] == [(3, 4), (6, 6)]
        assert lacking.missing_count == 3
        # Page by page it is the same, and a page of another request is refused.
        first = await server.stub.ListStreams(pb.ListStreamsRequest(page_size=1))
        rest = pb.ListStreamsRequest(page_size=1, page_token=first.next_page_token)
        second = await server.stub.ListStreams(rest)
        assert [*first.streams, *second.streams] == list(answer.streams)
        assert not second.next_page_token
        rest.gaps_only = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.ListStreams(rest)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        gaps = await server.stub.ListStreams(pb.ListStreamsRequest(gaps_only=True))
        assert [one.stream_id for one in gaps.streams] == [stream]

        async def alarmed() -> bool:
            return not await server.is_serving(HEALTH_NAME)

        await until("the gap alarms", alarmed)
        assert await server.is_serving()
        [told] = server.said("STREAM GAP")
        assert (told["stream_id"], told["missing"], told["records"]) == (stream, ["3-4", "6-6"], 3)
        overdue = await server.stub.ListStreams(pb.ListStreamsRequest(gaps_only=True))
        assert (overdue.overdue_streams, overdue.streams[0].overdue) == (1, True)
        assert "OVERDUE" in await tollbook(server, "streams", "--gaps")
        # The spool sends what it has; the last gap to close ends the alarm.
        await world.put(0, sent[3], sent[4])
        await world.wait_size(10)
        assert await alarmed()
        await world.put(0, sent[6])

        async def ended() -> bool:
            return await server.is_serving(HEALTH_NAME)

        await until("the alarm ends", ended)
        assert server.said("stream gap ended")


async def test_partitions_show_their_owner_and_how_far_behind_it_is(world: LedgerWorld) -> None:
    async with ledger_server(world) as server:

        async def states() -> list[pb.PartitionState]:
            answer = await server.stub.ListPartitions(pb.ListPartitionsRequest())
            return list(answer.partitions)

        async def lags(expected: list[int]) -> bool:
            return [one.lag for one in await states() if one.HasField("lag")] == expected

        assert await states() == []
        # A lease that lasts, however long this process is paused.
        async with world.workforce(lease_ms=60_000) as force:
            await world.produce(100)
            await until("all is read", lambda: lags([0, 0]))
            for one in await states():
                assert (one.owner, one.owned, one.size) == (force.worker_id, True, 100)
                assert (one.next_offset, one.end_offset, one.halted) == (100, 100, "")
        assert [(one.owner, one.owned, one.lag) for one in await states()] == [("", False, 0)] * 2
        shown = await tollbook(server, "partitions")
        assert "usage-1" in shown
        assert "0 workers" in shown


async def test_partitions_move_among_workers_while_records_flow(world: LedgerWorld) -> None:
    """A second worker comes, the first is stopped, a third comes, the second is killed."""
    done = asyncio.Event()

    async def flow(partition: int) -> None:
        values = world.values(partition, 1_000_000)
        while not done.is_set():
            await world.deliver(partition, [next(values) for _ in range(40)])

    async with ledger_server(world) as server:

        async def spread(*logs: int) -> bool:
            """Whether the living workers own so many logs each."""
            answer = await server.stub.ListPartitions(pb.ListPartitionsRequest())
            owners = [one.owner for one in answer.partitions if one.owned]
            counts = sorted(owners.count(worker) for worker in answer.workers)
            return counts == sorted(logs) and len(owners) == sum(logs)

        async def grew(by: int) -> None:
            await world.wait_size(await world.size() + by)

        flows = [asyncio.create_task(flow(number)) for number in range(2)]
        first = world.start_worker()
        await until("one owns all", lambda: spread(2))
        second = world.start_worker()
        await until("each owns one", lambda: spread(1, 1))
        await grew(500)
        assert await asyncio.to_thread(first.stop) == 0
        # It gave its log up in leaving; nobody waits for its lease.
        await until("the second owns all", lambda: spread(2))
        await grew(500)
        world.start_worker()
        await until("each owns one again", lambda: spread(1, 1))
        await grew(500)
        await asyncio.to_thread(second.kill)
        await until("the third owns all", lambda: spread(2))
        await grew(500)
        done.set()
        await asyncio.gather(*flows)
        assert await world.check() > 2_000
        epochs = (await server.stub.ListPartitions(pb.ListPartitionsRequest())).partitions
        assert all(one.epoch >= 3 for one in epochs)
