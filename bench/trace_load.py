"""Requests of two real services' traces, scaled to the model of a bench.

Lengths are divided by SCALE, the answers' at the most OUTPUT_MOST. Where Mooncake's trace
names the same block there are the same tokens here too, so that prefixes are shared as
they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Final

from bench import engine_load, traces
from tollbook.inference.v1 import inference_pb2 as inference

SCALE: Final = 8
_PROMPT_MOST: Final = 2_048
OUTPUT_MOST: Final = 128


def _output(length: int) -> int:
    return min(max(length // SCALE, 1), OUTPUT_MOST)


def _tokens(source: random.Random, count: int) -> list[int]:
    return [source.randrange(3, engine_load.VOCABULARY) for _ in range(count)]


def _azure(salt: str) -> Iterator[inference.GenerationSpec]:
    source = random.Random(salt)
    for row in traces.azure_rows():
        length = min(max(int(row["ContextTokens"]) // SCALE, 1), _PROMPT_MOST)
        yield engine_load.spec(_tokens(source, length), _output(int(row["GeneratedTokens"])))


def _mooncake(salt: str) -> Iterator[inference.GenerationSpec]:
    for row in traces.mooncake_rows():
        length = min(max(row["input_length"] // SCALE, 1), _PROMPT_MOST)
        prompt: list[int] = []
        for name in row["hash_ids"]:
            if len(prompt) >= length:
                break
            prompt += _tokens(random.Random(f"{salt}/{name}"), traces.BLOCK_TOKENS // SCALE)
        yield engine_load.spec(prompt[:length], _output(row["output_length"]))


def requests(name: str, salt: str, count: int) -> list[inference.GenerationSpec]:
    """The first requests of a trace. `salt`: makes their tokens this round's alone.

    Errors: FileNotFoundError where the traces are not.
    """
    return list(islice({"azure": _azure, "mooncake": _mooncake}[name](salt), count))
