"""kill -9 of the inference service and of its engine: nothing lost, nothing twice, residual 0."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import grpc.aio
import psutil
import pytest
from tests.integration.inference_service import (
    WAIT_S,
    KeyServer,
    Place,
    Service,
    chat,
    check_conserved,
    events_of,
    eventually_in_topic,
    output_of,
    serving,
    undelivered_of,
)

from inference import tinymodel
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(scope="module")
def place(kafka: str, keys: KeyServer, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("inference")
    tinymodel.make(folder / "tiny")
    return Place(folder, kafka, keys.address, folder / "tiny")


class Seen:
    """What one caller of a stream saw."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.summary: inference.UsageSummary | None = None
        self.code = grpc.StatusCode.OK
        self.trailing: dict[str, str | bytes] = {}


async def watch(service: Service, name: str, seen: Seen, max_tokens: int) -> None:
    call = service.stream(chat("Go on", name, max_tokens=max_tokens, ignore_eos=True), "acct-4")
    try:
        async for message in call:
            seen.ids += message.delta.token_ids
            if message.HasField("usage"):
                seen.summary = message.usage
    except grpc.aio.AioRpcError as error:
        seen.code = error.code()
        seen.trailing = dict(error.trailing_metadata() or ())


async def under_load(
    service: Service, prefix: str
) -> tuple[dict[str, Seen], list[asyncio.Task[None]]]:
    """Some short requests that end and some long ones that stream, well under way."""
    seen = {f"{prefix}-short-{n}": Seen() for n in range(8)}
    await asyncio.gather(
        *(watch(service, name, one, 10 + n) for n, (name, one) in enumerate(seen.items()))
    )
    long = {f"{prefix}-long-{n}": Seen() for n in range(8)}
    tasks = [asyncio.create_task(watch(service, name, one, 3_500)) for name, one in long.items()]
    seen |= long
    deadline = time.monotonic() + WAIT_S
    while min(len(one.ids) for one in long.values()) < 30:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return seen, tasks


def check(seen: dict[str, Seen], events: dict[tuple[str, str], usage.UsageEvent]) -> None:
    """Every request has one event; it covers what its caller saw."""
    for name, one in seen.items():
        event = events[("acct-4", name)]
        assert output_of(event) >= len(one.ids), name
        if one.summary is not None:
            assert event.outcome == usage.OUTCOME_COMPLETE
            assert list(event.quantities) == list(one.summary.quantities)
        else:
            assert event.outcome == usage.OUTCOME_ENGINE_LOST
            # What counts as delivered errs in the caller's favour.
            assert output_of(event) - undelivered_of(event) <= len(one.ids), name


async def test_kill_the_service_kill_the_core_stop_and_nothing_is_amiss(
    place: Place, kafka: str
) -> None:
    # kill -9 of the service while it streams.
    service = Service(place)
    await service.ready()
    core = service.core()
    seen, tasks = await under_load(service, "killed")
    await service.end(signal.SIGKILL)
    await asyncio.gather(*tasks)
    assert {one.code for name, one in seen.items() if "long" in name} == {
        grpc.StatusCode.UNAVAILABLE
    }
    # The core must not outlive it: it would hold the memory of the next one.
    await asyncio.to_thread(psutil.wait_procs, [core], WAIT_S)
    assert not core.is_running()

    async with serving(place) as service:
        received = await eventually_in_topic(kafka, {("acct-4", name) for name in seen})
        check(seen, events_of(received))
        state = await service.conservation()
        assert [engine.residual_tokens for engine in state.engines] == [0, 0]
        assert state.engines[0].reading.final
        # The same request over the restart: its answer, and no second run.
        name = "killed-short-3"
        again = await service.once(chat("Go on", name, max_tokens=13, ignore_eos=True), "acct-4")
        assert again.replayed
        assert list(again.choices[0].token_ids) == seen[name].ids
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.once(
                chat("Go on", "killed-long-0", max_tokens=3_500, ignore_eos=True), "acct-4"
            )
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "tollbook-usage-bin" in dict(caught.value.trailing_metadata() or ())

        # kill -9 of the engine's core while it streams: settled at once, and the process goes.
        more, tasks = await under_load(service, "core")
        service.core().kill()
        await asyncio.gather(*tasks)
        for name, one in more.items():
            if "long" in name:
                assert one.code == grpc.StatusCode.UNAVAILABLE
                told = inference.UsageSummary.FromString(one.trailing["tollbook-usage-bin"])  # type: ignore[arg-type]
                assert told.outcome == usage.OUTCOME_ENGINE_LOST
                assert told.output_tokens >= len(one.ids)
        assert await service.ended() == 1
        seen |= more

    # Stopped in order while it streams: what runs is cut off after the drain, and counted.
    place.environment["TOLLBOOK_DRAIN_MS"] = "500"
    async with serving(place) as service:
        last, tasks = await under_load(service, "drained")
        assert await service.end() == 0
        await asyncio.gather(*tasks)
    received = await eventually_in_topic(kafka, {("acct-4", name) for name in (*seen, *last)})
    events = events_of(received)
    check(seen, events)
    for name, one in last.items():
        event = events[("acct-4", name)]
        assert output_of(event) >= len(one.ids)
        if "long" in name:
            assert event.outcome == usage.OUTCOME_ERROR_MID_STREAM
            assert one.code == grpc.StatusCode.UNAVAILABLE
    assert len(check_conserved(received)) == 3
    # Every stream is closed: a loss at its end would show.
    streams = {item.record.stream_id for item in received}
    closed = {i.record.stream_id for i in received if i.record.HasField("stream_close")}
    assert closed == streams


async def test_what_cannot_start_says_why(place: Place, tmp_path: Path) -> None:
    broken = Place(tmp_path, place.kafka, place.keys, tmp_path / "nothing-here")
    service = Service(broken)
    assert await service.ended() == 1
    assert "config.json" in service.log.read_text().splitlines()[-1]
    busy = Place(tmp_path, place.kafka, place.keys, place.model, {"TOLLBOOK_PARTITIONS": "x"})
    service = Service(busy)
    assert await service.ended() == 2
    assert "TOLLBOOK_PARTITIONS" in service.log.read_text().splitlines()[-1]
