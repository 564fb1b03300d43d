"""The inference service on the real engine and broker: what callers get is what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from tests.integration import node_openai
from tests.integration.inference_service import (
    WAIT_S,
    KeyServer,
    Place,
    Service,
    bearer,
    chat,
    end_whole,
    events_of,
    eventually_in_topic,
    openai_client,
    output_of,
    secret_of,
    serving,
    tokens,
    topic,
    undelivered_of,
)

from inference import tinymodel
from kernel import grpcs
from kernel.clock import SystemClock
from kernel.placement import partition_of, usage_log
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.stack import HOUSE_ACCOUNT, Stack
from tollbook.usage.v1 import usage_pb2 as usage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

TRAILER = "tollbook-usage-bin"
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    kafka: str, keys: KeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("inference")
    tinymodel.make(folder / "tiny")
    environment = {"TOLLBOOK_CREDIT_POLICY": "lease", "TOLLBOOK_TOOL_PARSER": "hermes"}
    place = Place(folder, kafka, keys.address, folder / "tiny", environment)
    async with serving(place) as running:
        yield running
        await end_whole(running)


async def taken(service: Service, before: inference.EngineConservation) -> int:
    """Tokens the engine's own counter grew by."""
    after = await service.engine()
    assert after.residual_tokens == 0
    return after.reading.generation_tokens - before.reading.generation_tokens


