"""The whole system as its callers see it: real requests to the engine, the broker, the books.

Adds to pricing_world's World the callers of inference. Its reference is what they were told: each
request is entered once, by the usage summary that its last answer carried, and then the services'
books must be that, to the last unit. Callers do what a careful client does: the same id again
while the service is away, a new id when the answer says that the old one is settled as lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Self

import grpc
import grpc.aio
from tests.integration.pricing_world import CARD, World, again, charge, check_balance, reason_of

from kernel import grpcs
from kernel.leaf import Leaf, decode
from kernel.placement import CUT_LOG, partition_of_log
from tollbook.demo import settle
from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2, pricing_pb2
from tollbook.stack import HOUSE_ACCOUNT, Stack
from tollbook.usage.v1 import usage_pb2

MODELS: Final = ("tiny", "tiny-support")
USAGE_TRAILER: Final = "tollbook-usage-bin"
# From a kill -9 of inference to its first answer is half a minute.
PATIENCE_S: Final = 150.0
# A server that stops ends a call that is still under way after its grace as CANCELLED, which is
# no word of the service about the request: the caller, who did not cancel, sends the same id again.
_SERVER_GONE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_PAUSE_S: Final = 0.1
_RECEIPTS_AT_ONCE: Final = 16

Identity = tuple[str, str]
"""Account id, event id."""


@dataclass
class Asked:
    """A logical request, and what its callers saw of it."""

    account_id: str
    spec: inference_pb2.GenerationSpec
    once: bool = False
    """Asked for in one answer, not as a stream."""
    leave_after: int = 0
    """Cancelled by the caller when it has seen so many tokens; 0: never."""
    most_seen: int = 0
    """Tokens of the attempt that saw the most."""
    streaming: bool = False
    """Tokens came, and the answer is not whole yet."""
    ids: list[int] = field(default_factory=list)
    """Tokens of the answer."""
    summary: inference_pb2.UsageSummary | None = None
    replayed: bool = False
    """Whether the last answer was an earlier run's."""

    @property
    def request_id(self) -> str:
        """Its id."""
        return self.spec.request_id

    @property
    def completed(self) -> bool:
        """Whether its caller has the whole answer."""
        return (
            self.summary is not None
            and self.summary.outcome == usage_pb2.OUTCOME_COMPLETE
            and not self.leave_after
        )


def request(
    account_id: str,
    request_id: str,
    number: int = 0,
    *,
    output: int = 8,
    prompt: int = 24,
    model: str = "tiny",
    **kinds: Any,
) -> Asked:
    """A request for exactly `output` tokens; `number` decides its prompt."""
    source = random.Random(number)
    # A third begin alike, as system prompts do, so that the cache has hits.
    shared = list(range(16, 80)) if number % 3 == 0 else []
    ids = shared + [source.randint(16, 400) for _ in range(prompt)]
    spec = inference_pb2.GenerationSpec(
        request_id=request_id,
        model=model,
        tokens=inference_pb2.TokenPrompt(token_ids=ids),
        sampling=inference_pb2.SamplingParams(
            max_tokens=output, temperature=0.8, seed=number, ignore_eos=True
        ),
    )
    return Asked(account_id, spec, **kinds)


