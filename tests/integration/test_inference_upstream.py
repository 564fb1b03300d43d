"""A server of another make as the engine: vLLM's own, a second process, metered and not believed.

The service is ours, real, and has no engine inside. Between it and the server stands one that
lies when it is told to: a fake only for what no honest server can be made to show.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
import pytest_asyncio
from tests.integration.engine_conformance import Conformance, situations
from tests.integration.inference_service import (
    KeyServer,
    Place,
    Service,
    chat,
    end_whole,
    events_of,
    eventually_in_topic,
    output_of,
    serving,
    topic,
)
from tests.integration.lying_server import LyingServer, lying_server
from tests.integration.openai_server import OpenAiServer, openai_server

from inference import engine as port
from inference import tinymodel
from inference.adapters.upstream.engine import UpstreamEngine, UpstreamOptions
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
]
# Not for all: the kit's own tests are not asynchronous.
in_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tinymodel.make(directory)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(home: Path) -> AsyncIterator[OpenAiServer]:
    async with openai_server(home, home / "model") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def between(server: OpenAiServer) -> AsyncIterator[LyingServer]:
    async with lying_server(server.url) as running:
        yield running


@pytest.fixture
def liar(between: LyingServer) -> LyingServer:
    between.lie = ""
    return between


def place(folder: Path, kafka: str, keys: KeyServer, home: Path, url: str) -> Place:
    environment = {"TOLLBOOK_ENGINE_URL": url, "TOLLBOOK_ENGINE_SILENCE_MS": "6000"}
    # Nothing but the tokenizer is read of the model; its adapters are the server's affair.
    return Place(folder, kafka, keys.address, home, {**environment, "TOLLBOOK_ADAPTERS": ""})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    kafka: str,
    keys: KeyServer,
    home: Path,
    between: LyingServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("upstream")
    async with serving(place(folder, kafka, keys, home, between.url)) as running:
        yield running
        # Whatever was claimed.
        await end_whole(running)


async def event_of(service: Service, request_id: str) -> usage.UsageEvent:
    key = ("acct-0", request_id)
    return events_of(await eventually_in_topic(service.place.kafka, {key}))[key]


def amounts(event: usage.UsageEvent) -> dict[str, int]:
    """Prompt, output and disputed tokens of an event."""
    found = {"in": 0, "out": 0, "disputed": 0}
    for leaf in event.quantities:
        kind = {usage.DIRECTION_IN: "in", usage.DIRECTION_OUT: "out"}.get(leaf.direction)
        found[kind or "disputed"] += leaf.amount
    return found


def disputes(service: Service) -> list[dict[str, Any]]:
    lines = service.log.read_text().splitlines()
    return [json.loads(line) for line in lines if '"an engine\'s usage is disputed"' in line]


@in_loop
async def test_an_honest_server_is_billed_by_what_it_handed_out(
    service: Service, liar: LyingServer
) -> None:
    before = await service.engine()
    answers = await asyncio.gather(
        *(service.once(chat(f"hello {n}", f"honest-{n}", max_tokens=24)) for n in range(20))
    )
    for answer in answers:
        event = await event_of(service, answer.request_id)
        assert amounts(event) == {
            "in": answer.usage.prompt_tokens,
            "out": sum(len(choice.token_ids) for choice in answer.choices),
            "disputed": 0,
        }
        assert event.provenance.model_digest == b""
        assert event.provenance.tokenizer_digest
    counted = (await service.engine()).reading.generation_tokens
    assert counted - before.reading.generation_tokens == sum(
        answer.usage.output_tokens for answer in answers
    )
    assert not disputes(service)


@pytest.mark.parametrize(
    ("lie", "billed"),
    [
        ("more", {"in": 0, "out": 0, "disputed": 7}),
        ("fewer", {"in": 0, "out": -3, "disputed": 3}),
        ("prompt", {"in": 0, "out": 0, "disputed": 5}),
        ("text", {"in": 0, "out": -16, "disputed": 16}),
    ],
)
@in_loop
async def test_a_server_that_lies_is_caught_and_what_is_in_doubt_is_not_billed(
    service: Service, liar: LyingServer, lie: str, billed: dict[str, int]
) -> None:
    spec = chat("the toll", f"lie-{lie}", max_tokens=16, ignore_eos=True, temperature=0)
    honest = chat("the toll", f"truth-{lie}", max_tokens=16, ignore_eos=True, temperature=0)
    truth = amounts(await event_of(service, (await service.once(honest)).request_id))
    caught = len(disputes(service))
    liar.lie = lie
    event = await event_of(service, (await service.once(spec)).request_id)
    assert amounts(event) == {name: truth[name] + billed[name] for name in truth}
    assert event.outcome == usage.OUTCOME_COMPLETE
    # Told, and once.
    assert len(disputes(service)) == caught + 1
    assert (await service.engine()).residual_tokens == 0


@in_loop
async def test_a_cache_larger_than_the_prompt_puts_the_prompt_in_doubt(
    service: Service, liar: LyingServer
) -> None:
    liar.lie = "cached"
    answer = await service.once(chat("the toll", "lie-cached", max_tokens=4, ignore_eos=True))
    event = await event_of(service, answer.request_id)
    assert amounts(event) | {"disputed": 0} == {"in": 0, "out": 4, "disputed": 0}
    assert amounts(event)["disputed"] > 0


@in_loop
async def test_ids_padded_with_what_was_not_said_are_caught_by_the_text(
    service: Service, liar: LyingServer
) -> None:
    liar.lie = "padded"
    answer = await service.once(chat("the toll", "lie-padded", max_tokens=8, ignore_eos=True))
    found = amounts(await event_of(service, answer.request_id))
    assert (found["out"], found["disputed"]) == (0, 8)
    assert "not what the token ids say" in str(disputes(service)[-1]["reasons"])


@in_loop
async def test_a_usage_that_is_missing_leaves_our_own_count(
    service: Service, liar: LyingServer
) -> None:
    liar.lie = "no_usage"
    answer = await service.once(chat("the toll", "no-usage", max_tokens=9, ignore_eos=True))
    assert amounts(await event_of(service, answer.request_id))["out"] == 9
    liar.lie = "no_done"
    answer = await service.once(chat("the toll", "no-done", max_tokens=9, ignore_eos=True))
    event = await event_of(service, answer.request_id)
    assert (amounts(event)["out"], amounts(event)["disputed"]) == (9, 0)


@in_loop
async def test_text_alone_without_a_usage_is_all_in_doubt(
    service: Service, liar: LyingServer
) -> None:
    liar.lie = "text_no_usage"
    answer = await service.once(chat("the toll", "text-alone", max_tokens=9, ignore_eos=True))
    found = amounts(await event_of(service, answer.request_id))
    assert found["out"] == 0
    assert found["disputed"] > 0


@pytest.mark.parametrize("lie", ["cut", "error", "garbage", "silence"])
@in_loop
async def test_an_answer_that_breaks_midway_is_counted_to_its_last_token(
    service: Service, liar: LyingServer, lie: str
) -> None:
    liar.lie, liar.given = lie, 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.once(chat("the toll", f"broken-{lie}", max_tokens=40, ignore_eos=True))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    event = await event_of(service, f"broken-{lie}")
    assert event.outcome == usage.OUTCOME_ERROR_MID_STREAM
    assert output_of(event) == liar.given > 0
    # The next one is served, and nobody else was harmed.
    liar.lie = ""
    await service.once(chat("and on", f"after-{lie}", max_tokens=3))


@in_loop
async def test_a_busy_server_is_no_charge_and_the_same_id_runs_later(
    service: Service, liar: LyingServer
) -> None:
    liar.lie = "busy"
    spec = chat("the toll", "busy", max_tokens=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.once(spec)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    liar.lie = ""
    answer = await service.once(spec)
    assert not answer.replayed
    assert amounts(await event_of(service, "busy"))["out"] == answer.usage.output_tokens


@in_loop
async def test_a_caller_that_leaves_ends_the_servers_request_and_pays_what_came(
    service: Service, liar: LyingServer
) -> None:
    call = service.stream(chat("the toll", "leaver", max_tokens=3_000, ignore_eos=True))
    seen = 0
    async for message in call:
        seen += len(message.delta.token_ids)
        if seen >= 10:
            call.cancel()
            break
    event = await event_of(service, "leaver")
    assert event.outcome == usage.OUTCOME_CLIENT_ABORT
    assert seen <= output_of(event) < 3_000
    assert amounts(event)["disputed"] == 0


@in_loop
async def test_a_server_that_knows_openais_fields_alone_is_served_from_too(
    kafka: str,
    keys: KeyServer,
    home: Path,
    liar: LyingServer,
    tmp_path: Path,
) -> None:
    liar.lie = "strict"
    folder = tmp_path / "strict"
    folder.mkdir()
    strict = place(folder, kafka, keys, home, liar.url)
    strict.environment["TOLLBOOK_PRODUCER"] = "inference-strict"
    async with serving(strict) as service:
        answers = [
            await service.once(chat(f"plain {n}", f"strict-{n}", max_tokens=12)) for n in range(8)
        ]
        for answer in answers:
            found = amounts(await event_of(service, answer.request_id))
            claimed = found["out"] + found["disputed"]
            # What our tokenizer finds in the text and what is claimed agree, or the
            # difference waits: never more is billed than both say.
            assert 0 <= found["out"] <= 12
            assert claimed > 0
        assert (await service.engine()).residual_tokens == 0
        assert await service.end() == 0


@in_loop
async def test_a_server_that_was_started_again_is_given_its_adapters_again(
    home: Path, server: OpenAiServer
) -> None:
    """It is told to forget one, behind our back: a restart leaves it as that does."""
    name = "tiny-support"
    engine = UpstreamEngine(
        UpstreamOptions(url=server.url, model="tiny", base_name="tiny", tokenizer=home / "model")
    )
    target = port.Target(name, "tiny", name)
    asked = iter(range(100))

    async def run() -> list[int]:
        prompt = await engine.render(chat("the toll"), "")
        sampling = inference.SamplingParams(temperature=0, ignore_eos=True)
        job = port.Job(f"forgets:{next(asked)}", target, prompt, sampling, 1, 12, {})
        events = [event async for event in engine.generate(job)]
        assert isinstance(events[-1], port.Ended)
        return [i for event in events if isinstance(event, port.Tokens) for i in event.token_ids]

    await engine.start()
    try:
        with pytest.raises(errors.NotFound):
            await run()
        await engine.add_adapter(name, str(home / "adapters" / name))
        before = await run()
        assert len(before) == 12
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as behind:
            for _ in range(2):
                gone = await behind.post("/v1/unload_lora_adapter", json={"lora_name": name})
                assert gone.status_code == 200
                assert await asyncio.gather(*(run() for _ in range(8))) == [before] * 8
            gone = await behind.post("/v1/unload_lora_adapter", json={"lora_name": name})
            assert gone.status_code == 200
        await engine.remove_adapter(name)
        with pytest.raises(errors.NotFound):
            await run()
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def seen(home: Path, server: OpenAiServer) -> dict[str, Any]:
    """What the kit saw of the server, which it kills at the end."""
    return situations(home, server.url, str(server.process.pid))


class TestAServerOfItsOwn(Conformance):
    """vLLM's own server, through the same port. Last of all: the kit kills it."""


@in_loop
async def test_a_dead_server_costs_its_requests_and_the_service_goes_on(
    service: Service, liar: LyingServer, server: OpenAiServer
) -> None:
    """After the kit: the server is dead by now, and stays away."""
    server.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.once(chat("anybody there", "nobody", max_tokens=5))
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    assert ("acct-0", "nobody") not in events_of(await topic(service.place.kafka))
    assert (
        await service.stub.ListModels(
            inference.ListModelsRequest(), metadata=(("authorization", "Bearer secret-acct-0"),)
        )
    ).models
