"""A process of its own for the real engine: it is forked from a process without threads.

Prints one JSON line for each situation, of the engine inside or, with an address and a process
id, of a server's. `serve` instead prints the process ids
and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from inference import engine as port
from inference.adapters.upstream.engine import UpstreamEngine, UpstreamOptions
from inference.adapters.vllm_engine import VllmEngine
from inference.adapters.vllm_start import VllmOptions
from kernel import errors
from tollbook.inference.v1 import inference_pb2 as inference

# Room for the widest situation that is to run at once, and too little for `preempted`.
CACHE_BLOCKS = 384
# Of what is aborted: as long as the context lets it be, so that it is not over by then.
LEFT = 3_900
LONG = "tell me about the toll road and the bridge " * 20


class Probe:
    """`server` is the address and process of a server, or None: the engine inside."""

    def __init__(
        self, home: Path, server: tuple[str, int] | None = None, draft_tokens: int = 0
    ) -> None:
        self.home = home
        self.server = server
        self.engine: port.Engine = (
            UpstreamEngine(
                UpstreamOptions(
                    url=server[0], model="tiny", base_name="tiny", tokenizer=home / "model"
                )
            )
            if server is not None
            else VllmEngine(
                VllmOptions(
                    home / "model", 1, 1, 64, cache_blocks=CACHE_BLOCKS, draft_tokens=draft_tokens
                )
            )
        )
        self.attempts = 0
        self.asked = 0
        self.counted = 0
        self.flowing = asyncio.Event()

    async def job(self, text: str, **options: Any) -> port.Job:
        salt = options.pop("salt", "tenant")
        adapter = options.pop("adapter", "")
        choices = options.pop("choices", 1)
        max_tokens = options.pop("max_tokens", 32)
        spec = inference.GenerationSpec(
            model="tiny",
            chat=inference.ChatPrompt(messages=[inference.ChatMessage(role="user", content=text)]),
        )
        self.attempts += 1
        return port.Job(
            engine_request_id=f"probe:{self.attempts}",
            target=port.Target(adapter or "tiny", "tiny", adapter),
            prompt=await self.engine.render(spec, salt),
            sampling=inference.SamplingParams(**options),
            choices=choices,
            max_tokens=max_tokens,
            trace_headers={},
        )

    async def run(
        self, job: port.Job, abort_after: int = -1, pause_s: float = 0.0, joined: bool = False
    ) -> dict[str, Any]:
        """Read it; abort it after so many outputs, when `joined` not before the engine was so far
        ahead of the reader that one came with several tokens: the pause between them grows.
        """
        ids: list[list[int]] = [[] for _ in range(job.choices)]
        text = [""] * job.choices
        cached: dict[int, int] = {}
        finish = [0] * job.choices
        surplus = disputed = events_seen = 0
        ended = aborted = False
        async for event in self.engine.generate(job):
            match event:
                case port.Admitted():
                    self.asked += 1
                    if abort_after == 0:
                        await self.engine.abort(job.engine_request_id)
                case port.Tokens():
                    self.flowing.set()
                    ids[event.choice].extend(event.token_ids)
                    text[event.choice] += event.text
                    if event.cached_tokens != port.UNKNOWN:
                        cached.setdefault(event.choice, event.cached_tokens)
                    events_seen += 1
                    ahead = not joined or sum(map(len, ids)) > events_seen
                    if 0 < abort_after <= events_seen and ahead and not aborted:
                        aborted = True
                        await self.engine.abort(job.engine_request_id)
                    elif pause_s and not aborted:
                        # A slow reader is one that waits between reads.
                        await asyncio.sleep(min(1, pause_s * (events_seen if joined else 1)))
                case port.Finished():
                    finish[event.choice] = event.finish_reason
                    surplus += event.surplus_tokens
                    disputed += event.doubt.total
                case port.Ended():
                    ended = True
        output = sum(map(len, ids))
        self.counted += output + surplus
        return {
            "prompt": len(job.prompt.token_ids),
            "output": output,
            "most": job.max_tokens,
            "surplus": surplus,
            "disputed": disputed,
            "cached": [cached.get(choice, 0) for choice in range(job.choices)],
            "finish": finish,
            "ids": ids,
            "text": text,
            "ended": ended,
        }

    async def residual(self) -> int:
        """Counter beyond what was handed out, once it stands still (it may lag a turn)."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.engine.counters().generation_tokens == self.counted:
                break
            await asyncio.sleep(0.01)
        return self.engine.counters().generation_tokens - self.counted

    async def refused(self, attempt: Any) -> str:
        try:
            await attempt
        except errors.TollbookError as error:
            return type(error).__name__
        return "taken"

    async def situations(self) -> AsyncIterator[tuple[str, Any]]:
        engine = self.engine
        self.counted = await engine.start()
        yield "warm_up", {"tokens": self.counted, "residual": await self.residual()}
        await engine.add_adapter("tiny-support", str(self.home / "adapters" / "tiny-support"))

        async def case(text: str = "hello", **options: Any) -> dict[str, Any]:
            names = ("abort_after", "pause_s", "joined")
            limits = {key: options.pop(key) for key in names if key in options}
            result = await self.run(await self.job(text, **options), **limits)
            result["residual"] = await self.residual()
            return result

        greedy = await case(temperature=0)
        yield "length", greedy
        yield "again", await case(temperature=0)
        yield "adapter", await case(temperature=0, adapter="tiny-support")
        yield "fresh_prompt", await case(LONG)
        yield "cached_prompt", await case(LONG)
        yield "other_tenant", await case(LONG, salt="other")
        yield "choices", await case("n " + LONG, choices=3, seed=7)
        yield "stop_string", await case(temperature=0, max_tokens=64, stop=[greedy["text"][0][6:9]])
        schema = '{"enum": ["toll", "bridge", "lane"]}'
        yield "structured", await case(temperature=0, json_schema=schema)
        yield "to_the_context", await case("word " * 700, ignore_eos=True, max_tokens=200)
        yield (
            "aborts",
            [await case(max_tokens=LEFT, ignore_eos=True, abort_after=at) for at in range(20)],
        )
        yield (
            "abort_choices",
            await case(max_tokens=LEFT, ignore_eos=True, choices=3, abort_after=9),
        )
        yield "slow_reader", await case(max_tokens=400, ignore_eos=True, pause_s=0.01)
        # What a server has sent meanwhile waits on the line, and comes one by one.
        slow: dict[str, Any] = (
            {"pause_s": 0.05, "joined": True} if self.server is None else {"pause_s": 0.2}
        )
        yield "slow_abort", await case(max_tokens=LEFT, ignore_eos=True, abort_after=5, **slow)
        natural = [await case(f"end {seed}", max_tokens=400, seed=seed) for seed in range(12)]
        yield "end_of_text", [result for result in natural if result["finish"] == [1]]
        before = engine.counters().generation_tokens
        token_prompt = inference.GenerationSpec(
            model="tiny", tokens=inference.TokenPrompt(token_ids=[2**31])
        )
        too_long = inference.GenerationSpec(
            model="tiny", tokens=inference.TokenPrompt(token_ids=[7] * 4096)
        )
        yield (
            "refusals",
            {
                "over_length": await self.refused(engine.render(too_long, "")),
                "over_length_chat": await self.refused(self.job("word " * 9000)),
                "unknown_id": await self.refused(engine.render(token_prompt, "")),
                "missing_adapter": await self.refused(engine.add_adapter("none", "/nonexistent")),
                "unloaded_adapter": await self.refused(case(adapter="none")),
                "bad_sampling": await self.refused(case(top_p=5.0)),
                "generated": engine.counters().generation_tokens - before,
            },
        )
        await engine.remove_adapter("tiny-support")
        yield "removed_adapter", await self.refused(case(adapter="tiny-support"))
        jobs = [await self.job(f"many {i}", max_tokens=40, ignore_eos=True) for i in range(120)]
        many = await asyncio.gather(*map(self.run, jobs))
        yield (
            "many",
            {
                "output": sum(result["output"] for result in many),
                "residual": await self.residual(),
            },
        )
        # More prompt tokens at once than one step takes in: with chunked prefill on, some
        # of these would be prefilled in parts, and a seeded one would take the core down.
        crowd = [
            await self.job(f"{i} " + "word " * 500, max_tokens=8, seed=i, ignore_eos=True)
            for i in range(24)
        ]
        seeded = await asyncio.gather(*map(self.run, crowd))
        yield (
            "seeded_crowd",
            {
                "prompt": sum(result["prompt"] for result in seeded),
                "output": sum(result["output"] for result in seeded),
                "residual": await self.residual(),
            },
        )
        # Prompts that all find a place, and no place for what they go on to say.
        before_preempted = engine.counters().preemptions
        squeezed = [
            await self.job(f"{i} " + "toll " * 500, max_tokens=100, ignore_eos=True, temperature=0)
            for i in range(24)
        ]
        preempted = await self._all_at_once(squeezed)
        yield (
            "preempted",
            {
                "prompt": sum(result["prompt"] for result in preempted),
                "output": sum(result["output"] for result in preempted),
                "surplus": sum(result["surplus"] for result in preempted),
                "cached": [result["cached"][0] for result in preempted],
                "preemptions": engine.counters().preemptions - before_preempted,
                "residual": await self.residual(),
            },
        )
        if isinstance(engine, VllmEngine):
            # No door takes it; a model's own defaults might.
            with_logprobs = {"prompt_logprobs": 1}
            engine._defaults.update(with_logprobs)
            yield "prompt_logprobs", await case(LONG)
            for name in with_logprobs:
                del engine._defaults[name]
        yield "core_killed", await self._kill_core()

    async def _all_at_once(self, jobs: list[port.Job]) -> list[dict[str, Any]]:
        """Answers of jobs that the core finds all there: some would be over before others came."""
        if self.server is not None:
            return await asyncio.gather(*map(self.run, jobs))
        (core,) = psutil.Process().children()
        before = self.asked
        core.send_signal(signal.SIGSTOP)
        running = [asyncio.create_task(self.run(job)) for job in jobs]
        try:
            async with asyncio.timeout(60):
                while self.asked < before + len(jobs):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            core.send_signal(signal.SIGCONT)
        return await asyncio.gather(*running)

    async def _kill_core(self) -> dict[str, Any]:
        async def victim() -> str:
            # On a busy machine an answer may be whole before it is read: then another.
            while True:
                try:
                    await self.run(await self.job("victim", max_tokens=3000, ignore_eos=True))
                except (port.EngineLost, errors.Unavailable):
                    return "lost"

        self.flowing.clear()
        running = [asyncio.create_task(victim()) for _ in range(5)]
        await self.flowing.wait()
        if self.server is None:
            (core,) = psutil.Process().children()
            core.send_signal(signal.SIGKILL)
            await asyncio.wait_for(self.engine.wait_lost(), 60)
        else:
            psutil.Process(self.server[1]).send_signal(signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*running), 60)
        try:
            await self.run(await self.job("after"))
            after = "taken"
        except (port.EngineLost, errors.Unavailable):
            after = "lost"
        await self.engine.stop()
        return {"running": results, "after": after, "left": len(psutil.Process().children())}


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def _situations(probe: Probe) -> None:
    async for name, result in probe.situations():
        _say({"situation": name, "result": result})