async def code_of(call: Awaitable[object]) -> grpc.StatusCode:
    """How a call ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


# What a caller of a long answer waits for it; again when the machine was too slow to begin.
SHORT_S = (0.5, 2.0, 2.0, 4.0, 8.0)


async def cut_short(
    service: Service,
    key: tuple[str, str],
    ask: Callable[[str, float], Awaitable[bool]],
    begun_within_us: int = 10**9,
) -> usage.UsageEvent:
    """The event of a request whose caller's time was over while the engine was at it.

    `ask` is given an id and that time in seconds, asks for a long answer, and gives whether it was
    cut off. A try that a busy machine did not begin in time is followed by one with more time under
    another id; what is counted is of all of them.
    """
    account, name = key
    before = await service.engine()
    tried: list[str] = []
    for timeout_s in SHORT_S:
        tried.append(f"{name}-{len(tried)}")
        asked_us = SystemClock().now_us()
        was_cut = await ask(tried[-1], timeout_s)
        await service.drained()
        events = events_of(await topic(service.place.kafka))
        event = events.get((account, tried[-1]))
        if not was_cut or event is None:
            continue
        if event.event_time.ToMicroseconds() - asked_us > begun_within_us:
            continue
        counted = [events[account, one] for one in tried if (account, one) in events]
        assert sum(map(output_of, counted)) == await taken(service, before)
        return event
    raise AssertionError(f"of {tried} none was begun and then cut off")


def digest_of(ids: list[int]) -> bytes:
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).digest()


async def test_a_stream_says_what_the_topic_says(service: Service, kafka: str) -> None:
    before = await service.engine()
    trace_id = os.urandom(16)
    parent = f"00-{trace_id.hex()}-{os.urandom(8).hex()}-01"
    call = service.stream(
        chat("What is a token?", "stream-1", max_tokens=40, ignore_eos=True),
        "acct-3",
        metadata=(("traceparent", parent),),
    )
    messages = [message async for message in call]
    kinds = [message.WhichOneof("event") for message in messages]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["finished", "usage"]
    assert set(kinds[1:-2]) == {"delta"}
    started, summary = messages[0].started, messages[-1].usage
    assert not started.replayed
    ids = [token for message in messages for token in message.delta.token_ids]
    cumulative = [m.delta.cumulative_tokens for m in messages if m.HasField("delta")]
    assert cumulative == sorted(cumulative)
    assert len(ids) == 40 == summary.output_tokens == messages[-2].finished.output_tokens
    assert messages[-2].finished.finish_reason == usage.FINISH_REASON_LENGTH
    assert summary.prompt_tokens == started.prompt_tokens > 0
    assert summary.outcome == usage.OUTCOME_COMPLETE
    assert summary.account_id == "acct-3"
    assert summary.log == usage_log(partition_of("acct-3", 4))
    trailing = dict(await call.trailing_metadata())
    assert inference.UsageSummary.FromString(trailing[TRAILER]) == summary
    assert await taken(service, before) == 40

    received = await eventually_in_topic(kafka, {("acct-3", "stream-1")})
    (item,) = [r for r in received if r.record.usage_event and r.event.event_id == "stream-1"]
    assert item.partition == partition_of("acct-3", 4)
    assert item.key == "acct-3"
    assert item.record.trace_id == trace_id
    assert item.headers["traceparent"].decode().split("-")[1] == trace_id.hex()
    event = item.event
    assert list(event.quantities) == list(summary.quantities)
    assert undelivered_of(event) == 0
    assert event.output_digest == digest_of(ids)
    assert (event.key_id, event.project_id) == ("key-acct-3", "p")
    assert (event.served_model, event.base_model, event.adapter) == ("tiny", "tiny", "")
    assert len(event.provenance.model_digest) == 32
    assert len(event.provenance.tokenizer_digest) == 32
    times = [event.event_time, event.first_token_time, event.end_time]
    order = [stamp.seconds * 10**9 + stamp.nanos for stamp in times]
    assert order == sorted(order)
    assert order[0] > 0


async def test_once_and_several_choices_count_the_prompt_once(service: Service) -> None:
    before = await service.engine()
    ids = list(range(300, 390))
    one = await service.once(tokens(ids, max_tokens=10, ignore_eos=True), "acct-1")
    assert one.usage.prompt_tokens == 90
    several = await service.once(
        tokens(ids[::-1], max_tokens=10, ignore_eos=True, n=3, seed=5, temperature=1.0), "acct-1"
    )
    assert several.usage.prompt_tokens == 90
    # Siblings find each other's blocks; that is no cache of the caller's.
    assert several.usage.cached_tokens == 0
    assert several.usage.output_tokens == 30
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in several.choices}) == 3
    assert await taken(service, before) == 40


async def test_a_cached_prefix_is_one_accounts_own(service: Service) -> None:
    ids = list(range(400, 500))
    first = await service.once(tokens(ids, max_tokens=2, ignore_eos=True), "acct-1")
    again = await service.once(tokens(ids, max_tokens=2, ignore_eos=True), "acct-1")
    other = await service.once(tokens(ids, max_tokens=2, ignore_eos=True), "acct-2")
    assert first.usage.cached_tokens == 0
    # Whole blocks of 32, and at least one token is always computed.
    assert again.usage.cached_tokens == 96
    assert again.usage.prompt_tokens == 100
    assert other.usage.cached_tokens == 0
    amounts = {(q.direction, q.cache_use): q.amount for q in again.usage.quantities}
    assert amounts == {
        (usage.DIRECTION_IN, usage.CACHE_USE_NONE): 4,
        (usage.DIRECTION_IN, usage.CACHE_USE_READ): 96,
        (usage.DIRECTION_OUT, usage.CACHE_USE_NONE): 2,
    }


async def test_a_stop_string_bills_its_tokens_and_no_more(service: Service) -> None:
    before = await service.engine()
    whole = await service.once(
        tokens(range(10, 80), max_tokens=60, temperature=0.0, ignore_eos=True)
    )
    text = whole.choices[0].text
    # A string that stands somewhere in the middle of what greedy sampling says.
    stop = next(word for word in text[len(text) // 3 :].split() if len(word) > 1)
    cut = await service.once(
        tokens(range(10, 80), max_tokens=60, temperature=0.0, ignore_eos=True, stop=[stop])
    )
    assert cut.choices[0].finish_reason == usage.FINISH_REASON_STOP
    assert stop not in cut.choices[0].text
    assert 0 < cut.usage.output_tokens < 60
    assert list(cut.choices[0].token_ids) == list(
        whole.choices[0].token_ids[: cut.usage.output_tokens]
    )
    assert await taken(service, before) == 60 + cut.usage.output_tokens


async def test_the_contexts_end_caps_in_silence(service: Service) -> None:
    answer = await service.once(
        tokens([7] * 4090, max_tokens=50, ignore_eos=True, temperature=1.0), timeout=60
    )
    assert answer.usage.output_tokens == 6
    assert answer.choices[0].finish_reason == usage.FINISH_REASON_LENGTH


async def test_an_adapter_is_billed_under_its_own_name(service: Service, kafka: str) -> None:
    spec = tokens(range(50, 90), "lora-1", "tiny-support", max_tokens=12, temperature=0.0)
    adapted = await service.once(spec)
    plain = await service.once(tokens(range(50, 90), max_tokens=12, temperature=0.0))
    assert list(adapted.choices[0].token_ids) != list(plain.choices[0].token_ids)
    event = events_of(await eventually_in_topic(kafka, {("acct-0", "lora-1")}))[
        ("acct-0", "lora-1")
    ]
    assert (event.served_model, event.base_model) == ("tiny-support", "tiny")
    assert event.adapter == "tiny-support"
    assert len(event.provenance.adapter_digest) == 32


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (tokens([7] * 4096), grpc.StatusCode.INVALID_ARGUMENT),
        (tokens([10**6]), grpc.StatusCode.INVALID_ARGUMENT),
        (tokens([]), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("x" * 60_000), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hello", max_tokens=0), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hello", temperature=float("nan")), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hello", n=65), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hello", request_id="a b"), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hello", model="no-such"), grpc.StatusCode.NOT_FOUND),
    ],
    ids=["over-length", "unknown-id", "empty", "long-chat", "zero", "nan", "n", "id", "model"],
)
async def test_a_bad_request_costs_nothing(
    service: Service, spec: inference.GenerationSpec, code: grpc.StatusCode
) -> None:
    before = await service.engine()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.once(spec)
    assert caught.value.code() == code
    assert caught.value.details()
    assert TRAILER not in dict(caught.value.trailing_metadata() or ())
    assert await taken(service, before) == 0


def asking_more(place: str) -> inference.GenerationSpec:
    """A request with a field of a later contract in its spec, or in a message within."""
    spec = chat("hello", f"refused-{place}", max_tokens=4)
    message = getattr(spec, place) if place else spec
    message.MergeFromString(b"\xf2\x3f\x01x")
    return spec


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"logprobs": True}, "logprobs"),
    ("chat", {"top_logprobs": 3}, "top_logprobs"),
    ("chat", {"prompt_logprobs": 1}, "prompt_logprobs"),
    ("chat", {"use_beam_search": True}, "use_beam_search"),
    ("chat", {"reasoning_effort": "high"}, "reasoning_effort"),
    ("chat", {"functions": []}, "functions"),
    ("chat", {"modalities": ["audio"]}, "modalities"),
    ("chat", {"service_tier": "priority"}, "service_tier"),
    ("chat", {"store": True}, "store"),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0.type",
    ),
    ("text", {"best_of": 2}, "best_of"),
    ("text", {"echo": True}, "echo"),
    ("text", {"logprobs": 1}, "logprobs"),
    ("text", {"suffix": "x"}, "suffix"),
    ("text", {"prompt": ["a", "b"]}, "prompt.0"),
]


async def test_options_that_are_not_honoured_are_refused_by_name_at_both_doors(
    service: Service, kafka: str
) -> None:
    """Whatever would change the answer: nothing is generated, and there is no event."""
    before = await service.engine()
    routes: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        "text": ("/completions", {"prompt": "hi"}),
    }
    async with openai_client(service) as client:
        for number, (kind, option, param) in enumerate(OPTIONS):
            path, body = routes[kind]
            with pytest.raises(openai.BadRequestError) as caught:
                await client.post(
                    path,
                    cast_to=object,
                    body={"model": "tiny", "max_tokens": 4, **body, **option},
                    options={"headers": {"Idempotency-Key": f"refused-{number}"}},
                )
            assert caught.value.param == param
    for place in ("", "sampling", "chat"):
        spec = asking_more(place)
        for call in (service.once(spec), anext(aiter(service.stream(spec)))):
            with pytest.raises(grpc.aio.AioRpcError, match="does not know") as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            bad = grpcs.details_of(refused.value, error_details_pb2.BadRequest)
            assert bad is not None
            assert bad.field_violations[0].field == f"spec.{place}".rstrip(".")
    assert await taken(service, before) == 0
    assert not [key for key in events_of(await topic(kafka)) if key[1].startswith("refused-")]


async def test_what_a_model_thinks_is_output_like_the_rest(service: Service, kafka: str) -> None:
    """The engine is bound to a text that thinks: every token of it is counted, none apart."""
    thought = "<think>a toll for each lane</think>gate"
    before = await service.engine()
    answer = await service.once(
        chat("Think.", "thinks-1", json_schema=json.dumps({"enum": [thought]})), "acct-13"
    )
    (choice,) = answer.choices
    assert json.loads(choice.text) == thought
    assert await taken(service, before) == len(choice.token_ids) == answer.usage.output_tokens
    async with openai_client(service, "acct-13") as client:
        by_http = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Think."}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "thought", "schema": {"enum": [thought]}},
            },
            extra_headers={"Idempotency-Key": "thinks-2"},
        )
    assert json.loads(by_http.choices[0].message.content or "") == thought
    assert by_http.usage is not None
    assert by_http.usage.completion_tokens_details is not None
    assert by_http.usage.completion_tokens_details.reasoning_tokens == 0
    received = await eventually_in_topic(kafka, {("acct-13", f"thinks-{n}") for n in (1, 2)})
    events = events_of(received)
    for name, tokens_out in (
        ("thinks-1", answer.usage.output_tokens),
        ("thinks-2", by_http.usage.completion_tokens),
    ):
        out = [
            leaf
            for leaf in events["acct-13", name].quantities
            if leaf.direction == usage.DIRECTION_OUT
        ]
        assert [(leaf.amount, leaf.token_kind) for leaf in out] == [
            (tokens_out, usage.TOKEN_KIND_PLAIN)
        ]


@pytest.mark.parametrize("authorization", [None, "Bearer nobody", "secret-acct-0", "Bearer "])
async def test_without_a_key_nothing_is_served(service: Service, authorization: str | None) -> None:
    metadata = (("authorization", authorization),) if authorization is not None else ()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.GenerateOnce(
            inference.GenerateOnceRequest(spec=chat("hello")), metadata=metadata
        )
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_cancelled_stream_counts_what_the_engine_generated(
    service: Service, kafka: str, choices: int
) -> None:
    before = await service.engine()
    name = f"cancel-{choices}"
    call = service.stream(
        chat("Tell me everything", name, max_tokens=3_000, ignore_eos=True, n=choices)
    )
    seen = asked_on = 0
    async for message in call:
        asked_on = seen
        seen += len(message.delta.token_ids)
        if seen >= 25:
            break
    call.cancel()
    generated = await taken(service, before)
    event = events_of(await eventually_in_topic(kafka, {("acct-0", name)}))[("acct-0", name)]
    assert event.outcome == usage.OUTCOME_CLIENT_ABORT
    assert event.finish_reason == usage.FINISH_REASON_ABORT
    assert seen <= output_of(event) == generated < 3_000 * choices
    # A message is handed over when the next one is asked for: the last may count or not, and gRPC
    # may have carried a little more than the caller looked at.
    assert output_of(event) - undelivered_of(event) >= asked_on


async def test_a_deadline_is_told_from_a_cancellation(service: Service) -> None:
    async def ask(name: str, timeout_s: float) -> bool:
        spec = chat("Tell me more", name, max_tokens=3_900, ignore_eos=True)
        code = await code_of(service.once(spec, timeout=timeout_s))
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
        return code is grpc.StatusCode.DEADLINE_EXCEEDED

    # Its key is known by then.
    await service.once(chat("hello", max_tokens=1))
    # By the service's clock the deadline is later by what the request took to come in. When that is
    # more than it allows for, the caller's leaving is all that it can see.
    event = await cut_short(service, ("acct-0", "late"), ask, begun_within_us=20_000)
    assert event.outcome == usage.OUTCOME_DEADLINE
    # One answer at the end, and there was none: nothing was delivered.
    assert undelivered_of(event) == output_of(event)


async def test_a_slow_reader_gets_everything_in_fewer_pieces(service: Service) -> None:
    """The engine is done long before the caller reads: what waited comes joined."""
    before = await service.engine()
    choices, each = 8, 1_000
    call = service.stream(
        chat("Slowly", "slow-1", max_tokens=each, n=choices, ignore_eos=True), timeout=300
    )
    messages = aiter(call)
    assert (await anext(messages)).HasField("started")
    deadline = time.monotonic() + WAIT_S
    while True:
        state = await service.conservation()
        assert state.engines[-1].residual_tokens == 0
        if not state.in_flight or state.engines[-1].in_flight_tokens == choices * each:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    deltas, total = 0, 0
    async for message in messages:
        if message.HasField("delta"):
            deltas += 1
            total += len(message.delta.token_ids)
    assert total == choices * each
    assert deltas < choices * each
    assert await taken(service, before) == choices * each


async def test_one_id_at_once_and_again_is_one_run_of_the_engine(
    service: Service, kafka: str
) -> None:
    before = await service.engine()
    spec = chat("Only once", "twice-1", max_tokens=50, ignore_eos=True)

    async def streamed() -> list[int]:
        return [t async for m in service.stream(spec) for t in m.delta.token_ids]

    async def whole() -> list[int]:
        return list((await service.once(spec)).choices[0].token_ids)

    answers = await asyncio.gather(*(streamed() if n % 2 else whole() for n in range(12)))
    assert len({tuple(answer) for answer in answers}) == 1
    assert await taken(service, before) == 50
    later = await service.once(spec)
    assert later.replayed
    assert list(later.choices[0].token_ids) == answers[0]
    assert await streamed() == answers[0]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.once(chat("Something else", "twice-1"))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    # Another account's request by the same name is another request.
    other = await service.once(spec, "acct-5")
    assert not other.replayed
    assert await taken(service, before) == 100
    received = await eventually_in_topic(kafka, {("acct-0", "twice-1"), ("acct-5", "twice-1")})
    found = events_of(received)
    assert output_of(found[("acct-0", "twice-1")]) == 50


async def test_an_attached_caller_may_leave_and_the_other_stays(service: Service) -> None:
    spec = chat("Together", "pair-1", max_tokens=200, ignore_eos=True)
    staying = service.stream(spec)
    messages = aiter(staying)
    assert (await anext(messages)).HasField("started")
    leaving = service.stream(spec)
    assert (await anext(aiter(leaving))).started.replayed
    leaving.cancel()
    last = None
    async for message in messages:
        last = message
    assert last is not None
    assert last.usage.outcome == usage.OUTCOME_COMPLETE
    assert last.usage.output_tokens == 200


async def test_without_pricing_known_keys_go_on_and_others_wait(
    service: Service, keys: KeyServer
) -> None:
    await service.once(chat("hello", max_tokens=1), "acct-9")
    await keys.stop()
    try:
        await service.once(chat("hello", max_tokens=1), "acct-9")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.once(chat("hello", max_tokens=1), "acct-10")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        retry = grpcs.details_of(caught.value, error_details_pb2.RetryInfo)
        assert retry is not None
        assert retry.retry_delay.ToMilliseconds() > 0
    finally:
        await keys.start()
    deadline = time.monotonic() + WAIT_S
    while True:
        code = await code_of(service.once(chat("hello", max_tokens=1), "acct-10"))
        if code == grpc.StatusCode.OK:
            return
        assert code == grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_the_broker_away_fails_no_request_and_loses_no_record(
    service: Service, broker: Stack, kafka: str
) -> None:
    await asyncio.to_thread(broker.hold, "kafka")
    try:
        names = [f"away-{number}" for number in range(40)]
        answers = await asyncio.gather(
            *(service.once(chat("hello", name, max_tokens=8), "acct-7") for name in names)
        )
        assert (await service.conservation()).spool_backlog >= len(names)
    finally:
        await asyncio.to_thread(broker.release, "kafka")
    received = await eventually_in_topic(kafka, {("acct-7", name) for name in names})
    found = events_of(received)
    for answer in answers:
        assert output_of(found[("acct-7", answer.request_id)]) == answer.usage.output_tokens
    await service.drained()


async def test_a_mixed_crowd_leaves_no_residual(service: Service, kafka: str) -> None:
    """Streams and not, choices, stops, aborts and deadlines at once: the sums agree."""
    # What came before is in the topic, all of it.
    await service.drained()
    before = await service.engine()
    before_topic = len(events_of(await topic(kafka)))

    async def one(number: int) -> None:
        spec = chat(
            "word " * (number % 97 + 1),
            f"mix-{number}",
            ("tiny", "tiny-support")[number % 2],
            max_tokens=number % 60 + 1,
            n=(1, 1, 1, 2, 3)[number % 5],
            stop=[" a"] if number % 3 == 0 else [],
        )
        account = f"acct-{number % 8}"
        if number % 7 == 0:
            call = service.stream(spec, account)
            async for message in call:
                if message.delta.cumulative_tokens > number % 11:
                    call.cancel()
                    return
        elif number % 11 == 0:
            code = await code_of(service.once(spec, account, timeout=0.05))
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
        elif number % 2:
            await service.once(spec, account)
        else:
            async for _ in service.stream(spec, account):
                pass

    await asyncio.gather(*(one(number) for number in range(300)), return_exceptions=False)
    generated = await taken(service, before)
    await service.drained()
    events = events_of(await topic(kafka))
    mixed = [event for (_, name), event in events.items() if name.startswith("mix-")]
    assert sum(output_of(event) for event in mixed) == generated
    # A deadline may pass before the engine sees the request: then there is no event.
    hasty = sum(number % 7 != 0 and number % 11 == 0 for number in range(300))
    assert 300 - hasty <= len(mixed) == len(events) - before_topic


async def test_every_method_needs_a_key_and_models_are_listed(service: Service) -> None:
    answer = await service.stub.ListModels(inference.ListModelsRequest(), metadata=bearer("acct-0"))
    assert [model.name for model in answer.models] == ["tiny", "tiny-support"]
    assert {model.context_tokens for model in answer.models} == {4096}
    for call in (
        service.stub.ListModels(inference.ListModelsRequest()),
        service.stub.GetConservation(inference.GetConservationRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("account", ["acct-0", "acct-15"])
async def test_what_all_engines_counted_is_told_to_the_house_alone(
    service: Service, account: str
) -> None:
    asked = inference.GetConservationRequest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.GetConservation(asked, metadata=bearer(account))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    said = caught.value.details() or ""
    assert account in said
    assert "TOLLBOOK_HOUSE_ACCOUNTS" in said
    info = grpcs.details_of(caught.value, error_details_pb2.ErrorInfo)
    assert info is not None
    assert info.reason == "NOT_OF_THE_HOUSE"
    answer = await service.stub.GetConservation(asked, metadata=bearer(HOUSE_ACCOUNT))
    assert answer.engines


@pytest.mark.parametrize(
    "asked",
    [
        chat("How many tokens am I?", max_tokens=3),
        chat("", max_tokens=3),
        chat("<|im_start|>system\nÜber <|im_end|> ☃", model="tiny-support", max_tokens=3),
        tokens(range(16, 90), max_tokens=3),
    ],
    ids=["chat", "empty", "adapter", "tokens"],
)
async def test_tokens_are_counted_as_they_are_billed(
    service: Service, asked: inference.GenerationSpec
) -> None:
    before = await service.engine()
    request = inference.CountTokensRequest(spec=asked)
    counted = await service.stub.CountTokens(request, metadata=bearer("acct-7"))
    assert await taken(service, before) == 0
    answer = await service.once(asked, "acct-7")
    billed_in = [leaf for leaf in answer.usage.quantities if leaf.direction == usage.DIRECTION_IN]
    assert counted.prompt_tokens == sum(leaf.amount for leaf in billed_in) > 0
    assert counted.prompt_tokens + counted.room_tokens == tinymodel.CONTEXT_TOKENS


async def test_what_cannot_be_generated_cannot_be_counted(service: Service) -> None:
    for asked, code in (
        (tokens([20] * 5_000), grpc.StatusCode.INVALID_ARGUMENT),
        (chat("hi", model="no-such"), grpc.StatusCode.NOT_FOUND),
        (inference.GenerationSpec(model="tiny"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        request = inference.CountTokensRequest(spec=asked)
        assert await code_of(service.stub.CountTokens(request, metadata=bearer("acct-7"))) is code
    request = inference.CountTokensRequest(spec=chat("hi"))
    assert await code_of(service.stub.CountTokens(request)) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_model_that_generates_says_that_it_cannot_embed(service: Service) -> None:
    before = await service.engine()
    request = inference.EmbedRequest(
        model="tiny-support", inputs=[inference.TokenPrompt(token_ids=[20])]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Embed(request, metadata=bearer("acct-7"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "'tiny-support'" in (caught.value.details() or "")
    request.model = "no-such"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Embed(request, metadata=bearer("acct-7"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    async with openai_client(service, retries=2) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="tiny", input="hello")
    assert refused.value.code == "model_cannot_embed"
    assert "'tiny'" in refused.value.message
    assert await taken(service, before) == 0


async def test_the_spool_is_the_owners_alone(service: Service) -> None:
    folder = Path(service.place.folder) / "spool"
    modes: dict[Path, int] = {}
    for path in sorted(folder.rglob("*")):
        # The service is at work: what it is making gets another name meanwhile.
        with contextlib.suppress(FileNotFoundError):
            modes[path] = path.stat().st_mode
    assert all(
        stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600) for mode in modes.values()
    ), modes
    assert any("adapters" in path.parts for path in modes)


# The HTTP door: the official client, unchanged, on the same process and the same gate ----


def billed(event: usage.UsageEvent) -> tuple[int, int, int]:
    """(prompt, cached, output) tokens of an event: what a card prices."""
    prompt = [q for q in event.quantities if q.direction == usage.DIRECTION_IN]
    cached = [q for q in prompt if q.cache_use == usage.CACHE_USE_READ]
    return sum(q.amount for q in prompt), sum(q.amount for q in cached), output_of(event)


def told(used: CompletionUsage | None) -> tuple[int, int, int]:
    """The same of OpenAI's usage object."""
    assert used is not None
    assert used.prompt_tokens_details is not None
    cached = used.prompt_tokens_details.cached_tokens or 0
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    return used.prompt_tokens, cached, used.completion_tokens


