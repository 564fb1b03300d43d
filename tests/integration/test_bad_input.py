"""Bad input at every door: a clear error, the record kept where it is one, and nothing stuck.

After each, a good request is answered and stands in the balance, to the last unit, with nothing
beside it: so nothing waits behind what was refused, and nothing of it was charged or granted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from tests.integration.pricing_world import CARD, T0_US, again, charge, reason_of
from tests.integration.whole_world import USAGE_TRAILER, Asked, WholeWorld, audit_alone, request

from kernel import grpcs
from kernel import leaf as leaves
from kernel.clock import timestamp_of
from kernel.ids import new_id
from kernel.note import SignerKey
from kernel.placement import partition_of, usage_log
from tollbook.inference.v1 import inference_pb2
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2
from tollbook.stack import Stack
from tollbook.usage.v1 import usage_pb2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

PAYER = "bad-payer"
PARTITION = partition_of(PAYER, 4)
LOG = usage_log(PARTITION)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_world(whole_stack: Stack) -> AsyncIterator[WholeWorld]:
    whole_stack.up()
    async with WholeWorld(whole_stack) as made:
        await made.publish_prices()
        await made.customers(PAYER)
        await fine(made)
        yield made
        # All of it together: nothing that was refused moved any book.
        await made.check_everything(made.asked.values())


@pytest_asyncio.fixture(loop_scope="module")
async def world(module_world: WholeWorld) -> AsyncIterator[WholeWorld]:
    """After each test a good request is answered and charged, and nothing else."""
    yield module_world
    await fine(module_world)


async def fine(world: WholeWorld) -> Asked:
    """A good request, right now: answered, in the log, in the balance."""
    asked = await world.ask(request(PAYER, new_id("good"), 1))
    assert asked.completed
    await world.check_now(asked)
    return asked


async def refused(
    call: Awaitable[Any], code: grpc.StatusCode, reason: str, *words: str, field: str = ""
) -> grpc.aio.AioRpcError:
    """The call's error: this code, this reason, words that say what was wrong, the field named."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is code, error.details()
    assert reason_of(error) == reason
    said = error.details() or ""
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    if field:
        bad = grpcs.details_of(error, error_details_pb2.BadRequest)
        assert bad is not None
        assert field in [broken.field for broken in bad.field_violations]
        assert all(broken.description for broken in bad.field_violations)
    return error


# The topic ------------------------------------------------------------------------------


def event(**fields: Any) -> usage_pb2.UsageEvent:
    """A usable event of the payer, but for `fields`."""
    given: dict[str, Any] = {
        "event_id": new_id("bad"),
        "account_id": PAYER,
        "served_model": "tiny",
        "outcome": usage_pb2.OUTCOME_COMPLETE,
        "event_time": timestamp_of(T0_US),
        **fields,
    }
    return usage_pb2.UsageEvent(**{k: v for k, v in given.items() if v is not None})


def record(body: usage_pb2.UsageEvent | bytes, **fields: Any) -> bytes:
    """A record of a stream of its own."""
    data = body if isinstance(body, bytes) else body.SerializeToString()
    given: dict[str, Any] = {"stream_id": new_id("stream"), "usage_event": data, **fields}
    return usage_pb2.UsageRecord(**given).SerializeToString()


def output(amount: int, **fields: Any) -> usage_pb2.Quantity:
    return usage_pb2.Quantity(
        unit=usage_pb2.UNIT_TOKEN, direction=usage_pb2.DIRECTION_OUT, amount=amount, **fields
    )


def quantities(*leaves: usage_pb2.Quantity) -> bytes:
    return record(event(quantities=leaves))


REJECTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no-protobuf": (lambda: b"rubbish", "MALFORMED"),
    "cut-short": (lambda: quantities(output(5))[:-3], "MALFORMED"),
    "json": (lambda: b'{"account_id": "bad-payer", "tokens": 5}', "MALFORMED"),
    "body-is-no-event": (lambda: record(b"\xff\xff"), "MALFORMED"),
    "nothing": (lambda: b"", "EMPTY"),
    "too-large": (lambda: b"x" * 70_000, "OVERSIZE"),
    "no-stream": (lambda: record(event(), stream_id=""), "MISSING_ID"),
    "no-event-id": (lambda: record(event(event_id=None)), "MISSING_ID"),
    "no-account": (lambda: record(event(account_id=None)), "MISSING_ID"),
    "no-body": (lambda: usage_pb2.UsageRecord(stream_id="s").SerializeToString(), "INVALID_FIELD"),
    "no-outcome": (lambda: record(event(outcome=None)), "INVALID_FIELD"),
    "no-time": (lambda: record(event(event_time=None)), "INVALID_FIELD"),
    "no-model": (lambda: record(event(served_model=None)), "INVALID_FIELD"),
    "negative-place": (lambda: record(event(), stream_seq=-1), "INVALID_FIELD"),
    "negative": (lambda: quantities(output(-5)), "NEGATIVE_QUANTITY"),
    "most-negative": (lambda: quantities(output(-(1 << 63))), "NEGATIVE_QUANTITY"),
    "absurd": (lambda: quantities(output(10**12 + 1)), "ABSURD_QUANTITY"),
    "most": (lambda: quantities(output((1 << 63) - 1)), "ABSURD_QUANTITY"),
    "more-undelivered-than-all": (
        lambda: quantities(output(5, undelivered_amount=6)),
        "INCONSISTENT_QUANTITIES",
    ),
    "one-leaf-twice": (lambda: quantities(output(5), output(6)), "INCONSISTENT_QUANTITIES"),
    "no-unit": (lambda: record(event(quantities=[usage_pb2.Quantity(amount=1)])), "INVALID_FIELD"),
}


@pytest.mark.parametrize("case", REJECTED)
async def test_a_bad_record_is_kept_with_its_reason(world: WholeWorld, case: str) -> None:
    """It stands in the log of the very partition that the good request after it goes through."""
    make, reason = REJECTED[case]
    value = make()
    leaf, aside = await world.entry(LOG, await world.put(PARTITION, value))
    assert leaf.disposition == ledger_pb2.DISPOSITION_REJECTED
    assert ledger_pb2.Reason.Name(leaf.reason) == f"REASON_{reason}"  # type: ignore[arg-type]
    assert (aside if leaf.aside else leaf.value) == value


async def test_another_body_under_a_known_id_is_a_conflict(world: WholeWorld) -> None:
    """As a repeat with the same words is none: both are kept, neither is charged."""
    asked = await fine(world)
    assert asked.summary is not None
    lie = event(event_id=asked.request_id, quantities=[output(1)])
    leaf, _ = await world.entry(LOG, await world.put(PARTITION, record(lie)))
    assert leaf.disposition == ledger_pb2.DISPOSITION_CONFLICT
    assert leaf.reason == ledger_pb2.REASON_IDENTITY_REPEAT
    free = event(quantities=[])
    first, second = record(free), record(free)
    leaf, _ = await world.entry(LOG, await world.put(PARTITION, first))
    assert leaf.disposition == ledger_pb2.DISPOSITION_ACCEPTED
    world.accounts[PAYER].requests += 1
    leaf, _ = await world.entry(LOG, await world.put(PARTITION, second))
    assert leaf.disposition == ledger_pb2.DISPOSITION_DUPLICATE
    assert leaf.value == second