async def _drafting(probe: Probe) -> dict[str, Any]:
    """Requests of an engine that guesses ahead: right in part, cut in the middle of a guess."""
    jobs = [
        await probe.job(LONG, max_tokens=31 + seed, ignore_eos=True, seed=seed, salt=str(seed))
        for seed in range(6)
    ]
    jobs.append(await probe.job(LONG, max_tokens=101, ignore_eos=True, temperature=0, choices=2))
    jobs.append(await probe.job(LONG, max_tokens=200, temperature=0, stop=["e"]))
    left = await probe.job(LONG, max_tokens=3_500, ignore_eos=True, temperature=0, salt="left")
    results = await asyncio.gather(*map(probe.run, jobs), probe.run(left, abort_after=20))
    counters = probe.engine.counters()
    return {
        "exact": [result["output"] for result in results[:7]],
        "output": sum(result["output"] for result in results),
        "left": results[-1]["output"],
        "drafted": counters.drafted_tokens,
        "accepted": counters.accepted_tokens,
        "residual": await probe.residual(),
    }


async def _serve(probe: Probe) -> None:
    probe.counted = await probe.engine.start()
    _say({"drafting": await _drafting(probe)})
    _say({"pid": os.getpid(), "core": [child.pid for child in psutil.Process().children()]})
    await asyncio.Event().wait()


async def _stop(probe: Probe) -> None:
    await probe.engine.start()
    (core,) = psutil.Process().children()
    core.send_signal(signal.SIGSTOP)
    await probe.engine.stop()
    _say({"left": len(psutil.Process().children())})


def main() -> None:
    mode, home = sys.argv[1], Path(sys.argv[2])
    server = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else None
    probe = Probe(home, server, draft_tokens=3 if mode == "serve" else 0)
    asyncio.run({"situations": _situations, "serve": _serve, "stop": _stop}[mode](probe))


if __name__ == "__main__":
    main()
