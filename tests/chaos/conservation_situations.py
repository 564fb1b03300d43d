"""The kinds of requests of a conservation run: each one way in which tokens could go astray."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.conservation_crowd import Crowd
from tests.integration.inference_service import chat, tokens

SCHEMA: Final = '{"enum": ["toll", "bridge", "lane", "gate"]}'

Situation = Callable[[Crowd, random.Random, str, str], Awaitable[None]]


def _text(source: random.Random) -> str:
    return "the toll of a lane " * source.randrange(1, 12)


async def _stream(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 60))
    await crowd.stream(account, spec)


async def _once(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    await crowd.once(account, chat(_text(source), name, max_tokens=source.randrange(1, 60)))


async def _choices(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 40), n=source.randrange(2, 5))
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _stop_string(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    stop = source.sample([" a", "e", "th", "n", ". "], 2)
    spec = chat(_text(source), name, max_tokens=60, stop=stop, ignore_eos=True)
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _cached_prefix(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    begin = source.randrange(4) * 50 + 300
    ids = [*range(begin, begin + 96), *(source.randrange(300, 900) for _ in range(8))]
    await crowd.once(account, tokens(ids, name, max_tokens=8, ignore_eos=True))


async def _structured(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.choice((2, 40)), json_schema=SCHEMA)
    await crowd.once(account, spec)


async def _adapter(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, "tiny-support", max_tokens=source.randrange(1, 60))
    await (crowd.stream if source.random() < 0.5 else crowd.once)(account, spec)


async def _over_length(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    await crowd.once(account, tokens([7] * source.choice((4_096, 5_000)), name))


async def _to_the_context(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    prompt = 4_096 - source.randrange(1, 8)
    await crowd.once(account, tokens([7] * prompt, name, max_tokens=50, ignore_eos=True))


async def _abort(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    n = source.choice((1, 1, 3))
    spec = chat(_text(source), name, max_tokens=400, ignore_eos=True, n=n)
    await crowd.stream(account, spec, leave_after=source.randrange(0, 40))


async def _deadline(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=2_000, ignore_eos=True)
    timeout_s = source.uniform(0.02, 1.5)
    await (crowd.stream if source.random() < 0.5 else crowd.once)(
        account, spec, timeout_s=timeout_s
    )


async def _slow_reader(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=150, ignore_eos=True)
    leave = source.choice((None, source.randrange(2, 6)))
    await crowd.stream(account, spec, leave_after=leave, pause_s=source.uniform(0.05, 0.3))


async def _duplicate(crowd: Crowd, source: random.Random, account: str, name: str) -> None:
    spec = chat(_text(source), name, max_tokens=source.randrange(1, 50), ignore_eos=True)
    calls = [crowd.stream(account, spec), crowd.once(account, spec), crowd.stream(account, spec)]
    await asyncio.gather(*calls)
    # And again, when it is over.
    await crowd.once(account, spec)


SITUATIONS: Final[dict[str, Situation]] = {
    "stream": _stream,
    "once": _once,
    "choices": _choices,
    "stop-string": _stop_string,
    "cached-prefix": _cached_prefix,
    "structured": _structured,
    "adapter": _adapter,
    "over-length": _over_length,
    "to-the-context": _to_the_context,
    "abort": _abort,
    "deadline": _deadline,
    "slow-reader": _slow_reader,
    "duplicate": _duplicate,
}
# Costly for the machine and no more telling for being many.
RARE: Final = {"to-the-context": 0.2, "slow-reader": 0.5, "deadline": 0.5}


def plan(source: random.Random, requests: int) -> list[str]:
    """The situation of each request, in order; every situation comes."""
    names = list(SITUATIONS)
    weights = [RARE.get(name, 1.0) for name in names]
    drawn = names + source.choices(names, weights, k=max(0, requests - len(names)))
    source.shuffle(drawn)
    return drawn
