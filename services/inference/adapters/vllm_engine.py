"""The vLLM backend: AsyncLLM inside this process, its core in another.

Owns the translation of one logical request into engine requests and of their
outputs into events; counts nothing itself. Knows no account, no spool, no wire.

Three habits of vLLM that the code answers:

- A request's outputs that nobody has read yet are merged into one, so a slow
  reader loses no token; but an exception takes the place of an unread output.
- abort() hands out the terminal output with all tokens generated until then.
  A cancelled reader would see less than the engine counted: never cancel, abort.
- A LoRA adapter that cannot be read kills the engine when it is first used, and
  an adapter's number used twice serves another's weights. So an adapter is
  loaded before it may be named, and numbers come from a sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import structlog

from inference import engine as port
from inference.adapters import vllm_nursery, vllm_start, vllm_vectors
from inference.adapters.conversation import messages_of, tools_of
from inference.adapters.encoder import Encoder
from inference.adapters.prompts import invalid, length_problem, unrenderable
from inference.adapters.vllm_counters import CounterLogger
from inference.adapters.vllm_errors import failure_of, refusal_of
from inference.adapters.vllm_sampling import sampling_of
from inference.adapters.warm_up import PROMPT_IDS, warm_up
from inference.domain.outcome import FINISH_REASONS
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

_STOP_S: Final = 2.0
_KILLED_S: Final = 10.0


class VllmEngine:
    """One vLLM engine. Construct it before the process has an event loop or a thread."""

    def __init__(self, options: vllm_start.VllmOptions) -> None:
        """Load the model and fork the core. Takes seconds. Errors: ModelUnusable."""
        self._counter = CounterLogger()
        loaded = vllm_start.load(options, [lambda _config, _index: self._counter])
        self._llm: Any = loaded.llm
        self._again = loaded.again
        self._awake = asyncio.Event()
        self._awake.set()
        # The model's own sampling defaults. vLLM reads its files anew each time it is
        # asked, which took a third of all throughput when it was asked per request.
        self._defaults: dict[str, Any] = self._llm.model_config.get_diff_sampling_param()
        self._adapters: dict[str, Any] = {}
        self._adapter_numbers = itertools.count(1)
        # Engine request ids that generate() is reading, by the job's id.
        self._running: dict[str, list[str]] = {}
        self._aborting: set[str] = set()
        self._capabilities = port.Capabilities(
            context_tokens=self._llm.model_config.max_model_len,
            adapters=not options.embeds,
            sleeps=loaded.again is not None,
            vector_size=self._llm.model_config.embedding_size if options.embeds else 0,
        )
        self._encoder = Encoder(options.model)

    def bare(self) -> Any:
        """The vLLM AsyncLLM itself, for whoever measures it beside this."""
        return self._llm

    async def start(self) -> int:
        """Warm up; see engine.Engine.start."""
        self._encoder.begin()
        if self._capabilities.embeds:
            return await vllm_vectors.warm_up(self, self._llm)
        return await warm_up(
            self,
            port.Target("", "", ""),
            self._tokens_form(list(PROMPT_IDS), ""),
            inference.SamplingParams(ignore_eos=True),
        )

    async def stop(self) -> None:
        """See engine.Engine.stop."""
        # Else it reports the core's end, which is meant, as an error.
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        if self._awake.is_set():
            await asyncio.to_thread(self._end_core)
        await asyncio.to_thread(self._llm.shutdown, _STOP_S)
        if self._again is not None:
            await asyncio.to_thread(vllm_nursery.stop)

    def _end_core(self) -> None:
        """End the core's process and see it gone: vLLM kills a slow one and does not wait."""
        cores = multiprocessing.active_children()
        # Not the front: it renders prompts also while there is no core.
        self._llm.engine_core.shutdown(timeout=_STOP_S)
        for core in cores:
            core.join(_KILLED_S)

    def capabilities(self) -> port.Capabilities:
        """See engine.Engine.capabilities."""
        return self._capabilities

    def counters(self) -> port.Counters:
        """See engine.Engine.counters."""
        prompt = self._counter.prompt_tokens
        made = prompt if self._capabilities.embeds else self._counter.generation_tokens
        return port.Counters(
            made,
            prompt,
            self._counter.preemptions,
            self._counter.drafted_tokens,
            self._counter.accepted_tokens,
        )

    async def encode(self, text: str) -> list[int]:
        """See engine.Engine.encode."""
        return await self._encoder.encode(text)

    def check_dimensions(self, dimensions: int) -> None:
        """See engine.Engine.check_dimensions."""
        vllm_vectors.check_dimensions(self._llm.model_config, dimensions)

    async def embed(self, job: port.EmbedJob) -> AsyncIterator[port.Vectors]:
        """See engine.Engine.embed."""
        name = job.engine_request_id
        self._running[name] = []
        try:
            async for some in vllm_vectors.embed(self._llm, job, lambda: name in self._aborting):
                yield some
        finally:
            self._running.pop(name, None)
            self._aborting.discard(name)

    async def render(self, spec: inference.GenerationSpec, cache_salt: str) -> port.Prompt:
        """See engine.Engine.render."""
        from vllm.exceptions import VLLMClientError
        from vllm.renderers import ChatParams

        if spec.WhichOneof("prompt") == "tokens":
            token_ids = list(spec.tokens.token_ids)
            self._check_prompt(token_ids, "spec.tokens.token_ids")
            return port.Prompt(token_ids, self._tokens_form(token_ids, cache_salt))
        messages = messages_of(spec)
        arguments: dict[str, Any] = {"add_generation_prompt": True}
        if tools := tools_of(spec, getattr(self._llm.renderer.tokenizer, "chat_template", None)):
            arguments["tools"] = tools
        # vLLM is not to truncate; what it finds too long it refuses itself.
        try:
            _, (form,) = await self._llm.renderer.render_chat_async(
                [messages],
                ChatParams(chat_template_kwargs=arguments),
                prompt_extras={"cache_salt": cache_salt} if cache_salt else None,
            )
        except (VLLMClientError, ValueError) as error:
            problem = f"the conversation cannot be rendered: {error}"
            too_long = getattr(error, "parameter", None) in ("input_tokens", "input_text")
            refused = invalid if too_long else unrenderable
            raise refused("spec.chat", problem) from error
        token_ids = list(form["prompt_token_ids"])
        self._check_prompt(token_ids, "spec.chat")
        return port.Prompt(token_ids, form)

    def _check_prompt(self, token_ids: list[int], field: str) -> None:
        problem = length_problem(token_ids, self._capabilities.context_tokens)
        if problem:
            raise invalid(field, problem)
        self.check_ids(token_ids, field)

    def check_ids(self, token_ids: Sequence[int], field: str) -> None:
        """See engine.Engine.check_ids."""
        from vllm.exceptions import VLLMValidationError

        try:
            self._llm.renderer.validate_token_ids(token_ids)
        except VLLMValidationError as error:
            raise invalid(field, str(error)) from error

    @staticmethod
    def _tokens_form(token_ids: list[int], cache_salt: str) -> Any:
        from vllm.inputs import tokens_input

        return tokens_input(token_ids, cache_salt=cache_salt or None)

    def _adapter_of(self, target: port.Target) -> Any:
        if not target.adapter:
            return None
        adapter = self._adapters.get(target.adapter)
        if adapter is None:
            raise errors.NotFound(
                f"adapter {target.adapter!r} is not loaded", reason="UNKNOWN_MODEL"
            )
        return adapter

    async def generate(self, job: port.Job) -> AsyncIterator[port.Event]:
        """See engine.Engine.generate."""
        if job.engine_request_id in self._running:
            raise AssertionError(f"engine request id {job.engine_request_id!r} is in use")
        adapter = self._adapter_of(job.target)
        sampling = [sampling_of(job, choice, self._defaults) for choice in range(job.choices)]
        names = [f"{job.engine_request_id}/{choice}" for choice in range(job.choices)]
        collectors: list[Any] = []
        self._running[job.engine_request_id] = names
        readers: list[asyncio.Task[None]] = []
        complete = False
        try:
            for name, parameters in zip(names, sampling, strict=True):
                collectors.append(await self._admit(name, job, parameters, adapter))
            yield port.Admitted()
            if job.engine_request_id in self._aborting:
                await self._llm.abort(names)
            if job.choices == 1:
                async for event in self._read(0, collectors[0]):
                    yield event
            else:
                queue: asyncio.Queue[port.Event | Exception | None] = asyncio.Queue(2 * job.choices)
                readers = [
                    asyncio.create_task(self._forward(choice, collector, queue))
                    for choice, collector in enumerate(collectors)
                ]
                failure: Exception | None = None
                left = job.choices
                while left:
                    item = await queue.get()
                    if item is None:
                        left -= 1
                    elif isinstance(item, Exception):
                        # The siblings' tokens count all the same: they are read out.
                        failure = failure or item
                        if not isinstance(item, port.EngineLost):
                            await self._llm.abort(names)
                    else:
                        yield item
                if failure is not None:
                    raise failure
            complete = True
            yield port.Ended()
        finally:
            for reader in readers:
                reader.cancel()
            self._running.pop(job.engine_request_id, None)
            self._aborting.discard(job.engine_request_id)
            if not complete:
                # Nobody reads on, so nothing may run on.
                with contextlib.suppress(Exception):
                    await self._llm.abort(names)

    async def _admit(self, name: str, job: port.Job, parameters: Any, adapter: Any) -> Any:
        try:
            return await self._llm.add_request(
                name, job.prompt.engine_form, parameters, lora_request=adapter
            )
        except Exception as error:
            raise refusal_of(self._llm, error) from error

    async def _read(self, choice: int, collector: Any) -> AsyncIterator[port.Event]:
        """Events of one engine request, to its terminal output."""
        handed_out = 0
        while True:
            try:
                output = collector.get_nowait() or await collector.get()
            except Exception as error:
                raise failure_of(self._llm, error) from error
            completion = output.outputs[0]
            handed_out += len(completion.token_ids)
            if completion.token_ids or completion.text:
                yield port.Tokens(
                    choice, completion.token_ids, completion.text, output.num_cached_tokens
                )
            if output.finished:
                reason = FINISH_REASONS.get(
                    completion.finish_reason or "", usage.FINISH_REASON_UNSPECIFIED
                )
                yield port.Finished(
                    choice, reason, output.metrics.num_generation_tokens - handed_out
                )
                return

    async def _forward(
        self,
        choice: int,
        collector: Any,
        queue: asyncio.Queue[port.Event | Exception | None],
    ) -> None:
        """Put one choice's events into the queue of all, then None."""
        try:
            async for event in self._read(choice, collector):
                await queue.put(event)
        except (port.EngineLost, port.EngineFailed) as error:
            await queue.put(error)
        await queue.put(None)

    async def abort(self, engine_request_id: str) -> None:
        """See engine.Engine.abort."""
        names = self._running.get(engine_request_id)
        if names is None:
            return
        # vLLM forgets an abort that comes before the request: generate() repeats it.
        self._aborting.add(engine_request_id)
        if names and not self._llm.errored:
            await self._llm.abort(names)

    async def add_adapter(self, name: str, path: str) -> None:
        """See engine.Engine.add_adapter."""
        from vllm.lora.request import LoRARequest

        if name in self._adapters:
            raise errors.AlreadyExists(f"adapter {name!r} is loaded", reason="ADAPTER_EXISTS")
        number = next(self._adapter_numbers)
        # vLLM keys its prefix cache by the name: a number in it keeps another
        # adapter that comes later under this name away from old blocks.
        request = LoRARequest(lora_name=f"{name}#{number}", lora_int_id=number, lora_path=path)
        try:
            await self._llm.add_lora(request)
        except Exception as error:
            raise errors.InvalidArgument(
                f"adapter {name!r} in {path} cannot be loaded: {error}", reason="BAD_ADAPTER"
            ) from error
        self._adapters[name] = request

    async def remove_adapter(self, name: str) -> None:
        """See engine.Engine.remove_adapter."""
        request = self._adapters.pop(name, None)
        if request is None:
            raise errors.NotFound(f"adapter {name!r} is not loaded", reason="UNKNOWN_MODEL")
        await self._llm.remove_lora(request.lora_int_id)

    async def suspend(self) -> None:
        """End the core: on a CPU vLLM's own sleep frees nothing."""
        if self._again is None:
            raise AssertionError("this engine was not made to sleep")
        self._awake.clear()
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._end_core)

    async def resume(self) -> int:
        """See engine.Engine.resume. A core that does not come up leaves it lost."""
        if self._again is None:
            raise AssertionError("this engine was not made to sleep")
        try:
            self._llm = await asyncio.to_thread(self._again)
            for name, request in tuple(self._adapters.items()):
                self._adapters.pop(name)
                await self.add_adapter(name, request.lora_path)
            return await self.start()
        finally:
            self._awake.set()

    async def wait_lost(self) -> None:
        """See engine.Engine.wait_lost."""
        while True:
            await self._awake.wait()
            # Its task reads the core's outputs until the core is gone; warm-up began it.
            handler = self._llm.output_handler
            if handler is not None:
                await asyncio.wait({handler})
            if self._awake.is_set() and handler is self._llm.output_handler:
                return
