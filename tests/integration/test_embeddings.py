"""Embeddings on real engines: the one inside and vLLM's own server, through both doors, counted.

The same kit for both; a server that lies stands between ours and the real one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from tests.integration.inference_service import (
    ROOT,
    WAIT_S,
    KeyServer,
    Place,
    Service,
    bearer,
    chat,
    end_whole,
    events_of,
    eventually_in_topic,
    metered_of,
    openai_client,
    secret_of,
    serving,
    topic,
)
from tests.integration.lying_server import LyingServer, lying_server
from tests.integration.openai_server import EMBEDS, OpenAiServer, openai_server
from tokenizers import Tokenizer

from inference import tinymodel
from tollbook.client import AsyncClient, Client, InvalidRequest, TokenIds
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]
TEXTS = ("What is a ledger?", "a toll", "the bridge and the road " * 9)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tinymodel.make_embedder(directory)
    return directory / "embedder"


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> Tokenizer:
    return Tokenizer.from_file(str(home / "model" / "tokenizer.json"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(home: Path) -> AsyncIterator[OpenAiServer]:
    async with openai_server(home, home / "model", EMBEDS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def between(server: OpenAiServer) -> AsyncIterator[LyingServer]:
    async with lying_server(server.url) as running:
        yield running


def place(folder: Path, kafka: str, keys: KeyServer, home: Path, **more: str) -> Place:
    environment = {"TOLLBOOK_ENGINE_TASK": "embed", "TOLLBOOK_ADAPTERS": "", **more}
    return Place(folder, kafka, keys.address, home, environment)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inside(
    kafka: str, keys: KeyServer, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("inside")
    async with serving(place(folder, kafka, keys, home)) as running:
        yield running
        await end_whole(running)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream(
    kafka: str,
    keys: KeyServer,
    home: Path,
    between: LyingServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("upstream")
    async with serving(
        place(folder, kafka, keys, home, TOLLBOOK_ENGINE_URL=between.url)
    ) as running:
        yield running
        await end_whole(running)


@pytest.fixture(params=["inside", "upstream"])
def service(
    request: pytest.FixtureRequest, inside: Service, upstream: Service, between: LyingServer
) -> Service:
    """Each engine in turn; both run at once."""
    between.lie = ""
    return {"inside": inside, "upstream": upstream}[request.param]


async def embed(service: Service, **fields: Any) -> inference.EmbedResponse:
    request = inference.EmbedRequest(**{"model": "tiny", **fields})
    answer: inference.EmbedResponse = await service.stub.Embed(
        request, metadata=bearer("acct-1"), timeout=60
    )
    return answer


async def event_of(service: Service, request_id: str) -> usage.UsageEvent:
    key = ("acct-1", request_id)
    return events_of(await eventually_in_topic(service.place.kafka, {key}))[key]


def same(one: Any, other: Any) -> bool:
    return list(one) == pytest.approx(list(other), abs=1e-5)


async def test_both_doors_and_both_engines_give_the_vectors_of_the_engine_alone(
    service: Service, server: OpenAiServer, tokenizer: Tokenizer
) -> None:
    alone = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
    wanted = await alone.embeddings.create(model="tiny", input=list(TEXTS))
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    before = await service.engine()
    name = f"vectors-{service.place.folder.name}"
    by_text = await embed(service, texts=TEXTS, request_id=f"{name}-1")
    by_ids = await embed(
        service,
        inputs=[inference.TokenPrompt(token_ids=one) for one in ids],
        request_id=f"{name}-2",
    )
    client = openai_client(service, "acct-1")
    raw = await client.embeddings.with_raw_response.create(model="tiny", input=list(TEXTS))
    by_http = raw.parse()
    tokens = sum(map(len, ids))
    assert wanted.usage.prompt_tokens == by_http.usage.prompt_tokens == tokens
    assert by_http.usage.total_tokens == by_text.usage.prompt_tokens == tokens
    for place_, vector in enumerate(wanted.data):
        assert len(vector.embedding) == 128
        assert same(vector.embedding, by_text.embeddings[place_].values)
        assert same(vector.embedding, by_ids.embeddings[place_].values)
        assert same(vector.embedding, by_http.data[place_].embedding)
        assert by_http.data[place_].index == place_
    after = await service.engine()
    assert after.residual_tokens == 0
    assert after.reading.generation_tokens - before.reading.generation_tokens == 3 * tokens
    for request_id in (f"{name}-1", f"{name}-2", raw.headers["x-request-id"]):
        event = await event_of(service, request_id)
        assert metered_of(event) == tokens
        assert event.outcome == usage.OUTCOME_COMPLETE
        assert event.quantities[0].token_kind == usage.TOKEN_KIND_EMBEDDING
    await alone.close()
    await client.close()


async def test_floats_and_base64_are_the_same_vector_and_a_cut_one_is_a_unit(
    service: Service,
) -> None:
    url = f"http://{service.place.http}/v1/embeddings"
    headers = {"authorization": f"Bearer {secret_of('acct-1')}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=60) as http:
        told = {}
        for form in ("float", "base64"):
            answer = await http.post(
                url, json={"model": "tiny", "input": "a toll", "encoding_format": form}
            )
            told[form] = answer.json()["data"][0]["embedding"]
    assert list(struct.unpack("<128f", base64.b64decode(told["base64"]))) == told["float"]
    client = openai_client(service, "acct-1")
    cut = await client.embeddings.create(model="tiny", input=[[20, 21], [22]], dimensions=32)
    for item in cut.data:
        assert len(item.embedding) == 32
        assert sum(value * value for value in item.embedding) == pytest.approx(1, abs=1e-4)
    for dimensions in (33, 129):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="tiny", input="x", dimensions=dimensions)
        assert "dimension" in refused.value.message.lower()
    await client.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("word " * 5_000, "takes at most 4096"),
        ([1] * 4_097, "takes at most 4096"),
        ([2_000_000], "vocabulary"),
        ("", "texts"),
        ([], "empty"),
        (["ok", ""], "texts"),
    ],
)
async def test_what_is_no_input_is_refused_and_costs_nothing(
    service: Service, given: Any, said: str
) -> None:
    before = await service.engine()
    client = openai_client(service, "acct-1")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="tiny", input=given)
    assert said in refused.value.message
    assert refused.value.param is not None
    assert refused.value.param.startswith("input")
    after = await service.engine()
    assert after.reading.generation_tokens == before.reading.generation_tokens
    # All that the context holds is taken: an embedding needs no room for an output.
    await client.embeddings.create(model="tiny", input=[7] * 4_096)
    await client.close()


async def test_the_same_id_is_one_run_and_one_event_and_another_body_is_refused(
    service: Service,
) -> None:
    client = openai_client(service, "acct-1")
    before = await service.engine()
    name = f"same-{service.place.folder.name}"
    headers = {"Idempotency-Key": name}

    async def ask(text: str) -> Any:
        return await client.embeddings.create(model="tiny", input=text, extra_headers=headers)

    answers = [*await asyncio.gather(*(ask("a toll") for _ in range(8))), await ask("a toll")]
    assert len({tuple(answer.data[0].embedding) for answer in answers}) == 1
    grown = (await service.engine()).reading.generation_tokens - before.reading.generation_tokens
    assert grown == answers[0].usage.prompt_tokens
    with pytest.raises(openai.ConflictError):
        await ask("another")
    assert metered_of(await event_of(service, name)) == grown
    await client.close()


async def test_a_model_that_embeds_says_that_it_cannot_generate(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.once(chat("hello"), "acct-1")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    client = openai_client(service, "acct-1", retries=2)
    with pytest.raises(openai.BadRequestError) as told:
        await client.completions.create(model="tiny", prompt="hello")
    assert told.value.code == "model_cannot_generate"
    models = await service.stub.ListModels(inference.ListModelsRequest(), metadata=bearer("acct-1"))
    assert [(one.name, one.embeds) for one in models.models] == [("tiny", True)]
    with pytest.raises(grpc.aio.AioRpcError) as nobody:
        await service.stub.Embed(inference.EmbedRequest(model="tiny", texts=["x"]))
    assert nobody.value.code() is grpc.StatusCode.UNAUTHENTICATED
    await client.close()


async def under_way(service: Service, call: Any) -> None:
    """Return when some of an embedding is counted and not settled, or when it is over."""
    deadline = time.monotonic() + WAIT_S
    while not call.done() and not (await service.conservation()).engines[-1].in_flight_tokens:
        assert time.monotonic() < deadline, "nothing was ever under way"
        await asyncio.sleep(0.002)


async def test_who_leaves_is_counted_by_what_the_engine_counted(service: Service) -> None:
    texts = [f"{number} " + "toll " * 300 for number in range(600)]
    turn = 0
    while True:
        name = f"left-{service.place.folder.name}-{turn}"
        request = inference.EmbedRequest(model="tiny", texts=texts, request_id=name)
        before = await service.engine()
        call = service.stub.Embed(request, metadata=bearer("acct-1"))
        await under_way(service, call)
        call.cancel()
        after = await service.engine()
        event = await event_of(service, name)
        if event.outcome != usage.OUTCOME_COMPLETE:
            break
        turn += 1
        assert turn < 5, "each was over before its caller left"
    grown = after.reading.generation_tokens - before.reading.generation_tokens
    assert metered_of(event) == grown > 0
    assert event.outcome == usage.OUTCOME_CLIENT_ABORT
    assert event.quantities[0].undelivered_amount == event.quantities[0].amount
    assert after.residual_tokens == 0


@pytest.mark.chaos
async def test_killed_while_it_embeds_it_settles_what_was_recorded_and_nobody_pays(
    kafka: str, keys: KeyServer, home: Path, between: LyingServer, tmp_path: Path
) -> None:
    between.lie = ""
    where = place(tmp_path, kafka, keys, home, TOLLBOOK_ENGINE_URL=between.url)
    texts = [f"{number} " + "toll " * 300 for number in range(600)]
    request = inference.EmbedRequest(model="tiny", texts=texts, request_id="embed-killed")
    async with serving(where) as killed:
        # Of the first inputs it has the vectors, and waits for the others.
        between.lie, between.given = "stuck", 0
        call = killed.stub.Embed(request, metadata=bearer("acct-1"))
        await under_way(killed, call)
        await killed.end(signal.SIGKILL)
        between.lie = ""
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await call
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    async with serving(where) as again:
        event = await event_of(again, "embed-killed")
        assert event.outcome == usage.OUTCOME_ENGINE_LOST
        assert all(leaf.undelivered_amount == leaf.amount for leaf in event.quantities)
        state = await again.conservation()
        assert [engine.residual_tokens for engine in state.engines] == [0, 0]
        # By the same id it is not run again, nor is another charge made.
        with pytest.raises(grpc.aio.AioRpcError) as settled:
            await again.stub.Embed(request, metadata=bearer("acct-1"))
        assert settled.value.code() is grpc.StatusCode.INTERNAL
        await end_whole(again)


@pytest.mark.parametrize(
    ("lie", "billed", "disputed"), [("more", 0, 7), ("fewer", -3, 3), ("no_usage", 0, 0)]
)
async def test_a_server_that_lies_about_usage_is_caught(
    upstream: Service, between: LyingServer, lie: str, billed: int, disputed: int
) -> None:
    between.lie = ""
    honest = await embed(upstream, texts=TEXTS)
    between.lie = lie
    answer = await embed(upstream, texts=TEXTS, request_id=f"embed-lie-{lie}")
    between.lie = ""
    assert answer.usage.prompt_tokens == honest.usage.prompt_tokens + billed
    event = await event_of(upstream, f"embed-lie-{lie}")
    in_doubt = [q.amount for q in event.quantities if q.unit == usage.UNIT_DISPUTED_TOKEN]
    assert sum(in_doubt) == disputed
    assert (await upstream.engine()).residual_tokens == 0
    said = [
        json.loads(line)
        for line in upstream.log.read_text().splitlines()
        if '"an engine\'s usage is disputed"' in line and f"embed-lie-{lie}" in line
    ]
    assert [one["disputed_tokens"] for one in said] == ([disputed] if disputed else [])


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ("missing", grpc.StatusCode.INTERNAL),
        ("nan", grpc.StatusCode.INTERNAL),
        ("garbage", grpc.StatusCode.INTERNAL),
        ("busy", grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_a_spoiled_answer_is_an_error_and_nobody_pays(
    upstream: Service, between: LyingServer, lie: str, code: grpc.StatusCode
) -> None:
    between.lie = lie
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await embed(upstream, texts=TEXTS, request_id=f"embed-spoiled-{lie}")
    between.lie = ""
    assert failed.value.code() is code
    assert (await upstream.engine()).residual_tokens == 0
    events = events_of(await topic(upstream.place.kafka))
    event = events.get(("acct-1", f"embed-spoiled-{lie}"))
    assert event is None or metered_of(event) == 0


async def test_a_server_that_tells_plain_floats_will_do(
    upstream: Service, between: LyingServer
) -> None:
    between.lie = ""
    first = await embed(upstream, texts=TEXTS)
    between.lie = "floats"
    second = await embed(upstream, texts=TEXTS)
    between.lie = ""
    assert first.embeddings == second.embeddings


async def test_a_batchs_lines_are_embedded_and_each_is_billed_once(service: Service) -> None:
    client = openai_client(service, "acct-1")
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "tiny", "input": text, "dimensions": 64},
        }
        for number, text in enumerate((*TEXTS, "word " * 5_000))
    ]
    before = await service.engine()
    data = "\n".join(map(json.dumps, lines)).encode()
    file = await client.files.create(file=("lines.jsonl", data), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    deadline = time.monotonic() + WAIT_S
    while batch.status != "completed":
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.05)
        batch = await client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)
    assert batch.output_file_id is not None
    answers = (await client.files.content(batch.output_file_id)).text.splitlines()
    tokens = 0
    for answer in map(json.loads, answers):
        body = answer["response"]["body"]
        assert len(body["data"][0]["embedding"]) == 64
        tokens += body["usage"]["prompt_tokens"]
        event = await event_of(service, answer["response"]["request_id"])
        assert metered_of(event) == body["usage"]["prompt_tokens"]
        assert event.service_tier == "batch"
    after = await service.engine()
    assert after.reading.generation_tokens - before.reading.generation_tokens == tokens > 0
    await client.close()


async def test_the_pages_example_runs(service: Service) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(ROOT / "docs" / "examples" / "embeddings.py")],
        env={
            **os.environ,
            "OPENAI_BASE_URL": f"http://{service.place.http}/v1",
            "OPENAI_API_KEY": secret_of("acct-1"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 vectors of 128 components\n")
    assert done.stdout.endswith(" tokens, which is what is charged\n")


async def test_the_python_client_gives_vectors_and_what_they_used(service: Service) -> None:
    async with AsyncClient(service.place.address, secret_of("acct-1")) as client:
        (model,) = await client.models()
        assert model.embeds
        answer = await client.embed(TEXTS, model="tiny", dimensions=64)
        again = await client.embed(TEXTS, model="tiny", dimensions=64, request_id=answer.request_id)
        assert (again.replayed, again.vectors) == (True, answer.vectors)
        assert [len(vector) for vector in answer.vectors] == [64] * len(TEXTS)
        assert metered_of(await event_of(service, answer.request_id)) == (
            answer.usage.prompt_tokens
        )
        for wrong in ("one text", ["text", TokenIds([1])]):
            with pytest.raises(InvalidRequest):
                await client.embed(wrong, model="tiny")  # type: ignore[arg-type]

    def blocking() -> tuple[tuple[float, ...], ...]:
        with Client(service.place.address, secret_of("acct-1")) as client:
            return client.embed(TEXTS, model="tiny", dimensions=64).vectors

    assert same(sum(await asyncio.to_thread(blocking), ()), sum(answer.vectors, ()))
