"""Adapters made on the spot come and go on the real engine, under load, and harm nobody."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
import pytest_asyncio
from safetensors.numpy import load_file, save_file
from tests.integration.inference_service import (
    ROOT,
    KeyServer,
    Place,
    Service,
    bearer,
    chat,
    end_whole,
    events_of,
    eventually_in_topic,
    output_of,
    secret_of,
    serving,
    with_secret,
)

from inference import tinymodel
from tollbook.inference.v1 import adapters_pb2, adapters_pb2_grpc
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

ADMIN = "the-houses-own"
MADE = "tiny-support"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tinymodel.make(directory)
    return directory


def make(tiny: Path, folder: str, factor: float, owner: str = "") -> Path:
    """An adapter of its own: the made one's weights, otherwise weighed."""
    target = tiny / "adapters" / folder
    shutil.copytree(tiny / "adapters" / MADE, target)
    weights = load_file(target / "adapter_model.safetensors")
    save_file(
        {name: value * factor for name, value in weights.items()},
        target / "adapter_model.safetensors",
    )
    if owner:
        (target / "tollbook.json").write_text(json.dumps({"account": owner}))
    return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    kafka: str, keys: KeyServer, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("adapters")
    environment = {"TOLLBOOK_ADMIN_SECRET_DIGEST": hashlib.sha256(ADMIN.encode()).hexdigest()}
    async with serving(Place(folder, kafka, keys.address, tiny, environment)) as running:
        yield running
        await end_whole(running)


@pytest_asyncio.fixture(loop_scope="module")
async def house(service: Service) -> House:
    return House(service)


class House:
    """Who runs it: the admin's calls."""

    def __init__(self, service: Service) -> None:
        self._stub: Any = adapters_pb2_grpc.AdapterServiceStub(service.channel)

    async def load(self, folder: str, secret: str = ADMIN) -> adapters_pb2.Adapter:
        request = adapters_pb2.LoadAdapterRequest(folder=folder)
        answer = await self._stub.LoadAdapter(request, metadata=with_secret(secret), timeout=60)
        adapter: adapters_pb2.Adapter = answer.adapter
        return adapter

    async def unload(self, name: str) -> None:
        request = adapters_pb2.UnloadAdapterRequest(name=name)
        await self._stub.UnloadAdapter(request, metadata=with_secret(ADMIN), timeout=90)

    async def loaded(self) -> list[str]:
        request = adapters_pb2.ListAdaptersRequest()
        answer = await self._stub.ListAdapters(request, metadata=with_secret(ADMIN), timeout=60)
        return [adapter.name for adapter in answer.adapters]


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def names(service: Service, account: str) -> tuple[list[str], list[str]]:
    """What both doors tell an account."""
    listed = await service.stub.ListModels(inference.ListModelsRequest(), metadata=bearer(account))
    async with httpx.AsyncClient(base_url=f"http://{service.place.http}", timeout=60) as client:
        answer = await client.get(
            "/v1/models", headers={"authorization": f"Bearer {secret_of(account)}"}
        )
    return [model.name for model in listed.models], [item["id"] for item in answer.json()["data"]]


async def to_the_end(
    messages: AsyncIterator[inference.GenerateResponse],
) -> list[inference.GenerateResponse]:
    return [message async for message in messages]


def greedy(name: str, request_id: str, model: str) -> inference.GenerationSpec:
    return chat(f"the toll {name}", request_id, model=model, max_tokens=16, temperature=0)


async def test_one_is_loaded_served_billed_by_its_name_and_unloaded(
    service: Service, house: House, tiny: Path
) -> None:
    make(tiny, "sales", 0.5)
    adapter = await house.load("sales")
    assert (adapter.name, adapter.rank) == ("tiny-sales", 8)
    assert (await house.load("sales")).digest == adapter.digest
    assert await names(service, "acct-0") == (["tiny", "tiny-sales", MADE],) * 2
    told = [
        (await service.once(greedy("x", f"sales-{n}", model))).choices[0].token_ids
        for n, model in enumerate(("tiny", "tiny-sales", MADE))
    ]
    assert len({tuple(ids) for ids in told}) == 3
    event = events_of(await eventually_in_topic(service.place.kafka, {("acct-0", "sales-1")}))[
        "acct-0", "sales-1"
    ]
    assert (event.served_model, event.base_model, event.adapter) == (
        "tiny-sales",
        "tiny",
        "tiny-sales",
    )
    assert event.provenance.adapter_digest == adapter.digest
    # The folder is not what is served.
    shutil.rmtree(tiny / "adapters" / "sales")
    again = await service.once(greedy("x", "sales-again", "tiny-sales"))
    assert again.choices[0].token_ids == told[1]
    await house.unload("tiny-sales")
    assert await names(service, "acct-0") == (["tiny", MADE],) * 2
    gone = service.once(greedy("x", "sales-gone", "tiny-sales"))
    assert await code_of(gone) is grpc.StatusCode.NOT_FOUND
    # Another content under the same name is another adapter, and no old block is its own.
    make(tiny, "sales", -1.0)
    assert (await house.load("sales")).digest != adapter.digest
    other = await service.once(greedy("x", "sales-other", "tiny-sales"))
    assert other.choices[0].token_ids != told[1]
    await house.unload("tiny-sales")


