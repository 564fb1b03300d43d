"""Request lengths shaped like real traffic, scaled to the tiny model.

The shape is that of the Azure LLM inference trace 2023, conversation part
(AzurePublicDataset, CC-BY 4.0): its 5%-quantiles of context and generated
tokens, read as a piecewise linear distribution. TOLLBOOK_TRACE, the trace's
own file (csv or csv.gz), takes the place of the quantiles.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Final, NamedTuple

# fmt: off
_CONTEXT: Final = (2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130,
                   1189, 1315, 1877, 2735, 4083, 14050)
_GENERATED: Final = (7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400,
                     411, 424, 451, 1000)
# fmt: on
PROMPT_SCALE: Final = 8
OUTPUT_SCALE: Final = 4
_MAX_TRACE_BYTES: Final = 256 * 1024 * 1024


class Lengths(NamedTuple):
    """One request, in tokens of the tiny model."""

    prompt_tokens: int
    output_tokens: int


def _scaled(context: float, generated: float) -> Lengths:
    return Lengths(max(4, round(context / PROMPT_SCALE)), max(2, round(generated / OUTPUT_SCALE)))


def _quantile(table: tuple[int, ...], fraction: float) -> float:
    at = fraction * (len(table) - 1)
    low = min(int(at), len(table) - 2)
    return table[low] + (at - low) * (table[low + 1] - table[low])


def from_quantiles(count: int, seed: int) -> list[Lengths]:
    """`count` requests of the trace's shape; the same seed gives the same."""
    source = random.Random(seed)  # noqa: S311 - shapes of requests, no secret
    return [
        _scaled(_quantile(_CONTEXT, source.random()), _quantile(_GENERATED, source.random()))
        for _ in range(count)
    ]


def from_trace(path: Path, count: int) -> list[Lengths]:
    """`count` rows of the trace at even distances. Errors: ValueError says what is wrong."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_TRACE_BYTES)
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    if len(rows) < count or not {"ContextTokens", "GeneratedTokens"} <= rows[0].keys():
        raise ValueError(
            f"{path}: needs at least {count} rows with ContextTokens and GeneratedTokens"
        )
    picked = (rows[index * len(rows) // count] for index in range(count))
    return [_scaled(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in picked]
