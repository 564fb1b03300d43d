"""All requests under way, and the answers to those that are settled.

Owns idempotence: one (account, request id) is one run of the engine and one
event, whoever sends it, however often, also at once and after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from inference.app.embedding import (
    Embedding,
    EmbeddingReader,
    answer_of_vectors,
    ended_unread,
    vectors_of,
)
from inference.app.generation import Generation
from inference.app.order import Caller, Order, World
from inference.app.reader import Reader
from inference.app.shelf import Served, Shelf
from inference.domain.event import body_digest, summary_of
from inference.domain.outcome import End
from inference.domain.records import Settled
from kernel import errors
from kernel.ids import new_id
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

# Callers that may listen to one request.
MAX_READERS: Final = 64
# Prompts that are counted at once without a run, in all and of one account.
MAX_COUNTS: Final = 64
MAX_ACCOUNT_COUNTS: Final = 16
# How long an aborted request may take to settle at a shutdown.
ABORT_MS: Final = 5_000


Spec = TypeVar("Spec")


class Requests:
    """The registry. Everything runs on one event loop, and finding a request and
    entering it are one step: two that come at once cannot both be the first.
    """

    def __init__(
        self,
        world: World,
        salt_key: bytes,
        max_requests: int,
        max_account_requests: int,
    ) -> None:
        self._world = world
        self._shelf = Shelf({})
        self._by_model: Counter[str] = Counter()
        # Told that a request ended.
        self.on_end: Callable[[], None] = lambda: None
        self._salt_key = salt_key
        self._max_requests = max_requests
        self._max_account_requests = max_account_requests
        self._by_account: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._live: dict[tuple[str, str], Generation | Embedding] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: errors.Unavailable | None = errors.Unavailable(
            "the engine is starting", reason="STARTING", retry_after_ms=2_000
        )
        # Set by a generation that broke: the process cannot vouch for its counts any more.
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def admit(self, shelf: Shelf) -> None:
        """Take requests from now on, for what is on the shelf when they come."""
        self._shelf = shelf
        self._closed = None

    def close(self, reason: errors.Unavailable) -> None:
        """Take no new requests; answers to settled ones are still given."""
        self._closed = reason

    def in_use(self, name: str) -> int:
        """Requests under way that have this served name."""
        return self._by_model[name]

    def in_flight(self) -> tuple[int, int]:
        """(requests not settled, the engine's tokens of them so far)."""
        return len(self._live), sum(live.counted_tokens for live in self._live.values())

    def find(
        self, caller: Caller, spec: inference.GenerationSpec, service_tier: str = ""
    ) -> Reader | Settled:
        """Attach to the request, give its settled answer, or begin it, in a tier that prices and
        turns go by.

        Errors: NotFound (model), AlreadyExists (other body), Unavailable.
        """
        digest = body_digest(spec)
        key = (caller.account_id, spec.request_id or new_id("req"))
        if (known := self._known(key, digest)) is not None:
            # The digest tells the kinds apart.
            return known  # type: ignore[return-value]
        served = self._place_for(caller, spec.model)
        if self._world.engine.capabilities().embeds:
            raise errors.Unimplemented(
                f"model {spec.model!r} gives embeddings and generates no text",
                reason="MODEL_CANNOT_GENERATE",
                metadata={"model": spec.model[:256]},
            )
        generation = Generation(
            self._world, self._order(key, caller, spec, digest, served, service_tier)
        )
        reader = generation.reader()
        self._begin(key, generation, generation.run())
        return reader

    def embed(
        self, caller: Caller, request: inference.EmbedRequest, service_tier: str = ""
    ) -> EmbeddingReader | Settled:
        """The same for vectors.

        Errors: as `find`, and Unimplemented, of a model that generates.
        """
        digest = body_digest(request)
        key = (caller.account_id, request.request_id or new_id("req"))
        if (known := self._known(key, digest)) is not None:
            return known  # type: ignore[return-value]
        served = self._place_for(caller, request.model)
        if not self._world.engine.capabilities().embeds:
            raise errors.Unimplemented(
                f"model {request.model!r} generates text and gives no embeddings, and no model"
                " served here does",
                reason="MODEL_CANNOT_EMBED",
                metadata={"model": request.model[:256]},
            )
        embedding = Embedding(
            self._world, self._order(key, caller, request, digest, served, service_tier)
        )
        reader = embedding.reader()
        self._begin(key, embedding, embedding.run())
        return reader

    def _known(
        self, key: tuple[str, str], digest: bytes
    ) -> Reader | EmbeddingReader | Settled | None:
        """A reader of the request under way, or its settled answer, where there is one.

        Errors: AlreadyExists (other body), Unavailable (too many readers).
        """
        if (live := self._live.get(key)) is not None:
            _same_body(key[1], digest, live.order.body_digest)
            return self._attach(live)
        replay = self._world.spool.journal.replays.get(key)
        if replay is None:
            return None
        _same_body(key[1], digest, replay.body_digest)
        return self._settled(key)

    def _place_for(self, caller: Caller, name: str) -> Served:
        """What serves a model, where there is room. Errors: NotFound, Unavailable."""
        served = self.model(caller, name)
        if len(self._live) >= self._max_requests:
            raise errors.Unavailable(
                f"{self._max_requests} requests are under way", reason="QUEUE_FULL"
            )
        if self._by_account[caller.account_id] >= self._max_account_requests:
            raise errors.Unavailable(
                f"{self._max_account_requests} requests of this account are under way",
                reason="ACCOUNT_QUEUE_FULL",
            )
        return served

    def model(self, caller: Caller, name: str) -> Served:
        """What serves a name to a caller. Errors: Unavailable (not yet, or no more), NotFound."""
        # First: a service that starts or stops does not say of any model that it has none.
        if self._closed is not None:
            raise self._closed
        return self._shelf.find(name, caller.account_id, caller.project_id)

    async def count(self, caller: Caller, spec: inference.GenerationSpec) -> int:
        """Tokens of the prompt, as a run of the request would render and count it.

        Errors: NotFound (model), InvalidArgument (prompt), Unavailable.
        """
        self.model(caller, spec.model)
        if self._counts[caller.account_id] >= MAX_ACCOUNT_COUNTS:
            raise errors.Unavailable(
                f"{MAX_ACCOUNT_COUNTS} prompts of this account are being counted",
                reason="ACCOUNT_QUEUE_FULL",
            )
        if self._counts.total() >= MAX_COUNTS:
            raise errors.Unavailable(f"{MAX_COUNTS} prompts are being counted", reason="QUEUE_FULL")
        self._counts[caller.account_id] += 1
        try:
            prompt = await self._world.engine.render(spec, "")
        finally:
            _less(self._counts, caller.account_id)
        return len(prompt.token_ids)

    def _order(
        self,
        key: tuple[str, str],
        caller: Caller,
        spec: Spec,
        digest: bytes,
        served: Served,
        service_tier: str,
    ) -> Order[Spec]:
        return Order(
            caller=caller,
            request_id=key[1],
            spec=spec,
            body_digest=digest,
            target=served.target,
            provenance=served.provenance,
            cache_salt=self._salt_of(caller.account_id),
            service_tier=service_tier,
        )

    def _begin(
        self,
        key: tuple[str, str],
        live: Generation | Embedding,
        run: Coroutine[Any, Any, None],
    ) -> None:
        self._live[key] = live
        self._by_account[key[0]] += 1
        self._by_model[live.order.target.served_name] += 1
        task = asyncio.create_task(self._run(key, live, run), name=f"request {key[1]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self,
        key: tuple[str, str],
        live: Generation | Embedding,
        run: Coroutine[Any, Any, None],
    ) -> None:
        try:
            await run
        except Exception as error:
            # Without its settlement the count is wrong until the spool is read again.
            log.exception("a request broke", request=key[1])
            if not self.broken.done():
                self.broken.set_result(error)
        finally:
            del self._live[key]
            _less(self._by_account, key[0])
            _less(self._by_model, live.order.target.served_name)
            self.on_end()

    def _attach(self, live: Generation | Embedding) -> Reader | EmbeddingReader:
        if live.readers >= MAX_READERS:
            raise errors.Unavailable(
                f"{MAX_READERS} callers listen to this request", reason="TOO_MANY_READERS"
            )
        return live.reader()

    def _settled(self, key: tuple[str, str]) -> Settled:
        record = self._world.spool.read(self._world.spool.journal.replays[key].ref)
        if not isinstance(record, Settled) or (record.account_id, record.request_id) != key:
            raise errors.Internal("the settled answer cannot be read", reason="SPOOL_CHANGED")
        return record

    def _salt_of(self, account_id: str) -> str:
        """Keeps one account's cached prefixes from being felt by another (CVE-2025-46570)."""
        return hmac.new(self._salt_key, account_id.encode(), hashlib.sha256).hexdigest()

    async def drain(self, timeout_ms: int) -> None:
        """Wait for the requests under way; after `timeout_ms` end them, counted."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_ms / 1000)
        for live in tuple(self._live.values()):
            live.stop(End.DRAINED)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=ABORT_MS / 1000)
        if self._live:
            log.error("requests could not be settled; the next start will", count=len(self._live))

    async def settled(self) -> None:
        """Return when nothing is under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


def _less(counter: Counter[str], name: str) -> None:
    """One less, and no entry for none: names are the callers'."""
    counter[name] -= 1
    if not counter[name]:
        del counter[name]


def _same_body(request_id: str, digest: bytes, earlier: bytes) -> None:
    if digest != earlier:
        raise errors.AlreadyExists(
            f"request id {request_id!r} was used for another body; use a new id",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request_id},
        )