class WholeWorld(World):
    """Clients of a running stack with all its parts. Use it as an async context."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.environment = stack.environment()
        self.asked: dict[tuple[str, str], Asked] = {}
        self._secrets: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.inference_channel = grpcs.channel(self.stack.address("inference"))
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(self.inference_channel)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.inference_channel.close()
        await super().__aexit__(*exc)

    # Setting up -------------------------------------------------------------

    async def publish_prices(self) -> None:
        """The same prices for both models."""
        for model in MODELS:
            card = CARD.format(card=f"whole-{model}", model=model)
            await again(lambda card=card: self.publish(card))  # type: ignore[misc]

    async def customers(self, *account_ids: str) -> None:
        """Accounts with credit and a key each."""
        await self.open(*account_ids)
        for account_id in account_ids:
            self._secrets[account_id] = f"secret of {account_id}"
            await self.key(f"{account_id}-key", account_id, self._secrets[account_id])

    async def key(self, key_id: str, account_id: str, secret: str) -> None:
        """A key with this secret."""
        made = control_pb2.KeyCreated(
            key_id=key_id,
            account_id=account_id,
            secret_digest=hashlib.sha256(secret.encode()).digest(),
        )
        await self.control.CreateKey(pricing_pb2.CreateKeyRequest(key=made), timeout=30)

    async def house(self) -> tuple[tuple[str, str], ...]:
        """Call metadata of who runs the house; its account has no credit and no books here."""
        if HOUSE_ACCOUNT not in self._secrets:
            made = control_pb2.AccountCreated(account_id=HOUSE_ACCOUNT, currency="USD")
            await self.control.CreateAccount(
                pricing_pb2.CreateAccountRequest(account=made), timeout=30
            )
            await self.key(f"{HOUSE_ACCOUNT}-key", HOUSE_ACCOUNT, f"secret of {HOUSE_ACCOUNT}")
            self._secrets[HOUSE_ACCOUNT] = f"secret of {HOUSE_ACCOUNT}"
        return self.bearer(HOUSE_ACCOUNT)

    def bearer(self, account_id: str) -> tuple[tuple[str, str], ...]:
        """Call metadata of an account's caller."""
        return (("authorization", f"Bearer {self._secrets[account_id]}"),)

    # Calling ----------------------------------------------------------------

    async def ask(self, asked: Asked) -> Asked:
        """Ask until there is an answer; enter what it used into the reference. Gives the request
        that was answered whole or left: another one, under a new id, when the first was lost.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                summary = await self._attempt(asked)
            except grpc.aio.AioRpcError as error:
                asked.streaming = False
                if error.code() in _SERVER_GONE and time.monotonic() < deadline:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if reason_of(error) != "SETTLED_WITH_ERROR":
                    raise
                self._enter(asked, _told_of(error), [])
                spec = inference_pb2.GenerationSpec()
                spec.CopyFrom(asked.spec)
                spec.request_id = f"{asked.request_id}-anew"
                return await self.ask(Asked(asked.account_id, spec, asked.once, asked.leave_after))
            if summary is not None:
                return asked

    async def _attempt(self, asked: Asked) -> inference_pb2.UsageSummary | None:
        """One call. None when the caller left it."""
        metadata = self.bearer(asked.account_id)
        if asked.once:
            answer = await self.inference.GenerateOnce(
                inference_pb2.GenerateOnceRequest(spec=asked.spec),
                metadata=metadata,
                timeout=PATIENCE_S,
            )
            asked.replayed = answer.replayed
            self._enter(asked, answer.usage, list(answer.choices[0].token_ids))
            return asked.summary
        call = self.inference.Generate(
            inference_pb2.GenerateRequest(spec=asked.spec), metadata=metadata, timeout=PATIENCE_S
        )
        ids: list[int] = []
        summary: inference_pb2.UsageSummary | None = None
        left = False
        try:
            async for message in call:
                kind = message.WhichOneof("event")
                if kind == "started":
                    asked.replayed = message.started.replayed
                elif kind == "delta":
                    ids += message.delta.token_ids
                    assert message.delta.cumulative_tokens == len(ids)
                    asked.streaming = True
                elif kind == "usage":
                    summary = message.usage
                asked.most_seen = max(asked.most_seen, len(ids))
                if 0 < asked.leave_after <= len(ids) and not asked.replayed:
                    left = call.cancel()
        except (asyncio.CancelledError, grpc.aio.AioRpcError):
            # Our own cancel comes back as one of these; all else must go on its way.
            if not left:
                raise
            asked.streaming = False
            return None
        assert summary is not None, "a stream ended well and said nothing of usage"
        asked.streaming = False
        self._enter(asked, summary, ids)
        return summary

    def _enter(self, asked: Asked, told: inference_pb2.UsageSummary, ids: list[int]) -> None:
        """What a caller was told, into the reference: the first time as new, then as the same."""
        assert told.outcome, told
        assert (told.account_id, told.request_id) == (asked.account_id, asked.request_id)
        counts = counts_of(told.quantities)
        assert counts.output == told.output_tokens >= asked.most_seen
        if told.outcome not in (
            usage_pb2.OUTCOME_ENGINE_LOST,
            usage_pb2.OUTCOME_ERROR_MID_STREAM,
            usage_pb2.OUTCOME_ERROR_BEFORE_FIRST_TOKEN,
        ):
            # What is charged as handed over is what this caller got, token by token.
            assert len(ids) == counts.output - counts.undelivered
        if told.outcome == usage_pb2.OUTCOME_COMPLETE:
            assert counts.undelivered == 0
            assert counts.output == asked.spec.sampling.max_tokens
        asked.ids, asked.summary = ids, told
        key = (asked.account_id, asked.request_id)
        if key in self.asked:
            first = self.asked[key]
            assert (first.summary, first.ids) == (told, ids)
            return
        self.asked[key] = asked
        account = self.accounts[asked.account_id]
        account.events.append(asked.request_id)
        account.requests += 1
        account.input_tokens += counts.plain
        account.cached_tokens += counts.cached
        account.output_tokens += counts.output
        account.charged += counts.charge(told.outcome)

    # Waiting and checking ---------------------------------------------------

    async def conservation(self) -> inference_pb2.GetConservationResponse:
        """Inference's account when nothing is in flight and the broker has everything."""
        metadata = await again(self.house)
        return await again(lambda: settle.drained(self.inference, metadata, PATIENCE_S))

    async def recorded(self) -> list[pricing_pb2.LogPosition]:
        """Wait until all that anyone sent is in the logs; their sizes then."""
        await self.conservation()
        return await self.logged()

    async def logged(self) -> list[pricing_pb2.LogPosition]:
        """Wait until all that the broker has is in the logs; their sizes then."""
        topic, partitions = (
            self.environment["TOLLBOOK_TOPIC"],
            int(self.environment["TOLLBOOK_PARTITIONS"]),
        )
        ends = await settle.broker_ends(self.environment["TOLLBOOK_KAFKA"], topic, partitions)
        sizes = await again(lambda: settle.logged(self.ledger, ends, PATIENCE_S))
        return [
            pricing_pb2.LogPosition(log=log, size=size)
            for log, size in sizes.items()
            if log != CUT_LOG
        ]

    async def check_residual(self) -> None:
        """No token of any engine is unaccounted for: by inference's own books, and by the logs'."""
        state = await self.conservation()
        assert state.engines
        assert [engine.residual_tokens for engine in state.engines] == [0] * len(state.engines)
        await again(lambda: settle.counted(self.control, PATIENCE_S))

    async def receipts(self, events: Iterable[Identity]) -> dict[Identity, pricing_pb2.Receipt]:
        """The receipt of each event."""
        room = asyncio.Semaphore(_RECEIPTS_AT_ONCE)

        async def one(identity: Identity) -> tuple[Identity, pricing_pb2.Receipt]:
            account_id, event_id = identity
            wanted = pricing_pb2.GetReceiptRequest(account_id=account_id, event_id=event_id)
            async with room:
                answer = await again(lambda: self.pricing.GetReceipt(wanted, timeout=20))
            return identity, answer.receipt

        return dict(await asyncio.gather(*map(one, events)))

    async def check_receipts(self, asked: Iterable[Asked]) -> None:
        """Each has one receipt, of the leaves that its caller was told, and their price."""
        by_identity = {(one.account_id, one.request_id): one for one in asked}
        for identity, receipt in (await self.receipts(by_identity)).items():
            summary = by_identity[identity].summary
            assert summary is not None
            assert [line.leaf for line in receipt.lines] == list(summary.quantities)
            assert receipt.outcome == summary.outcome
            assert receipt.log == summary.log
            assert not receipt.suspense
            cost = counts_of(summary.quantities).charge(summary.outcome)
            assert Fraction(receipt.total.amount_pico) == cost

    async def check_everything(self, asked: Iterable[Asked]) -> None:
        """Residual 0, these receipts right, and every balance what all callers were told."""
        await self.check_residual()
        await self.check()
        await self.check_receipts(asked)

    async def check_now(self, asked: Asked) -> None:
        """One request's charge stands in its account's balance, and nothing else new."""
        answer = await self.balance(asked.account_id, event_id=asked.request_id)
        check_balance(answer.balance, self.accounts[asked.account_id])

    async def put(self, partition: int, value: bytes) -> int:
        """Send bytes to the topic; the offset they have there."""
        await self.send_raw(partition, value)
        return self._ends[partition] - 1

    async def entry(self, log: str, offset: int) -> tuple[Leaf, bytes]:
        """The leaf of the record at an offset, once the ledger has read it, and what stands aside.

        Every record becomes an entry, so the offset is the position.
        """
        await again(lambda: settle.logged(self.ledger, {log: offset + 1}, PATIENCE_S))
        found = await self.ledger.GetEntry(
            ledger_pb2.GetEntryRequest(log=log, position=offset), timeout=10
        )
        leaf = decode(found.leaf)
        assert leaf.offset == offset
        return leaf, found.aside

    async def leaves(self) -> dict[str, list[bytes]]:
        """Every entry of every usage log."""
        found: dict[str, list[bytes]] = {}
        for log, size in (await self.sizes()).items():
            if partition_of_log(log) is None:
                continue
            found[log] = []
            async for answer in self._read(log, size):
                assert answer.first_position == len(found[log])
                found[log] += answer.leaves
        return found

    async def logs(self) -> dict[str, ledger_pb2.LogState]:
        """The state of every log."""
        listed = await again(lambda: self.ledger.ListLogs(ledger_pb2.ListLogsRequest(), timeout=10))
        return {state.log: state for state in listed.logs}

    # Programs ---------------------------------------------------------------

    async def tollbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, on this stack."""
        return await _run(["tollbook.cli", *arguments], {**os.environ, **self.environment})


async def audit_alone(export: Path, keys: Path) -> subprocess.CompletedProcess[str]:
    """The auditor's own program, with nothing of the system's settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLBOOK_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return await _run(["audit", str(export), "--key", str(keys), "--json"], environment)


