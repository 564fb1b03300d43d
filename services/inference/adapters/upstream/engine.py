"""The backend for any OpenAI-compatible server: vLLM, SGLang, LMDeploy, another of ours.

Owns the connection: what is sent, what its errors mean, how it ends. The prompt is
rendered here and sent as ids. Each choice is a request of its own, read by a task of its
own, so that what the server has given is counted however slowly it is consumed; memory is
bounded by the answers asked for. An abort closes the connection, which is how such a
server is told; what had come by then is handed out.

The server is not ours: it may die and come back, and is not restarted from here. Requests
in it are then over (EngineLost), later ones are refused until it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import structlog

from inference import engine as port
from inference.adapters.prompts import invalid
from inference.adapters.upstream import discovery, shapes
from inference.adapters.upstream.choice import Choice
from inference.adapters.upstream.embedder import Embedder
from inference.adapters.upstream.loras import Loras
from inference.adapters.upstream.refusals import refusal_of
from inference.adapters.upstream.words import Words
from inference.adapters.warm_up import PROMPT_IDS, warm_up
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference

log = structlog.get_logger()

_CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Where the server is and what it is asked for.

    `url` ends before `/v1`. `model` is the base model's name there; an adapter is asked for
    by its own. `tokenizer`: directory of the model's tokenizer files. `silence_ms`: a server
    that says nothing for so long has failed. `embeds`: it is asked for vectors, and for no text.
    """

    url: str
    model: str
    base_name: str
    tokenizer: Path
    key: str = ""
    max_running: int = 64
    silence_ms: int = 120_000
    embeds: bool = False


_Item = port.Event | Exception | None


@dataclass
class _Run:
    """One job in the server. `items` is bounded by the tokens asked for."""

    items: asyncio.Queue[_Item] = field(default_factory=asyncio.Queue)
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    admitted: bool = False
    aborted: bool = False

    def abort(self) -> None:
        """Close what is read; each reader ends with what it has."""
        self.aborted = True
        if self.admitted:
            for reader in self.readers:
                reader.cancel()


