"""The demo's shapes and its forgery."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tollbook.demo import lengths, setting, tamper


def test_shapes_follow_the_trace_and_repeat_by_seed() -> None:
    some = lengths.from_quantiles(2_000, seed=1)
    assert some == lengths.from_quantiles(2_000, seed=1)
    prompts = sorted(one.prompt_tokens for one in some)
    outputs = sorted(one.output_tokens for one in some)
    assert abs(prompts[1_000] - 1020 / lengths.PROMPT_SCALE) < 6
    assert abs(outputs[1_000] - 129 / lengths.OUTPUT_SCALE) < 4
    assert prompts[-1] <= 14050 / lengths.PROMPT_SCALE + 1


def test_a_trace_of_ones_own_takes_the_quantiles_place(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    rows = "\n".join(f"2023-11-16,{80 * n},{40 * n}" for n in range(1, 11))
    path.write_bytes(gzip.compress(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n".encode()))
    assert lengths.from_trace(path, 5)[1] == lengths.Lengths(30, 30)
    with pytest.raises(ValueError, match="at least 11 rows"):
        lengths.from_trace(path, 11)


def test_one_byte_and_no_more_is_flipped(tmp_path: Path) -> None:
    bundle = tmp_path / "export" / "logs" / "usage-0" / "tile" / "entries" / "000.p" / "3"
    bundle.parent.mkdir(parents=True)
    bundle.write_bytes(bytes(range(64)))
    changed = tamper.flip_one_byte(tmp_path / "export", tmp_path / "copy")
    before, after = bundle.read_bytes(), (tmp_path / "copy" / changed).read_bytes()
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_a_ledger_in_use_gets_account_ids_that_it_does_not_have() -> None:
    assert setting.names(set()) == setting.CREDITS
    assert set(setting.names({"acme"})) == {f"{one}-2" for one in setting.CREDITS}
    assert set(setting.names({"dunes", "birch-2"})) == {f"{one}-3" for one in setting.CREDITS}