async def _run(
    module: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", *module],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@dataclass(frozen=True)
class Counts:
    """The leaves of a request that inference makes."""

    plain: int
    cached: int
    output: int
    undelivered: int

    def charge(self, outcome: usage_pb2.Outcome.ValueType) -> Fraction:
        """What they cost, in pico-dollars; nothing for a failure that gave nothing."""
        failed = (usage_pb2.OUTCOME_ENGINE_LOST, usage_pb2.OUTCOME_ERROR_MID_STREAM)
        if outcome in failed and self.output == self.undelivered:
            return Fraction(0)
        return charge(self.plain, self.cached, self.output, self.undelivered, outcome)


def counts_of(quantities: Sequence[usage_pb2.Quantity]) -> Counts:
    """Sums of the leaves; fails on a leaf that inference does not make."""
    plain = cached = output = undelivered = 0
    for leaf in quantities:
        assert leaf.unit == usage_pb2.UNIT_TOKEN, leaf
        if leaf.direction == usage_pb2.DIRECTION_OUT:
            output += leaf.amount
            undelivered += leaf.undelivered_amount
        elif leaf.cache_use == usage_pb2.CACHE_USE_READ:
            cached += leaf.amount
        else:
            assert leaf.direction == usage_pb2.DIRECTION_IN, leaf
            plain += leaf.amount
    return Counts(plain, cached, output, undelivered)


def _told_of(error: grpc.aio.AioRpcError) -> inference_pb2.UsageSummary:
    """The usage that an error carries."""
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    return inference_pb2.UsageSummary.FromString(trailing[USAGE_TRAILER])
