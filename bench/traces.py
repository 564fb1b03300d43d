"""The traces of two real services, as they are published.

The files are not the project's: TOLLBOOK_BENCH_DATA says where they are.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

DATA: Final = Path(os.environ.get("TOLLBOOK_BENCH_DATA", "../shared/data"))
BLOCK_TOKENS: Final = 512
"""Tokens that a name in Mooncake's hash_ids stands for."""


def azure_rows() -> Iterator[dict[str, str]]:
    """Azure's trace: TIMESTAMP, ContextTokens, GeneratedTokens. Errors: FileNotFoundError."""
    with gzip.open(DATA / "azure_llm_conv_2023.csv.gz", "rt") as file:
        yield from csv.DictReader(file)


def mooncake_rows() -> Iterator[dict[str, Any]]:
    """Mooncake's: timestamp (ms), input_length, output_length, hash_ids. Errors: as above."""
    with gzip.open(DATA / "mooncake_conversation.jsonl.gz", "rt") as file:
        yield from map(json.loads, file)