async def test_usage_of_an_unknown_model_or_account_waits_visibly(world: WholeWorld) -> None:
    """It is no bad record: somebody used something. It waits for a price, or for its account.

    It has no output, as no engine's counters speak of it.
    """
    await world.use(PAYER, plain=5, model="nobody-priced-this", priced=False)
    unborn = new_id("unborn")
    event_id = await world.use(unborn, plain=5, priced=False)
    log = usage_log(partition_of(unborn, 4))
    assert log in [item.log for item in await world.recorded()]
    unknown = pricing_pb2.GetBalanceRequest(account_id=unborn)
    await refused(world.pricing.GetBalance(unknown), MISSING, "ACCOUNT_NOT_FOUND", repr(unborn))
    await world.create(unborn)
    account = world.accounts[unborn]
    account.charged, account.waiting = charge(5, 0, 0, 0, usage_pb2.OUTCOME_COMPLETE), 0
    await world.balance(unborn, event_id=event_id)


# Inference ------------------------------------------------------------------------------


def spec(**fields: Any) -> inference_pb2.GenerationSpec:
    given: dict[str, Any] = {"model": "tiny", "tokens": tokens([20, 21]), **fields}
    return inference_pb2.GenerationSpec(**{k: v for k, v in given.items() if v is not None})


def tokens(ids: list[int]) -> inference_pb2.TokenPrompt:
    return inference_pb2.TokenPrompt(token_ids=ids)


def chat(*words: str, role: str = "user") -> inference_pb2.ChatPrompt:
    return inference_pb2.ChatPrompt(
        messages=[inference_pb2.ChatMessage(role=role, content=text) for text in words]
    )


def sampling(**fields: Any) -> inference_pb2.GenerationSpec:
    return spec(sampling=inference_pb2.SamplingParams(**fields))


def say(prompt: inference_pb2.ChatPrompt) -> inference_pb2.GenerationSpec:
    return inference_pb2.GenerationSpec(model="tiny", chat=prompt)