async def test_http_usage_is_what_is_billed_to_the_token(service: Service, kafka: str) -> None:
    """Whole and streamed, chat and completions, choices, stops, and callers that leave."""
    count = int(os.environ.get("TOLLBOOK_HTTP_REQUESTS", "500"))
    before = await service.engine()
    said: dict[str, tuple[int, int, int]] = {}
    left: set[str] = set()

    async def one(client: AsyncOpenAI, number: int) -> None:
        name = f"http-{number}"
        headers = {"Idempotency-Key": name}
        options: dict[str, Any] = {
            "model": ("tiny", "tiny-support")[number % 2],
            "max_tokens": number % 40 + 1,
            "n": (1, 1, 2)[number % 3],
            "stop": [" a"] if number % 4 == 0 else None,
            "temperature": 0.9,
            "top_p": 0.95,
            "seed": number,
            "extra_headers": headers,
        }
        messages: Any = [{"role": "user", "content": "word " * (number % 23 + 1)}]
        if number % 6 == 5:
            text = await client.completions.create(prompt="A ledger is" * 20, **options)
            assert text.id == name
            said[name] = told(text.usage)
        elif number % 6 in (1, 3):
            answer = await client.chat.completions.create(messages=messages, **options)
            assert answer.id == name
            said[name] = told(answer.usage)
            assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
        elif number % 6 == 2:
            options |= {"max_tokens": 3_000, "extra_body": {"ignore_eos": True}, "stop": None}
            stream = await client.chat.completions.create(messages=messages, stream=True, **options)
            async for _ in stream:
                break
            await stream.close()
            left.add(name)
        else:
            stream = await client.chat.completions.create(
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                **options,
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices == []
            assert {chunk.id for chunk in chunks} == {name}
            said[name] = told(chunks[-1].usage)

    async with openai_client(service, "acct-11") as client:
        for start in range(0, count, 50):
            numbers = range(start, min(start + 50, count))
            await asyncio.gather(*(one(client, number) for number in numbers))
    generated = await taken(service, before)
    wanted = {("acct-11", name) for name in (*said, *left)}
    events = events_of(await eventually_in_topic(kafka, wanted))
    assert len(wanted) == count
    for name, figures in said.items():
        event = events[("acct-11", name)]
        assert billed(event) == figures
        assert undelivered_of(event) == 0
        assert event.outcome in (usage.OUTCOME_COMPLETE, usage.OUTCOME_EMPTY)
    for name in left:
        event = events[("acct-11", name)]
        assert event.outcome == usage.OUTCOME_CLIENT_ABORT
        assert 0 < output_of(event) < 6_000
    assert sum(output_of(events[key]) for key in wanted) == generated


async def test_http_an_idempotency_key_is_one_run_by_either_door(service: Service) -> None:
    before = await service.engine()
    async with openai_client(service, "acct-12") as client:
        answers = [
            await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Only once"}],
                max_tokens=20,
                extra_body={"ignore_eos": True},
                extra_headers={"Idempotency-Key": "http-twice"},
            )
            for _ in range(2)
        ]
        assert answers[0].choices == answers[1].choices
        assert told(answers[0].usage) == told(answers[1].usage)
        by_grpc = await service.once(
            chat("Only once", "http-twice", max_tokens=20, ignore_eos=True), "acct-12"
        )
        assert by_grpc.replayed
        assert by_grpc.choices[0].text == answers[0].choices[0].message.content
        with pytest.raises(openai.ConflictError) as caught:
            await client.with_options(max_retries=3).chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Another body"}],
                extra_headers={"Idempotency-Key": "http-twice"},
            )
        assert caught.value.response.headers["x-should-retry"] == "false"
    assert await taken(service, before) == 20