async def test_it_is_one_accounts_alone_in_both_doors(
    service: Service, house: House, tiny: Path
) -> None:
    make(tiny, "private", 2.0, owner="acct-1")
    await house.load("private")
    assert await names(service, "acct-1") == (["tiny", "tiny-private", MADE],) * 2
    assert await names(service, "acct-2") == (["tiny", MADE],) * 2
    spec = greedy("x", "private", "tiny-private")
    assert await code_of(service.once(spec, "acct-2")) is grpc.StatusCode.NOT_FOUND
    assert (await service.once(spec, "acct-1")).usage.output_tokens > 0
    await house.unload("tiny-private")


async def test_a_bad_one_harms_nobody(service: Service, house: House, tiny: Path) -> None:
    cut = make(tiny, "cut", 1.0) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    shapes = make(tiny, "shapes", 1.0) / "adapter_model.safetensors"
    save_file({name: value[:, :-1] for name, value in load_file(shapes).items()}, shapes)
    rank = make(tiny, "rank", 1.0) / "adapter_config.json"
    rank.write_text(json.dumps(json.loads(rank.read_text()) | {"r": 65}))
    running = asyncio.create_task(
        service.once(chat("go on", "beside-bad", max_tokens=300, ignore_eos=True))
    )
    for folder, code in (
        ("cut", grpc.StatusCode.INVALID_ARGUMENT),
        ("shapes", grpc.StatusCode.INVALID_ARGUMENT),
        ("rank", grpc.StatusCode.INVALID_ARGUMENT),
        ("nobody", grpc.StatusCode.NOT_FOUND),
        ("../model", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        assert await code_of(house.load(folder)) is code, folder
    assert await code_of(house.load(MADE, secret_of("acct-0"))) is grpc.StatusCode.UNAUTHENTICATED
    assert await code_of(house.unload("tiny")) is grpc.StatusCode.NOT_FOUND
    assert await house.loaded() == [MADE]
    assert (await running).usage.output_tokens == 300
    assert (await service.once(greedy("x", "after-bad", MADE))).usage.output_tokens > 0


async def test_coming_and_going_under_load_fails_no_request_of_others(
    service: Service, house: House, tiny: Path
) -> None:
    for number in range(12):
        make(tiny, f"load-{number}", 0.1 * (number + 1))
    stopped = asyncio.Event()
    told: dict[tuple[str, str], int] = {}

    async def caller(number: int) -> None:
        asked = 0
        account, model = f"acct-{number}", ("tiny", MADE)[number % 2]
        while not stopped.is_set():
            spec = chat("go on", f"load-{number}-{asked}", model=model, max_tokens=20)
            answer = await service.once(spec, account)
            told[account, answer.request_id] = answer.usage.output_tokens
            asked += 1

    callers = [asyncio.create_task(caller(number)) for number in range(6)]
    # More than take part in one step at once: each is evicted and comes back.
    for round_ in range(2):
        loaded = [(await house.load(f"load-{number}")).name for number in range(12)]
        specs = [greedy("y", f"use-{round_}-{name}", name) for name in loaded]
        answers = await asyncio.gather(*map(service.once, specs))
        assert len({tuple(answer.choices[0].token_ids) for answer in answers}) > 6
        # An unloading lets the request out that has it, and never cuts it off.
        spec = chat("z", f"out-{round_}", model=loaded[0], max_tokens=100, ignore_eos=True)
        last = aiter(service.stream(spec))
        assert (await anext(last)).HasField("started")
        reading = asyncio.create_task(to_the_end(last))
        await asyncio.gather(*map(house.unload, loaded))
        rest = await reading
        assert rest[-1].usage.output_tokens == 100
        assert rest[-1].usage.outcome == usage.OUTCOME_COMPLETE
    stopped.set()
    await asyncio.gather(*callers)
    events = events_of(await eventually_in_topic(service.place.kafka, set(told)))
    assert {key: output_of(events[key]) for key in told} == told
    assert {events[key].outcome for key in told} <= {usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY}
    assert await house.loaded() == [MADE]
    kept = service.place.folder / "spool" / "adapters"
    assert len(list(kept.iterdir())) == 1


async def test_the_pages_example_runs(service: Service, tiny: Path) -> None:
    make(tiny, "example", 0.7)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(ROOT / "docs" / "examples" / "adapters.py"), "example"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "gen"),
            "TOLLBOOK_INFERENCE_ADDRESS": service.place.address,
            "TOLLBOOK_ADMIN_SECRET": ADMIN,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: tiny-example, tiny-support" in done.stdout
    assert done.stdout.endswith("tiny-example is gone\n")


async def test_the_command_does_what_the_service_does(service: Service, tiny: Path) -> None:
    made = make(tiny, "typed", 0.6)

    async def tollbook(*words: str, secret: str = ADMIN) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tollbook.cli", "adapters", *words],
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'gen'}",
                "TOLLBOOK_INFERENCE_ADDRESS": service.place.address,
                "TOLLBOOK_ADMIN_SECRET": secret,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    loaded = await tollbook("load", made.name)
    assert loaded.stdout.startswith("tiny-typed is served"), loaded.stderr
    listed = json.loads((await tollbook("list", "--json")).stdout)
    found = {one["name"]: one["rank"] for one in listed["adapters"]}
    assert found["tiny-typed"] == 8
    assert "tiny-typed" in (await tollbook("list")).stdout
    refused = await tollbook("list", secret="another")
    assert refused.returncode != 0
    assert "NOT_ADMIN" in refused.stderr
    missing = await tollbook("list", secret="")
    assert "TOLLBOOK_ADMIN_SECRET" in missing.stderr
    assert (await tollbook("unload", "tiny-typed")).stdout == "tiny-typed is gone\n"
    again = await tollbook("unload", "tiny-typed")
    assert again.returncode != 0
    assert "tiny-typed" in again.stderr
