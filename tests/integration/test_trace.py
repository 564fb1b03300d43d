"""One trace id from a caller's metadata to the posting of the charge, on the whole stack.

The callers are the examples of docs/callers.md, run as their readers run them. The collector is
small and real: OTLP over gRPC, where the services' exporters send their spans.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.integration.tcp_proxy import line_to

from kernel.placement import partition_of, usage_log
from tollbook import client as tb
from tollbook.demo.setting import card_yaml
from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc
from tollbook.stack import Stack, running_stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [pytest.mark.integration, pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
ACCOUNT = "acme"
TIMEOUT_S = 120.0
PLAIN = tb.Sampling(max_tokens=16, ignore_eos=True)


# The collector --------------------------------------------------------------------------


def plain(value: AnyValue) -> Any:
    """An attribute's value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


@dataclass(frozen=True)
class Seen:
    """One span as it came, and the service that sent it."""

    service: str
    span: trace_pb2.Span

    @property
    def attributes(self) -> dict[str, Any]:
        return {item.key: plain(item.value) for item in self.span.attributes}

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        self._spans: list[Seen] = []
        self._lock = threading.Lock()

    def Export(  # noqa: N802 - the protocol's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            for resource in request.resource_spans:
                names = {item.key: plain(item.value) for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [Seen(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Seen]:
        with self._lock:
            return list(self._spans)

    def wait_for(self, service: str, name: str, trace_id: str) -> Seen:
        """The one span of a name in a trace, or linked to it, once it is here."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = [
                seen
                for seen in self.spans()
                if seen.service == service
                and seen.span.name == name
                and trace_id in (seen.trace_id, *(link.trace_id.hex() for link in seen.span.links))
            ]
            if found:
                assert len(found) == 1, found
                return found[0]
            came = sorted({(seen.service, seen.span.name) for seen in self.spans()})
            assert time.monotonic() < deadline, f"no {name} of {service}; there came {came}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector, and the endpoint to name in OTEL_EXPORTER_OTLP_ENDPOINT."""
    collecting = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        collecting, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


# The stack and its callers --------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """The running stack, its spans, and what a caller's shell holds."""

    stack: Stack
    collector: Collector
    shell: Mapping[str, str]

    def tollbook(self, *arguments: str) -> str:
        return run([sys.executable, "-m", "tollbook.cli", *arguments], self.shell)

    def example(self, name: str) -> str:
        return run([sys.executable, str(EXAMPLES / name)], self.shell)


def run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a program to its end; what it printed."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def system(
    collector: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The whole stack, tracing to the collector, with one account and its key."""
    collecting, endpoint = collector
    card = tmp_path_factory.mktemp("cards") / "card.yaml"
    card.write_text(card_yaml({"tiny": False, "tiny-support": True}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with running_stack() as stack:
            patch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
            shell = {**os.environ, **stack.environment()}
            made = System(stack, collecting, shell)
            made.tollbook("cards", "publish", str(card), "--author", "a", "--approver", "b")
            made.tollbook("accounts", "create", ACCOUNT)
            made.tollbook("grant", ACCOUNT, "5.00")
            key = json.loads(made.tollbook("keys", "create", ACCOUNT, "--json"))
            yield System(stack, collecting, {**shell, "TOLLBOOK_SECRET": key["secret"]})


def receipt(stack: Stack, event_id: str) -> pricing_pb2.Receipt:
    """The receipt of a request, once it is charged."""
    with grpc.insecure_channel(stack.address("pricing-server")) as channel:
        stub = pricing_pb2_grpc.PricingServiceStub(channel)
        stub.GetBalance(
            pricing_pb2.GetBalanceRequest(account_id=ACCOUNT, wait_for_event_id=event_id),
            timeout=TIMEOUT_S,
        )
        request = pricing_pb2.GetReceiptRequest(account_id=ACCOUNT, event_id=event_id)
        answer: pricing_pb2.GetReceiptResponse = stub.GetReceipt(request, timeout=TIMEOUT_S)
        return answer.receipt


def output_of(charged: pricing_pb2.Receipt) -> int:
    """The output tokens that were charged."""
    out = [line for line in charged.lines if line.leaf.direction == usage_pb2.DIRECTION_OUT]
    return sum(line.charged_quantity for line in out)


async def record_of(stack: Stack, event_id: str) -> tuple[dict[str, str], usage_pb2.UsageRecord]:
    """Headers and value of the Kafka record with an event of the account."""
    environment = stack.environment()
    partition = partition_of(ACCOUNT, int(environment["TOLLBOOK_PARTITIONS"]))
    place = TopicPartition(environment["TOLLBOOK_TOPIC"], partition)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=environment["TOLLBOOK_KAFKA"], enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        async with asyncio.timeout(TIMEOUT_S):
            async for message in consumer:
                record = usage_pb2.UsageRecord.FromString(message.value)
                if usage_pb2.UsageEvent.FromString(record.usage_event).event_id == event_id:
                    headers = {name: value.decode() for name, value in message.headers}
                    return headers, record
    finally:
        await consumer.stop()
    raise AssertionError(f"no record of {event_id}")


# The trace ------------------------------------------------------------------------------


async def test_one_trace_id_goes_from_the_caller_to_the_posting(system: System) -> None:
    said = system.example("traced_call.py")
    match = re.fullmatch(r"request (\S+)\ntrace (\w{32}) span (\w{16})\n", said)
    assert match, said
    request_id, trace_id, caller_span_id = match.groups()
    charged = receipt(system.stack, request_id)
    see = system.collector.wait_for

    door = see("inference", "/tollbook.inference.v1.InferenceService/GenerateOnce", trace_id)
    assert door.parent_id == caller_span_id
    assert door.span.kind == trace_pb2.Span.SPAN_KIND_SERVER

    chat = see("inference", "chat tiny", trace_id)
    assert chat.parent_id == door.span_id
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": request_id,
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ["FINISH_REASON_LENGTH"],
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 8,
        "tollbook.account_id": ACCOUNT,
        "tollbook.request_id": request_id,
    }

    headers, record = await record_of(system.stack, request_id)
    assert headers["traceparent"] == f"00-{trace_id}-{chat.span_id}-01"
    assert (record.trace_id.hex(), record.span_id.hex()) == (trace_id, chat.span_id)

    # A batch has many requests, so its span is linked to them and is none of theirs.
    commit = see("ledger-worker", "ledger.commit", trace_id)
    assert (trace_id, chat.span_id) in [
        (link.trace_id.hex(), link.span_id.hex()) for link in commit.span.links
    ]
    first = commit.attributes["tollbook.position"]
    assert commit.attributes["tollbook.log"] == charged.log == usage_log(partition_of(ACCOUNT, 4))
    assert first <= charged.position < first + commit.attributes["tollbook.entries"]

    posting = see("pricing-projector", "post charge", trace_id)
    assert posting.parent_id == chat.span_id
    assert posting.attributes == {
        "tollbook.account_id": ACCOUNT,
        "tollbook.request_id": request_id,
        "tollbook.log": charged.log,
        "tollbook.position": charged.position,
    }
    assert int(charged.total.amount_pico) > 0

    # Logs are joined by the same id.
    lines = system.stack.log_file("pricing-projector").read_text().splitlines()
    posted = [line for line in map(json.loads, lines) if line.get("trace_id") == trace_id]
    assert [(line["event"], line["request_id"]) for line in posted] == [("posted", request_id)]


def test_a_request_without_a_trace_gets_one_of_its_own(system: System) -> None:
    said = system.example("first_call.py")
    ids = re.findall(r"^(req-\S+): ", said, re.MULTILINE)
    assert len(ids) == 2, said
    traces = set()
    for request_id in ids:
        receipt(system.stack, request_id)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            of_request = [
                seen
                for seen in system.collector.spans()
                if seen.attributes.get("tollbook.request_id") == request_id
            ]
            if {seen.span.name for seen in of_request} == {"chat tiny", "post charge"}:
                break
            assert time.monotonic() < deadline, of_request
            time.sleep(0.05)
        assert len({seen.trace_id for seen in of_request}) == 1
        traces.add(of_request[0].trace_id)
    assert len(traces) == 2


# The other examples ---------------------------------------------------------------------


def test_the_first_call_is_answered_whole_and_streamed(system: System) -> None:
    said = system.example("first_call.py").splitlines()
    assert said[0] == "served: tiny, tiny-support"
    assert re.fullmatch(r"  \d+ prompt tokens, \d+ of them cached", said[2])
    assert re.fullmatch(rf"  (\d+) output tokens, charged to {ACCOUNT} in usage-\d", said[3]), said
    assert re.fullmatch(r"  \d+ output tokens", said[-1])
    # Charged before another test reads the balance.
    for request_id in re.findall(r"^(req-\S+): ", "\n".join(said), re.MULTILINE):
        receipt(system.stack, request_id)


def test_a_retry_is_charged_once_and_errors_say_why(system: System) -> None:
    before = balance(system)
    said = system.example("retry.py").splitlines()
    assert said[0] == "sent twice: the same answer: True, replayed: True"
    assert [line.partition(":")[0] for line in said[1:]] == [
        "ALREADY_EXISTS REQUEST_ID_REUSED",
        "NOT_FOUND UNKNOWN_MODEL",
        "INVALID_ARGUMENT INVALID_PROMPT",
        "INVALID_ARGUMENT INVALID_FIELD",
    ]
    (request_id,) = {found for line in said[1:] for found in re.findall(r"retry-\w+", line)}
    total = int(receipt(system.stack, request_id).total.amount_pico)
    assert total > 0
    assert balance(system) == before - total


def test_the_python_client_is_told_what_its_receipt_says(system: System) -> None:
    before = balance(system)
    said = system.example("python_client.py")
    told = re.findall(r"^(\S+): (\d+) output tokens", said, re.MULTILINE)
    assert len(told) == 2, said
    assert "sent twice: the same answer: True, replayed: True" in said
    assert "UnknownModel UNKNOWN_MODEL: Take a name that models() lists." in said
    charged = [receipt(system.stack, request_id) for request_id, _ in told]
    for (_, tokens), one in zip(told, charged, strict=True):
        assert output_of(one) == int(tokens)
    # Three were answered, and two are paid.
    assert balance(system) == before - sum(int(one.total.amount_pico) for one in charged)


def _ask_blocking(address: str, secret: str, request_id: str) -> tb.Answer:
    with tb.Client(address, secret) as client:
        return client.generate_once(
            tb.TokenIds([20, 21, 22]), model="tiny", sampling=PLAIN, request_id=request_id
        )


async def _ask_async(address: str, secret: str, request_id: str) -> tb.Usage | None:
    async with tb.AsyncClient(address, secret) as client:
        stream = client.generate(
            tb.TokenIds([20, 21, 22]), model="tiny", sampling=PLAIN, request_id=request_id
        )
        pieces = [piece async for piece in stream]
        ids = [i for piece in pieces if isinstance(piece, tb.Delta) for i in piece.token_ids]
        assert len(ids) == PLAIN.max_tokens
        return stream.usage


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_an_answer_lost_on_the_way_is_asked_for_again_and_billed_once(
    system: System, kind: str
) -> None:
    """The service's answer is held and the connection cut; the client knows no better than to
    send its request again.
    """
    secret, request_id = system.shell["TOLLBOOK_SECRET"], f"lost-{kind}"
    service = system.stack.address("inference")
    before = await asyncio.to_thread(balance, system)
    async with line_to(service) as line:
        # More than what opens a connection, and less than the request.
        line.hold_answers(to_bytes=100)
        if kind == "blocking":
            asking: asyncio.Task[Any] = asyncio.create_task(
                asyncio.to_thread(_ask_blocking, line.address, secret, request_id)
            )
        else:
            asking = asyncio.create_task(_ask_async(line.address, secret, request_id))
        await asyncio.wait_for(line.held.wait(), TIMEOUT_S)
        # Who asks beside it is told when it is settled.
        settled = await asyncio.to_thread(_ask_blocking, service, secret, request_id)
        line.cut()
        line.release()
        answer = await asyncio.wait_for(asking, TIMEOUT_S)
    told = answer.usage if isinstance(answer, tb.Answer) else answer
    assert told == settled.usage
    assert told.output_tokens == PLAIN.max_tokens
    charged = await asyncio.to_thread(receipt, system.stack, request_id)
    assert output_of(charged) == told.output_tokens
    assert await asyncio.to_thread(balance, system) == before - int(charged.total.amount_pico)


def test_an_openai_client_is_told_what_its_receipt_says(system: System) -> None:
    """The page's example and its curl, with the address that `tollbook env` gives."""
    shell = {**system.shell, "OPENAI_API_KEY": system.shell["TOLLBOOK_SECRET"]}
    assert shell["OPENAI_BASE_URL"] in system.tollbook("status")
    page = (EXAMPLES.parent / "callers.md").read_text()
    (call,) = re.findall(r"^curl -s \$OPENAI_BASE_URL.*?}'$", page, re.MULTILINE | re.DOTALL)
    answer = json.loads(run(["sh", "-c", call], shell))
    said = run([sys.executable, str(EXAMPLES / "openai_client.py")], shell)
    told = dict(re.findall(r"^(\S+): (\d+) output tokens", said, re.MULTILINE))
    told[answer["id"]] = answer["usage"]["completion_tokens"]
    assert len(told) == 3, said
    for request_id, tokens in told.items():
        assert output_of(receipt(system.stack, request_id)) == int(tokens)
    assert answer["id"] == "first-1"
    assert answer["usage"]["prompt_tokens"] == sum(
        line.charged_quantity
        for line in receipt(system.stack, "first-1").lines
        if line.leaf.direction == usage_pb2.DIRECTION_IN
    )


def test_a_batch_of_the_page_is_charged_at_its_own_price(system: System) -> None:
    shell = {**system.shell, "OPENAI_API_KEY": system.shell["TOLLBOOK_SECRET"]}
    said = run([sys.executable, str(EXAMPLES / "batch.py")], shell)
    assert said.startswith("completed: "), said
    told = re.findall(r"^(\S+): (\d+) output tokens", said, re.MULTILINE)
    assert len(told) == 2, said
    for request_id, tokens in told:
        charged = receipt(system.stack, request_id)
        assert output_of(charged) == int(tokens)
        assert all(line.rule.endswith("*batch") for line in charged.lines), charged
        out = next(x for x in charged.lines if x.leaf.direction == usage_pb2.DIRECTION_OUT)
        assert int(out.unit_price_pico) == 300_000


def test_a_cancelled_request_is_billed_what_was_generated(system: System) -> None:
    said = system.example("cancel.py")
    found = re.fullmatch(
        r"(\S+): OUTCOME_CLIENT_ABORT\n"
        r"  asked for 3000 tokens, read (\d+) and left\n"
        r"  generated (\d+), of these never delivered (\d+)\n",
        said,
    )
    assert found, said
    request_id = found[1]
    read, generated, undelivered = (int(text) for text in found.groups()[1:])
    # What was delivered is a lower bound: the last piece may have come and not been known to.
    assert 0 < read <= generated < 3000
    assert undelivered <= generated
    charged = receipt(system.stack, request_id)
    assert charged.outcome == usage_pb2.OUTCOME_CLIENT_ABORT
    (out,) = (line for line in charged.lines if line.leaf.direction == usage_pb2.DIRECTION_OUT)
    assert (out.charged_quantity, out.outcome_rule) == (generated, "generated")
    assert out.leaf.undelivered_amount == undelivered


def balance(system: System) -> int:
    """What is left to the account, in pico-units."""
    found = json.loads(system.tollbook("balance", ACCOUNT, "--json"))
    return int(found["balance"]["available"]["amount_pico"])