async def test_http_a_schema_binds_the_answer_and_counts_like_any_other(
    service: Service,
) -> None:
    before = await service.engine()
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}},
        "required": ["good"],
        "additionalProperties": False,
    }
    async with openai_client(service, "acct-12") as client:
        answer = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Is it good?"}],
            max_tokens=400,
            seed=1,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "schema": schema, "strict": True},
            },
        )
    (choice,) = answer.choices
    text = choice.message.content or ""
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(text)["good"], bool)
    else:
        # A model of random weights may fill its bound with white space.
        assert text.lstrip().startswith("{")
    assert await taken(service, before) == told(answer.usage)[2] > 0


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"warm": {"type": "boolean"}},
            "required": ["warm"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("named", [False, True], ids=["required", "named"])
async def test_http_a_function_that_must_be_called_is_called(service: Service, named: bool) -> None:
    """Streamed and whole: one request id, so one answer, told twice in the same words."""
    before = await service.engine()
    one = {"type": "function", "function": {"name": "weather"}}
    asked: Any = {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": "Is it warm?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"warm": true}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ],
        "tools": [WEATHER],
        "tool_choice": one if named else "required",
        "parallel_tool_calls": False,
        "max_tokens": 400,
        "seed": 1,
        "extra_headers": {"Idempotency-Key": f"tools-{named}"},
    }
    async with openai_client(service, "acct-12") as client:
        stream = await client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        answer = await client.chat.completions.create(**asked)
        without = {**asked, "tool_choice": "none", "extra_headers": {}}
        plain = await client.chat.completions.create(**without)
    (told_choice,) = answer.choices
    pieces = [
        piece
        for chunk in chunks
        for told_piece in chunk.choices
        for piece in told_piece.delta.tool_calls or ()
    ]
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    made = told_choice.message.tool_calls or []
    if made:
        (call,) = made
        assert call.type == "function"
        assert call.function.name == "weather"
        assert call.function.arguments == arguments
        assert pieces[0].id == call.id
    # A model of random weights may fill its bound with white space; nothing of that is lost.
    assert content == (told_choice.message.content or "")
    assert made or content
    if told_choice.finish_reason == "length":
        assert told(answer.usage)[2] == 400
    else:
        assert told_choice.finish_reason == ("stop" if named else "tool_calls")
        assert isinstance(json.loads(made[0].function.arguments)["warm"], bool)
    assert told(chunks[-1].usage) == told(answer.usage)
    # The tools are input, and counted.
    assert told(answer.usage)[0] > told(plain.usage)[0]
    spent = told(answer.usage)[2] + told(plain.usage)[2]
    assert await taken(service, before) == spent