_FAILED: Final = frozenset(
    {
        usage.OUTCOME_ENGINE_LOST,
        usage.OUTCOME_ERROR_BEFORE_FIRST_TOKEN,
        usage.OUTCOME_ERROR_MID_STREAM,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A settled request's answer, as its first caller got it."""

    request_id: str
    prompt_tokens: int
    choices: tuple[inference.Choice, ...]
    summary: inference.UsageSummary
    failure: errors.TollbookError | None


def answer_of(record: Settled) -> Answer:
    """Read a settled record back."""
    event = usage.UsageEvent.FromString(record.event)
    summary = summary_of(event, record.log)
    failure = (
        errors.Internal(
            "this request failed and is settled; send a new one under a new id",
            reason="SETTLED_WITH_ERROR",
            metadata={"outcome": usage.Outcome.Name(event.outcome)},
        )
        if event.outcome in _FAILED
        else None
    )
    choices = tuple(
        inference.Choice(
            index=index,
            text=result.text,
            token_ids=result.token_ids,
            finish_reason=result.finish_reason,  # type: ignore[arg-type]
        )
        for index, result in enumerate(record.results)
    )
    return Answer(record.request_id, summary.prompt_tokens, choices, summary, failure)


def embedded_of(record: Settled) -> tuple[inference.EmbedResponse, errors.TollbookError | None]:
    """A settled embedding's answer, and why it is none."""
    event = usage.UsageEvent.FromString(record.event)
    summary = summary_of(event, record.log)
    vectors = vectors_of(record.results)
    response = answer_of_vectors(record.request_id, vectors, summary, replayed=True)
    return response, None if vectors else ended_unread()


def messages_of(answer: Answer) -> list[inference.GenerateResponse]:
    """A settled answer as a stream."""
    messages = [
        inference.GenerateResponse(
            started=inference.Started(
                request_id=answer.request_id,
                prompt_tokens=answer.prompt_tokens,
                replayed=True,
            )
        )
    ]
    for choice in answer.choices:
        if choice.token_ids or choice.text:
            messages.append(
                inference.GenerateResponse(
                    delta=inference.Delta(
                        choice=choice.index,
                        text=choice.text,
                        token_ids=choice.token_ids,
                        cumulative_tokens=len(choice.token_ids),
                    )
                )
            )
        messages.append(
            inference.GenerateResponse(
                finished=inference.Finished(
                    choice=choice.index,
                    finish_reason=choice.finish_reason,
                    output_tokens=len(choice.token_ids),
                )
            )
        )
    if answer.failure is None:
        messages.append(inference.GenerateResponse(usage=answer.summary))
    return messages