class UpstreamEngine:
    """See the module. Construct it anywhere; it opens nothing before start()."""

    def __init__(self, options: UpstreamOptions) -> None:
        """Errors: models.ModelUnusable, for a tokenizer that cannot be read."""
        self._options = options
        self._words = Words(options.tokenizer)
        # The tokenizer's imports make objects that all stay: nobody need look at them again.
        gc.collect()
        gc.freeze()
        self._client: httpx.AsyncClient | None = None
        self._dialect = shapes.Dialect.RICH
        self._context_tokens = 0
        self._running: dict[str, _Run] = {}
        self._generation_tokens = 0
        self._prompt_tokens = 0
        self._embedder = Embedder(self._failure_of)
        self._loras = Loras()
        self._embedding: set[str] = set()
        self._stopped: set[str] = set()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            options = self._options
            self._client = httpx.AsyncClient(
                base_url=options.url.rstrip("/").removesuffix("/v1"),
                headers={"authorization": f"Bearer {options.key}"} if options.key else {},
                timeout=httpx.Timeout(options.silence_ms / 1000, connect=_CONNECT_S),
                limits=httpx.Limits(max_connections=2 * options.max_running + 16),
                # No proxy of the environment: prompts go to the server that was named.
                trust_env=False,
            )
        return self._client

    async def start(self) -> int:
        """Wait for the server, learn what it understands, and warm it up.

        Errors: Unavailable (no answer in time), FailedPrecondition (not the model).
        """
        options = self._options
        self._context_tokens = await discovery.context_of(
            self._http, options.url, options.model, options.tokenizer
        )
        if self._options.embeds:
            return await self._learn_vectors()
        try:
            return await self._warm_up()
        except errors.InvalidArgument as error:
            if self._dialect is shapes.Dialect.PLAIN:
                raise
            log.warning("the server knows OpenAI's fields alone", error=error.message)
            self._dialect = shapes.Dialect.PLAIN
            return await self._warm_up()

    async def _warm_up(self) -> int:
        target = port.Target(self._options.base_name, self._options.base_name, "")
        return await warm_up(self, target, "warm-up", inference.SamplingParams())

    async def _learn_vectors(self) -> int:
        """How long its vectors are; gives the tokens of the question."""
        target = port.Target(self._options.base_name, self._options.base_name, "")
        job = port.EmbedJob("warm-up", target, (PROMPT_IDS,), 0, 1, {})
        tokens = 0
        async for some in self.embed(job):
            self._embedder.vector_size = len(some.values[0]) // 4
            tokens += some.tokens + some.doubt.beyond_tokens
        return tokens

    async def stop(self) -> None:
        """Close all connections; the server goes on without us."""
        for run in tuple(self._running.values()):
            run.abort()
        if self._client is not None:
            await self._client.aclose()
        self._words.close()

    def capabilities(self) -> port.Capabilities:
        """See engine.Engine.capabilities."""
        embeds = self._options.embeds
        return port.Capabilities(
            self._context_tokens, adapters=not embeds, vector_size=self._embedder.vector_size
        )

    def counters(self) -> port.Counters:
        """What the server said that it generated, and where it said nothing, what it gave."""
        if self._options.embeds:
            counted = self._embedder.counted_tokens
            return port.Counters(counted, counted)
        return port.Counters(self._generation_tokens, self._prompt_tokens)

    async def encode(self, text: str) -> list[int]:
        """See engine.Engine.encode."""
        return await self._words.encode(text)

    def check_ids(self, token_ids: Sequence[int], field: str) -> None:
        """See engine.Engine.check_ids."""
        if not self._words.knows(token_ids):
            raise invalid(field, f"token id {max(token_ids)} is out of the vocabulary")

    def check_dimensions(self, dimensions: int) -> None:
        """The server knows; but for more than its vectors have."""
        if dimensions > self._embedder.vector_size:
            size = self._embedder.vector_size
            raise errors.InvalidArgument.of_field(
                "dimensions", f"dimensions {dimensions}: the model's vectors have {size} components"
            )

    async def embed(self, job: port.EmbedJob) -> AsyncIterator[port.Vectors]:
        """See engine.Engine.embed."""
        name = job.engine_request_id
        self._embedding.add(name)
        try:
            async for some in self._embedder.embed(
                self._http, self._model_of(job.target), job, lambda: name in self._stopped
            ):
                yield some
        finally:
            self._embedding.discard(name)
            self._stopped.discard(name)

    async def render(self, spec: inference.GenerationSpec, cache_salt: str) -> port.Prompt:
        """See engine.Engine.render."""
        return port.Prompt(await self._words.render(spec, self._context_tokens), cache_salt)

    def _model_of(self, target: port.Target) -> str:
        return target.adapter or self._options.model

    async def generate(self, job: port.Job) -> AsyncIterator[port.Event]:
        """See engine.Engine.generate. Errors besides: Unavailable (nothing was generated)."""
        if job.engine_request_id in self._running:
            raise AssertionError(f"engine request id {job.engine_request_id!r} is in use")
        bodies = self._bodies_of(job)
        run = self._running[job.engine_request_id] = _Run()
        opened = [asyncio.get_running_loop().create_future() for _ in bodies]
        try:
            for choice, body in enumerate(bodies):
                reader = self._read(run, job, choice, body, opened[choice])
                run.readers.append(asyncio.create_task(reader, name="upstream"))
                if not choice:
                    # It must be scheduled first: its siblings find the blocks that it wrote.
                    await opened[0]
            # One that is refused ends all: nothing of them was given to anybody.
            await asyncio.gather(*opened)
            self._prompt_tokens += len(job.prompt.token_ids)
            run.admitted = True
            if run.aborted:
                run.abort()
            yield port.Admitted()
            failure: Exception | None = None
            left = job.choices
            while left:
                item = await run.items.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    # What its siblings have given counts all the same.
                    failure = failure or item
                    run.abort()
                else:
                    yield item
            if failure is not None:
                raise failure
            yield port.Ended()
        finally:
            self._running.pop(job.engine_request_id, None)
            for task in (*run.readers, *opened):
                task.cancel()
            await asyncio.gather(*run.readers, *opened, return_exceptions=True)

    def _bodies_of(self, job: port.Job) -> list[dict[str, Any]]:
        try:
            return [
                shapes.body_of(job, self._model_of(job.target), choice, self._dialect)
                for choice in range(job.choices)
            ]
        except ValueError as error:
            raise errors.InvalidArgument(
                f"the JSON schema is no JSON: {error}", reason="INVALID_SAMPLING"
            ) from error

    async def _read(
        self,
        run: _Run,
        job: port.Job,
        index: int,
        body: dict[str, Any],
        opened: asyncio.Future[None],
    ) -> None:
        """One choice, from its request to its end; then None."""
        choice = Choice(job, index, self._words)
        aborted = False
        try:
            async with self._asked(job, body) as answer:
                opened.set_result(None)
                async for tokens in choice.tokens(answer.aiter_bytes()):
                    self._generation_tokens += len(tokens.token_ids)
                    run.items.put_nowait(tokens)
        except asyncio.CancelledError:
            if not run.admitted:
                raise
            aborted = True
        except Exception as error:
            failure = self._failure_of(error)
            if opened.done():
                log.error("an answer broke", request=job.engine_request_id, error=str(failure))
                run.items.put_nowait(failure)
                run.items.put_nowait(None)
                return
            opened.set_exception(
                failure
                if isinstance(failure, errors.TollbookError)
                else errors.Unavailable(
                    f"the engine does not answer: {failure}",
                    reason="ENGINE_AWAY",
                    retry_after_ms=2_000,
                )
            )
            return
        cached, finished = choice.finish(aborted)
        self._generation_tokens += finished.surplus_tokens
        if cached is not None:
            run.items.put_nowait(cached)
        run.items.put_nowait(finished)
        run.items.put_nowait(None)

    @contextlib.asynccontextmanager
    async def _asked(self, job: port.Job, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """The server's answer, once it has begun well. A server that was started again knows no
        adapter that it was given before: it is given it again, and asked again.
        """
        for tries_left in (1, 0):
            async with self._http.stream(
                "POST", "/v1/completions", json=body, headers=dict(job.trace_headers)
            ) as answer:
                if answer.status_code == httpx.codes.OK:
                    yield answer
                    return
                refusal = await refusal_of(answer)
            forgotten = isinstance(refusal, errors.NotFound) and job.target.adapter
            if not (tries_left and forgotten):
                raise refusal
            await self._loras.again(self._http, job.target.adapter, refusal)

    def _failure_of(self, error: Exception) -> Exception:
        """What an error means to the request that met it."""
        if isinstance(error, httpx.ReadTimeout):
            return port.EngineFailed(f"the server said nothing for {self._options.silence_ms} ms")
        if isinstance(error, httpx.HTTPError):
            return port.EngineLost(f"the connection to the server broke: {error!r}")
        if isinstance(error, port.EngineFailed | errors.TollbookError):
            return error
        log.error("an answer could not be read", exc_info=error)
        return port.EngineFailed(f"the answer could not be read: {error!r}")

    async def abort(self, engine_request_id: str) -> None:
        """See engine.Engine.abort."""
        run = self._running.get(engine_request_id)
        if run is not None:
            run.abort()
        elif engine_request_id in self._embedding:
            self._stopped.add(engine_request_id)

    async def add_adapter(self, name: str, path: str) -> None:
        """Have the server load an adapter, by the path as the server sees it."""
        await self._loras.add(self._http, name, path)

    async def remove_adapter(self, name: str) -> None:
        """See engine.Engine.remove_adapter."""
        await self._loras.remove(self._http, name)

    async def suspend(self) -> None:
        """Not ours to put to sleep."""
        raise NotImplementedError

    async def resume(self) -> int:
        """See suspend."""
        raise NotImplementedError

    async def wait_lost(self) -> None:
        """Never returns: a server that is away is waited for, request by request."""
        await asyncio.Event().wait()