async def test_http_a_model_may_call_or_not_and_its_parser_reads_it(service: Service) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Is it warm?"}],
        "tools": [WEATHER],
        "max_tokens": 30,
        "seed": 1,
        "extra_headers": {"Idempotency-Key": "tools-auto"},
    }
    async with openai_client(service, "acct-12") as client:
        answer = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        chunks = [chunk async for chunk in stream]
    text = answer.choices[0].message.content
    assert text
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text


async def test_http_a_caller_that_gives_up_is_counted(service: Service) -> None:
    async with openai_client(service, "acct-12") as client:

        async def ask(name: str, timeout_s: float) -> bool:
            try:
                await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": "Everything"}],
                    max_tokens=3_900,
                    extra_body={"ignore_eos": True},
                    extra_headers={"Idempotency-Key": name},
                    timeout=timeout_s,
                )
            except openai.APITimeoutError:
                return True
            return False

        event = await cut_short(service, ("acct-12", "http-late"), ask)
    assert event.outcome == usage.OUTCOME_CLIENT_ABORT
    assert output_of(event) == undelivered_of(event)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "no-such"}, 404, None, "model_not_found"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_field"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_field"),
        ({"n": 2**40}, 400, None, "invalid_field"),
        ({"messages": []}, 400, "messages", "invalid_field"),
        (
            {"tools": [{"type": "function", "function": {"name": "f g"}}]},
            400,
            "tools.0.function.name",
            None,
        ),
        ({"tools": [], "tool_choice": "required"}, 400, "tool_choice", None),
        ({"logit_bias": {"1": 1}}, 400, "logit_bias", None),
        ({"messages": [{"role": "user", "content": "x" * 60_000}]}, 400, "messages", None),
    ],
    ids=["model", "zero", "text", "huge-n", "empty", "tool-name", "no-tools", "bias", "long"],
)
async def test_http_a_bad_request_costs_nothing_and_says_why(
    service: Service, body: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    before = await service.engine()
    whole = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **body}
    async with openai_client(service) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.post("/chat/completions", cast_to=object, body=whole)
    assert caught.value.status_code == status
    error = caught.value.body
    assert isinstance(error, dict)
    assert error["message"]
    assert error["param"] == param
    assert code in (None, error["code"])
    assert await taken(service, before) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/completions"),
        ("POST", "/completions"),
        ("POST", "/embeddings"),
        ("POST", "/files"),
        ("GET", "/files"),
        ("GET", "/files/file-1"),
        ("GET", "/files/file-1/content"),
        ("DELETE", "/files/file-1"),
        ("POST", "/batches"),
        ("GET", "/batches"),
        ("GET", "/batches/batch-1"),
        ("POST", "/batches/batch-1/cancel"),
        ("GET", "/models"),
        ("GET", "/models/tiny"),
    ],
)
async def test_http_every_route_needs_a_key(service: Service, method: str, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.place.http}/v1", timeout=60) as client:
        for headers in ({}, {"authorization": "Bearer nobody"}):
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/no-such")).json()["error"]["code"] == "no_route"