FIELD, PROMPT = "INVALID_FIELD", "INVALID_PROMPT"
# What is asked for; the reason, the field, and a word of the sentence.
REQUESTS: dict[str, tuple[inference_pb2.GenerationSpec, str, str, str]] = {
    "no-model": (spec(model=None), FIELD, "spec.model", "at least 1"),
    "long-model": (spec(model="x" * 257), FIELD, "spec.model", "at most 256"),
    "no-prompt": (spec(tokens=None), FIELD, "spec.prompt", "required"),
    "no-token": (spec(tokens=tokens([])), FIELD, "spec.tokens.token_ids", "at least 1"),
    "no-message": (say(chat()), FIELD, "spec.chat.messages", "at least 1"),
    "no-role": (say(chat("hello", role="")), FIELD, "spec.chat.messages[0].role", "must be in"),
    "over-length": (
        spec(tokens=tokens([20] * 4096)), PROMPT, "spec.tokens.token_ids", "4096 tokens",
    ),
    "over-length-chat": (say(chat("x" * 60_000)), PROMPT, "spec.chat", "4096 tokens"),
    "no-such-token": (
        spec(tokens=tokens([(1 << 32) - 1])), PROMPT, "spec.tokens.token_ids", "4294967295",
    ),
    "no-output": (sampling(max_tokens=0), FIELD, "spec.sampling.max_tokens", "at least"),
    "negative-output": (sampling(max_tokens=-5), FIELD, "spec.sampling.max_tokens", "at least"),
    "huge-output": (
        sampling(max_tokens=(1 << 31) - 1), FIELD, "spec.sampling.max_tokens", "1048576",
    ),
    "no-choice": (sampling(n=0), FIELD, "spec.sampling.n", "to 1"),
    "huge-choices": (sampling(n=1 << 30), FIELD, "spec.sampling.n", "64"),
    "negative-temperature": (
        sampling(temperature=-1), FIELD, "spec.sampling.temperature", "to 0",
    ),
    "nan": (sampling(temperature=float("nan")), FIELD, "spec.sampling.temperature", "to 0"),
    "empty-stop": (sampling(stop=[""]), FIELD, "spec.sampling.stop[0]", "at least 1"),
    "long-id": (spec(request_id="x" * 129), FIELD, "spec.request_id", "at most 128"),
    "bad-id": (spec(request_id="a b"), FIELD, "spec.request_id", "pattern"),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_bad_request_is_refused_and_costs_nothing(world: WholeWorld, case: str) -> None:
    wanted, reason, field, word = REQUESTS[case]
    before = (await world.conservation()).engines[-1].reading.generation_tokens
    metadata = world.bearer(PAYER)
    once = world.inference.GenerateOnce(
        inference_pb2.GenerateOnceRequest(spec=wanted), metadata=metadata
    )
    stream = world.inference.Generate(inference_pb2.GenerateRequest(spec=wanted), metadata=metadata)
    for call in (once, stream.read()):
        error = await refused(call, INVALID, reason, word.replace("at least", ""), field=field)
        assert USAGE_TRAILER not in dict(error.trailing_metadata() or ())
    after = (await world.conservation()).engines[-1].reading.generation_tokens
    assert after == before


async def test_an_unknown_model_is_named_beside_those_that_are_served(world: WholeWorld) -> None:
    error = await refused(
        world.inference.GenerateOnce(
            inference_pb2.GenerateOnceRequest(spec=spec(model="gpt-none")),
            metadata=world.bearer(PAYER),
        ),
        MISSING,
        "UNKNOWN_MODEL",
        "'gpt-none'",
        "tiny, tiny-support",
    )
    info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
    assert info is not None
    assert dict(info.metadata) == {"model": "gpt-none"}


async def test_a_wrong_key_opens_nothing(world: WholeWorld) -> None:
    await world.key("bad-revoked", PAYER, "a secret that was revoked")
    await world.control.RevokeKey(pricing_pb2.RevokeKeyRequest(key_id="bad-revoked"))
    for authorization, reason in (
        (None, "NO_KEY"),
        ("", "NO_KEY"),
        ("Bearer ", "NO_KEY"),
        ("Basic abc", "NO_KEY"),
        (f"secret of {PAYER}", "NO_KEY"),
        (f"Bearer {'x' * 2_000}", "NO_KEY"),
        ("Bearer nobody", "UNKNOWN_KEY"),
        (f"Bearer {PAYER}-key", "UNKNOWN_KEY"),
        ("Bearer a secret that was revoked", "UNKNOWN_KEY"),
    ):
        metadata = (("authorization", authorization),) if authorization is not None else ()
        for call in doors(world, metadata):
            await refused(call, grpc.StatusCode.UNAUTHENTICATED, reason)


def doors(world: WholeWorld, metadata: Sequence[tuple[str, str]]) -> Iterator[Awaitable[Any]]:
    """A call of each method of inference."""
    to = world.inference
    made = spec()
    yield to.GenerateOnce(inference_pb2.GenerateOnceRequest(spec=made), metadata=metadata)
    yield to.Generate(inference_pb2.GenerateRequest(spec=made), metadata=metadata).read()
    yield to.ListModels(inference_pb2.ListModelsRequest(), metadata=metadata)
    yield to.GetConservation(inference_pb2.GetConservationRequest(), metadata=metadata)


async def test_an_id_stands_for_one_body(world: WholeWorld) -> None:
    """Both while the first runs and when it is settled; the first comes to no harm."""
    name = new_id("same")
    first = request(PAYER, name, 4, output=300)
    other = request(PAYER, name, 5, output=300)
    call = world.inference.Generate(
        inference_pb2.GenerateRequest(spec=first.spec), metadata=world.bearer(PAYER)
    )
    assert (await call.read()).HasField("started")
    for _ in range(2):
        error = await refused(
            world.inference.GenerateOnce(
                inference_pb2.GenerateOnceRequest(spec=other.spec), metadata=world.bearer(PAYER)
            ),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            repr(name),
            "use a new id",
        )
        info = grpcs.details_of(error, error_details_pb2.ErrorInfo)
        assert info is not None
        assert dict(info.metadata) == {"request_id": name}
        answered = await world.ask(first)
        assert answered.completed
    call.cancel()


@pytest.mark.parametrize(
    "method",
    [
        "inference.v1.InferenceService/Generate",
        "inference.v1.InferenceService/GenerateOnce",
        "pricing.v1.PricingService/GetBalance",
        "pricing.v1.ControlService/GrantCredit",
        "ledger.v1.LedgerService/Append",
        "ledger.v1.LedgerService/ReadEvents",
    ],
)
async def test_bytes_that_are_no_message_are_refused(world: WholeWorld, method: str) -> None:
    part = method.split(".")[0]
    address = world.environment[f"TOLLBOOK_{part.upper()}_ADDRESS"]
    async with grpcs.channel(address) as channel:
        name = f"/tollbook.{method}"
        metadata = world.bearer(PAYER)
        if name.endswith(("/Generate", "/ReadEvents")):
            stream: Any = channel.unary_stream(name)
            call = stream(b"\xff\xff", metadata=metadata).read()
        else:
            unary: Any = channel.unary_unary(name)
            call = unary(b"\xff\xff", metadata=metadata)
        await refused(call, INVALID, "MALFORMED_REQUEST", "cannot be read")


# Pricing --------------------------------------------------------------------------------

GOOD_CARD = CARD.format(card="bad", model="bad")
# A card of eleven lines, the first of them empty; what is wrong with it, where, and a word of it.
CARDS: dict[str, tuple[str, str, str]] = {
    "no-number": (GOOD_CARD.replace("0.60", "cheap"), "line 11, column 73", "'cheap'"),
    "negative": (GOOD_CARD.replace("0.60", "-0.60"), "line 11, column 73", "not negative"),
    "exponent": (GOOD_CARD.replace("0.60", "1e-3"), "line 11, column 73", "no exponent"),
    "nan": (GOOD_CARD.replace("0.60", ".nan"), "line 11, column 73", "decimal number"),
    "too-fine": (GOOD_CARD.replace("0.60", "0." + "0" * 12 + "1"), "line 11, column 73", "whole"),
    "not-closed": (GOOD_CARD + "  - {id: x, match: {", "line 12, column 21", "expected"),
    "tab": (GOOD_CARD.replace("currency", "\tcurrency"), "line 3, column 1", "cannot start"),
    "misspelt": (GOOD_CARD.replace("currency", "curency"), "line 3, column 1", "'curency'"),
    "no-date": (GOOD_CARD.replace("2026-01", "2026-13"), "line 4, column 17", "RFC 3339"),
    "no-direction": (
        GOOD_CARD.replace("direction: out", "direction: up"), "line 11, column 46", "in, none, out",
    ),
    "line-twice": (GOOD_CARD.replace("id: cached", "id: in"), "line 9, column 10", "stands twice"),
    "alias": ("a: &a [*a]", "line 1, column 8", "aliases"),
    "no-card": ("- a list", "line 1, column 1", "card: NAME"),
}  # fmt: skip


@pytest.mark.parametrize("case", CARDS)
async def test_a_bad_card_is_refused_by_line_and_column(
    world: WholeWorld, tmp_path: Path, case: str
) -> None:
    yaml, place, word = CARDS[case]
    control = (await world.sizes())["control"]
    publish = pricing_pb2.PublishRateCardRequest(yaml=yaml, author="a", approver="b")
    error = await refused(
        world.control.PublishRateCard(publish), INVALID, "INVALID_RATE_CARD", field=place
    )
    bad = grpcs.details_of(error, error_details_pb2.BadRequest)
    assert bad is not None
    [said] = [broken.description for broken in bad.field_violations if broken.field == place]
    assert word in said
    assert (await world.sizes())["control"] == control
    if case in ("no-number", "tab"):
        file = tmp_path / "card.yaml"
        file.write_text(yaml)
        done = await world.tollbook("cards", "publish", str(file), "--author", "a")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{file}: {place}: {said}" in done.stderr.splitlines()


async def test_credit_is_granted_by_a_good_amount_to_a_known_account_alone(
    world: WholeWorld,
) -> None:
    control = (await world.sizes())["control"]

    def grant(amount_pico: str, account_id: str = PAYER, currency: str = "USD") -> Awaitable[Any]:
        made = control_pb2.CreditGranted(
            grant_id=new_id("grant"),
            account_id=account_id,
            amount=money_pb2.Amount(currency=currency, amount_pico=amount_pico),
        )
        answer: Awaitable[Any] = world.control.GrantCredit(
            pricing_pb2.GrantCreditRequest(grant=made), timeout=10
        )
        return answer

    for amount in ("-5", "0", str(10**31)):
        await refused(grant(amount), INVALID, FIELD, "more than 0", field="grant")
    for amount in ("", "1.5", "1e9", "NaN", "five", "9" * 40, " 5", "٣"):
        await refused(grant(amount), INVALID, FIELD, field="grant.amount.amount_pico")
    euro = grant("5", currency="EUR")
    await refused(euro, INVALID, "CURRENCY_MISMATCH", "USD", field="grant.amount.currency")
    await refused(grant("5", "nobody"), MISSING, "ACCOUNT_NOT_FOUND", "'nobody'")
    nobody = pricing_pb2.GetBalanceRequest(account_id="nobody")
    await refused(world.pricing.GetBalance(nobody), MISSING, "ACCOUNT_NOT_FOUND", "'nobody'")
    key = control_pb2.KeyCreated(key_id="k", account_id=PAYER, secret_digest=b"short")
    made = world.control.CreateKey(pricing_pb2.CreateKeyRequest(key=key))
    await refused(made, INVALID, FIELD, "32 bytes", field="key.secret_digest")
    assert (await world.sizes())["control"] == control


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("grant", PAYER, "-5"), "more than 0"),
        (("grant", PAYER, "5,00"), "AMOUNT"),
        (("grant", "nobody", "5"), "'nobody'"),
        (("balance", "nobody"), "'nobody'"),
        (("receipt", PAYER, "no-such-event"), "'no-such-event'"),
        (("keys", "create", "nobody"), "'nobody'"),
        (("cards", "publish", "no-such-file.yaml"), "no-such-file.yaml cannot be read"),
    ],
)
async def test_the_command_line_says_it_in_one_line(
    world: WholeWorld, arguments: tuple[str, ...], words: str
) -> None:
    done = await world.tollbook(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("tollbook: ")
    assert words in line


# The ledger -----------------------------------------------------------------------------


async def test_an_append_that_cannot_be_is_refused(world: WholeWorld) -> None:
    before = await world.sizes()

    def append(**fields: Any) -> Awaitable[Any]:
        given: dict[str, Any] = {"log": "control", "idempotency_key": "bad", "payload": b"p"}
        wanted = ledger_pb2.AppendRequest(**{**given, **fields})
        answer: Awaitable[Any] = world.ledger.Append(wanted, timeout=10)
        return answer

    moved = grpc.StatusCode.FAILED_PRECONDITION
    await refused(append(log=LOG), moved, "NOT_AN_APPEND_LOG", "Kafka partition alone")
    await refused(append(log="nowhere"), MISSING, "NO_SUCH_LOG", "'nowhere'", "control, cuts")
    await refused(append(expected_size=1 << 40), moved, "SIZE_MOVED", "read what was added")
    await refused(append(expected_size=-1), INVALID, FIELD, field="expected_size")
    await refused(append(idempotency_key=""), INVALID, FIELD, field="idempotency_key")
    await refused(append(payload=b""), INVALID, FIELD, field="payload")
    huge = b"x" * ((1 << 20) + 1)
    await refused(append(payload=huge), INVALID, FIELD, "1048576", field="payload")
    beyond = ledger_pb2.GetEntryRequest(log=LOG, position=1 << 40)
    range_ = grpc.StatusCode.OUT_OF_RANGE
    await refused(world.ledger.GetEntry(beyond), range_, "BEYOND_THE_LOG", LOG)
    after, usage_logs = await world.sizes(), await world.leaves()
    others = (before.keys() | after.keys()) - usage_logs.keys()
    assert {log: after.get(log) for log in others} == {log: before.get(log) for log in others}
    # There the engine says within a second of an earlier test's request what it counted.
    for log, entries in usage_logs.items():
        for raw in entries[before.get(log, 0) :]:
            record = usage_pb2.UsageRecord.FromString(leaves.decode(raw).value)
            assert record.HasField("engine_reading"), (log, record)


async def test_a_control_record_that_is_none_is_kept_and_moves_nothing(world: WholeWorld) -> None:
    """Past pricing's own checks, straight into the log: rubbish, and a grant that is none."""
    key = new_id("bad")
    payload = b"\xff no record at all"
    appended = await world.ledger.Append(
        ledger_pb2.AppendRequest(log="control", idempotency_key=key, payload=payload)
    )
    found = await world.ledger.GetEntry(
        ledger_pb2.GetEntryRequest(log="control", position=appended.position)
    )
    assert payload in found.leaf
    other = ledger_pb2.AppendRequest(log="control", idempotency_key=key, payload=b"other")
    taken = grpc.StatusCode.ALREADY_EXISTS
    await refused(world.ledger.Append(other), taken, "IDEMPOTENCY_KEY_TAKEN")
    for amount in ("-5", "0", str(10**31), "1e9", ""):
        granted = control_pb2.CreditGranted(
            grant_id=new_id("bad"),
            account_id=PAYER,
            amount=money_pb2.Amount(currency="USD", amount_pico=amount),
        )
        await world.append(new_id("bad"), {"credit_granted": granted})


# The auditor ----------------------------------------------------------------------------


async def test_the_auditor_refuses_wrong_keys_and_what_is_no_export(
    world: WholeWorld, tmp_path: Path
) -> None:
    await again(lambda: world.control.CreateCut(pricing_pb2.CreateCutRequest(), timeout=30))
    export, right = tmp_path / "export", tmp_path / "right"
    assert (await world.tollbook("export", str(export))).returncode == 0
    shutil.copy(world.environment["TOLLBOOK_VERIFIER_KEYS"], right)
    names = [line.split("+")[0] for line in right.read_text().splitlines()]

    def keys(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    private = str(SignerKey.generate("mine"))
    strangers = "".join(f"{SignerKey.generate(f'other/{n}').verifier}\n" for n in range(3))
    forged = "".join(f"{SignerKey.generate(name).verifier}\n" for name in names)
    for export_, keys_, words in (
        (export, keys("strangers", strangers), "is this the right key file"),
        (export, keys("forged", forged), "is this the right key file"),
        (export, keys("text", "this is no key\n"), "line 1"),
        (export, keys("empty", "\n# nothing\n"), "holds no key"),
        (export, keys("private", private), "is a private key"),
        (export, tmp_path / "absent", "cannot read the key file"),
        (tmp_path / "nowhere", right, "there is no directory"),
        (export / "logs" / LOG, right, "is no export"),
    ):
        done = await audit_alone(export_, keys_)
        assert done.returncode == 2, done.stdout
        assert words in json.loads(done.stdout)["unusable"]
        assert words in done.stderr
    # One log's key swapped for a forged one: the rest is audited, and that log is named.
    mixed = [
        str(SignerKey.generate(name).verifier) if name.endswith(f"/{LOG}") else line
        for name, line in zip(names, right.read_text().splitlines(), strict=True)
    ]
    done = await audit_alone(export, keys("mixed", "\n".join(mixed)))
    assert done.returncode == 1
    assert json.loads(done.stdout)["first"].startswith(f"{LOG} checkpoint")
    done = await audit_alone(export, right)
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, [])
