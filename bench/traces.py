"""Requests of two real services' traces, scaled to the model of the bench.

Lengths are divided by SCALE, the answers' at the most OUTPUT_MOST. Mooncake's trace names
the prompt's blocks of 512 tokens: the same name is the same tokens here too, so
that prefixes are shared as they were. The files are not the project's; without
them (TOLLBOOK_BENCH_DATA) there is no such figure.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from bench import engine_load
from tollbook.inference.v1 import inference_pb2 as inference

DATA: Final = Path(os.environ.get("TOLLBOOK_BENCH_DATA", "../shared/data"))
SCALE: Final = 8
_BLOCK_TOKENS: Final = 512 // SCALE
_PROMPT_MOST: Final = 2_048
OUTPUT_MOST: Final = 128


def _output(length: int) -> int:
    return min(max(length // SCALE, 1), OUTPUT_MOST)


def _tokens(source: random.Random, count: int) -> list[int]:
    return [source.randrange(3, engine_load.VOCABULARY) for _ in range(count)]


def _azure(salt: str) -> Iterator[inference.GenerationSpec]:
    source = random.Random(salt)
    with gzip.open(DATA / "azure_llm_conv_2023.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            length = min(max(int(row["ContextTokens"]) // SCALE, 1), _PROMPT_MOST)
            yield engine_load.spec(_tokens(source, length), _output(int(row["GeneratedTokens"])))


def _mooncake(salt: str) -> Iterator[inference.GenerationSpec]:
    with gzip.open(DATA / "mooncake_conversation.jsonl.gz", "rt") as file:
        for text in file:
            row = json.loads(text)
            length = min(max(row["input_length"] // SCALE, 1), _PROMPT_MOST)
            prompt: list[int] = []
            for name in row["hash_ids"]:
                if len(prompt) >= length:
                    break
                prompt += _tokens(random.Random(f"{salt}/{name}"), _BLOCK_TOKENS)
            yield engine_load.spec(prompt[:length], _output(row["output_length"]))


def requests(name: str, salt: str, count: int) -> list[inference.GenerationSpec]:
    """The first requests of a trace. `salt`: makes their tokens this round's alone.

    Errors: FileNotFoundError where the traces are not.
    """
    return list(islice({"azure": _azure, "mooncake": _mooncake}[name](salt), count))