async def test_http_the_node_package_is_told_what_is_billed(
    service: Service, kafka: str, tmp_path: Path
) -> None:
    count = 500
    before = await service.engine()
    settings = {
        "OPENAI_BASE_URL": f"http://{service.place.http}/v1",
        "OPENAI_API_KEY": secret_of("acct-15"),
    }
    printed = await asyncio.to_thread(
        node_openai.run, "callers.mjs", tmp_path, settings, str(count)
    )
    lines = [json.loads(line) for line in printed.splitlines()]
    said = {
        one["id"]: (one["prompt"], one["cached"], one["output"]) for one in lines if "id" in one
    }
    left = {one["left"] for one in lines if "left" in one}
    assert (len(said), len(left), len(lines)) == (count * 4 // 5, count // 5, count)
    generated = await taken(service, before)
    wanted = {("acct-15", name) for name in (*said, *left)}
    events = events_of(await eventually_in_topic(kafka, wanted))
    for name, figures in said.items():
        assert billed(events[("acct-15", name)]) == figures
    for name in left:
        event = events[("acct-15", name)]
        assert event.outcome == usage.OUTCOME_CLIENT_ABORT
        assert 0 < output_of(event) < 3_000
    # Also of what was sent twice each token is billed once.
    assert sum(output_of(events[key]) for key in wanted) == generated


def batch_line(custom_id: str, **body: Any) -> str:
    request = {"model": "tiny", "messages": [{"role": "user", "content": custom_id}], **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**line, "body": request})


