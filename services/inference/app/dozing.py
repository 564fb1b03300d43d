"""An engine that is stopped while nobody asks, and brought up by the first who does.

Wraps an engine behind the same port, so that nothing else knows. Owns when it sleeps and
who waits for its waking; a request that comes while it sleeps, falls asleep or wakes up
waits, and is then served like any other. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from inference import engine as port
from kernel import errors
from kernel.clock import Clock
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

# What changes when; given a unit of residency, or 0 when the engine is gone.
Watch = Callable[[int], None]
AWAY: Final = 0
AWAKE_METRIC: Final = "tollbook.inference.engine.awake"


class Dozing:
    """See the module. `idle_ms` of nothing under way put it to sleep; `wake_ms` is how long
    a request waits for its waking at the most.
    """

    def __init__(self, engine: port.Engine, clock: Clock, idle_ms: int, wake_ms: int) -> None:
        self._engine = engine
        self._clock = clock
        self._idle_ms = idle_ms
        self._wake_ms = wake_ms
        self._users = 0
        self._used_ms = clock.monotonic_ms()
        self._asleep = False
        # A change under way; whoever comes meanwhile waits for it, and cannot cancel it.
        self._changing: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._quiet = asyncio.Event()
        # Set by who keeps the books: tokens of a warm-up, and what the engine's state is.
        self.on_warm_up: Callable[[int], None] = lambda _tokens: None
        self.on_change: Watch = lambda _unit: None
        metrics.get_meter("inference").create_observable_gauge(
            AWAKE_METRIC,
            callbacks=[self._observe],
            description="1 while there is an engine, 0 while it sleeps or wakes up",
        )

    def _observe(self, options: CallbackOptions) -> Iterable[Observation]:
        del options
        return [Observation(int(not self._asleep))]

    async def start(self) -> int:
        """See engine.Engine.start."""
        tokens = await self._engine.start()
        self._used_ms = self._clock.monotonic_ms()
        self._quiet.set()
        return tokens

    async def stop(self) -> None:
        """See engine.Engine.stop."""
        if self._changing is not None:
            await asyncio.gather(self._changing, return_exceptions=True)
        await self._engine.stop()

    async def watch_for_ever(self) -> None:
        """Put the engine to sleep whenever nothing was under way for long enough."""
        while True:
            await self._quiet.wait()
            left_ms = self._used_ms + self._idle_ms - self._clock.monotonic_ms()
            if left_ms > 0:
                await asyncio.sleep(left_ms / 1000)
            elif self._changing is None and not self._asleep and not self._users:
                await self._change(self._fall_asleep())
            else:
                # Used, asleep or waking: whoever ends that sets it again.
                self._quiet.clear()

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await change
            finally:
                # In here: who awaits a task that is done does not let the loop go on.
                self._changing = None

        self._changing = asyncio.create_task(run(), name="engine's sleep")
        await asyncio.shield(self._changing)

    async def _fall_asleep(self) -> None:
        self._asleep = True
        self.on_change(AWAY)
        await self._engine.suspend()
        log.info("the engine sleeps", idle_ms=self._idle_ms)

    async def _wake(self) -> None:
        begun_ms = self._clock.monotonic_ms()
        self.on_change(usage.UNIT_MODEL_START_MS)
        try:
            tokens = await self._engine.resume()
        except Exception as error:
            # Nobody can be served from here: the supervisor makes a new one.
            log.error("the engine does not wake", error=str(error))
            self.on_change(AWAY)
            self._lost.set()
            raise
        self.on_warm_up(tokens)
        self.on_change(usage.UNIT_MODEL_RESIDENT_MS)
        self._asleep = False
        self._used_ms = self._clock.monotonic_ms()
        self._quiet.set()
        log.info("the engine is awake", after_ms=self._clock.monotonic_ms() - begun_ms)

    async def _awake(self) -> None:
        """Return when there is an engine. Errors: Unavailable."""
        try:
            async with asyncio.timeout(self._wake_ms / 1000):
                while self._asleep or self._changing is not None:
                    if self._changing is None:
                        await self._change(self._wake())
                    else:
                        await asyncio.shield(self._changing)
        except TimeoutError:
            reason = f"the engine did not wake within {self._wake_ms} ms"
        except Exception as error:
            reason = f"the engine does not wake: {error}"
        else:
            return
        raise errors.Unavailable(reason, reason="STARTING", retry_after_ms=2_000)

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[None]:
        """With the engine awake, for one user. Counted first: what wakes for somebody does not
        fall asleep again before they had it.
        """
        self._users += 1
        try:
            await self._awake()
            yield
        finally:
            self._users -= 1
            self._used_ms = self._clock.monotonic_ms()
            if not self._users:
                self._quiet.set()

    def capabilities(self) -> port.Capabilities:
        """See engine.Engine.capabilities."""
        return self._engine.capabilities()

    def counters(self) -> port.Counters:
        """See engine.Engine.counters."""
        return self._engine.counters()

    async def render(self, spec: inference.GenerationSpec, cache_salt: str) -> port.Prompt:
        """See engine.Engine.render. Wakes nobody: what is refused needs no engine."""
        return await self._engine.render(spec, cache_salt)

    async def encode(self, text: str) -> list[int]:
        """See engine.Engine.encode. Wakes nobody."""
        return await self._engine.encode(text)

    def check_ids(self, token_ids: Sequence[int], field: str) -> None:
        """See engine.Engine.check_ids."""
        self._engine.check_ids(token_ids, field)

    def check_dimensions(self, dimensions: int) -> None:
        """See engine.Engine.check_dimensions."""
        self._engine.check_dimensions(dimensions)

    async def embed(self, job: port.EmbedJob) -> AsyncIterator[port.Vectors]:
        """See engine.Engine.embed. Errors besides: Unavailable, when it does not wake."""
        async with self._used():
            async for some in self._engine.embed(job):
                yield some

    async def generate(self, job: port.Job) -> AsyncIterator[port.Event]:
        """See engine.Engine.generate. Errors besides: Unavailable, when it does not wake."""
        async with self._used():
            async for event in self._engine.generate(job):
                yield event

    async def abort(self, engine_request_id: str) -> None:
        """See engine.Engine.abort."""
        await self._engine.abort(engine_request_id)

    async def add_adapter(self, name: str, path: str) -> None:
        """See engine.Engine.add_adapter."""
        async with self._used():
            await self._engine.add_adapter(name, path)

    async def remove_adapter(self, name: str) -> None:
        """See engine.Engine.remove_adapter."""
        async with self._used():
            await self._engine.remove_adapter(name)

    async def suspend(self) -> None:
        """It sleeps by itself."""
        raise NotImplementedError

    async def resume(self) -> int:
        """See suspend."""
        raise NotImplementedError

    async def wait_lost(self) -> None:
        """See engine.Engine.wait_lost."""
        waits = [
            asyncio.create_task(self._engine.wait_lost()),
            asyncio.create_task(self._lost.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
