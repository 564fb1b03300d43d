"""The tiny model: the same bytes each time, whole or not there; its tokenizer loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from inference import tinymodel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    tinymodel.make(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(made: Path) -> Tokenizer:
    return Tokenizer.from_file(str(made / "model" / "tokenizer.json"))


def _bytes_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_the_same_code_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    again = _bytes_below(tmp_path)
    assert again == _bytes_below(made)
    assert set(again) == {
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "adapters/tiny-support/adapter_config.json",
        "adapters/tiny-support/adapter_model.safetensors",
    }


def test_what_stands_is_kept_and_what_is_missing_is_made(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    tinymodel.make(tmp_path)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]
    assert (tmp_path / "adapters" / tinymodel.ADAPTER_NAME / "adapter_config.json").is_file()
    assert not list(tmp_path.glob(".making-*"))


def test_the_adapter_changes_every_projection(made: Path) -> None:
    folder = made / "adapters" / tinymodel.ADAPTER_NAME
    weights = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, b in weights.items():
        if name.endswith("lora_B.weight"):
            a = weights[name.replace("lora_B", "lora_A")]
            assert a.shape[0] == b.shape[1] == config["r"]
            assert float(np.abs(b @ a).max()) > 0


def test_a_directory_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SystemExit) as left:
        tinymodel.main(["--out", str(tmp_path / "file")])
    assert left.value.code == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@settings(max_examples=200)
@given(text=st.text())
def test_the_tokenizer_gives_every_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if any(token in text for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        return
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < 1024 for token in ids)


def test_the_end_token_is_what_the_configuration_says(made: Path, tokenizer: Tokenizer) -> None:
    config = json.loads((made / "model" / "config.json").read_text())
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