async def test_http_a_batch_by_the_official_client(service: Service, kafka: str) -> None:
    before = await service.engine()
    lines = [batch_line(f"line {n}", max_tokens=6, ignore_eos=True) for n in range(20)]
    lines.append(batch_line("wrong", max_tokens=0))
    async with openai_client(service, "acct-13") as client:
        file = await client.files.create(
            file=("mine.jsonl", "\n".join(lines).encode()), purpose="batch"
        )
        assert (await client.files.retrieve(file.id)) == file
        batch = await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"night": "1"},
        )
        deadline = time.monotonic() + WAIT_S
        while (done := await client.batches.retrieve(batch.id)).status != "completed":
            assert done.status in ("validating", "in_progress", "finalizing"), done
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert done.request_counts is not None
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
        assert done.metadata == {"night": "1"}
        assert [one.id async for one in client.batches.list(limit=1)] == [batch.id]
        kept = {one.id async for one in client.files.list(limit=2)}
        assert kept == {file.id, done.output_file_id, done.error_file_id}
        answers = [
            json.loads(line)
            for line in (await client.files.content(done.output_file_id or "")).text.splitlines()
        ]
        (failure,) = (
            json.loads(line)
            for line in (await client.files.content(done.error_file_id or "")).text.splitlines()
        )
        assert failure["custom_id"] == "wrong"
        assert failure["response"]["status_code"] == 400
        assert failure["response"]["body"]["error"]["param"] == "max_tokens"
        with pytest.raises(openai.BadRequestError, match="nothing to cancel"):
            await client.batches.cancel(batch.id)
        for file_id in kept:
            assert (await client.files.delete(file_id)).deleted
        assert [one async for one in client.files.list()] == []
    assert await taken(service, before) == 20 * 6
    bodies = {one["custom_id"]: one["response"]["body"] for one in answers}
    assert len(bodies) == len(answers) == 20
    wanted = {("acct-13", body["id"]) for body in bodies.values()}
    events = events_of(await eventually_in_topic(kafka, wanted))
    for body in bodies.values():
        event = events[("acct-13", body["id"])]
        assert event.service_tier == "batch"
        assert billed(event) == told(CompletionUsage.model_validate(body["usage"]))
    assert done.usage is not None
    assert done.usage.total_tokens == sum(body["usage"]["total_tokens"] for body in bodies.values())


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([batch_line("a"), "{"], "invalid_json_line"),
        ([batch_line("a"), batch_line("a")], "duplicate_custom_id"),
        ([], "empty_file"),
    ],
    ids=["json", "twice", "empty"],
)
async def test_http_a_bad_batch_file_runs_nothing_and_says_where(
    service: Service, lines: list[str], code: str
) -> None:
    before = await service.engine()
    async with openai_client(service, "acct-13") as client:
        file = await client.files.create(
            file=("bad.jsonl", "\n".join(lines).encode()), purpose="batch"
        )
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        deadline = time.monotonic() + WAIT_S
        while (done := await client.batches.retrieve(batch.id)).status != "failed":
            assert time.monotonic() < deadline, done
            await asyncio.sleep(0.02)
        assert done.errors is not None
        assert done.errors.data is not None
        assert [one.code for one in done.errors.data] == [code]
        assert done.output_file_id is None
    assert await taken(service, before) == 0


async def test_http_nobody_reads_anothers_batch_and_bad_requests_say_why(
    service: Service,
) -> None:
    async with openai_client(service, "acct-13") as client:
        file = await client.files.create(
            file=("a.jsonl", batch_line("a").encode()), purpose="batch"
        )
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await client.files.create(file=("a.jsonl", b"x"), purpose="vision")
        with pytest.raises(openai.BadRequestError, match="endpoint"):
            await client.batches.create(
                input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
            )
        for body in ({"purpose": "batch"}, None):
            with pytest.raises(openai.BadRequestError):
                await client.post("/files", cast_to=object, body=body)
    async with openai_client(service, "acct-14") as stranger:
        for ask in (
            stranger.files.retrieve(file.id),
            stranger.files.content(file.id),
            stranger.files.delete(file.id),
            stranger.batches.retrieve("batch-none"),
            stranger.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await ask


async def test_http_a_body_has_a_bound(service: Service) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.place.http}/v1", timeout=60) as client:
        answer = await client.post(
            "/chat/completions",
            headers={"authorization": f"Bearer {secret_of('acct-0')}"},
            content=b" " * (grpcs.MAX_MESSAGE_BYTES + 1),
        )
    assert answer.status_code == 413


async def test_http_the_documented_example_runs(service: Service) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(EXAMPLES / "openai_client.py")],
        env={
            **os.environ,
            "OPENAI_BASE_URL": f"http://{service.place.http}/v1",
            "OPENAI_API_KEY": secret_of("acct-0"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "served: tiny, tiny-support"
    assert lines[1] == lines[2]
    assert lines[3].endswith("output tokens, streamed")
    assert lines[4] == "404 model_not_found"
