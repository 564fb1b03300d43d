"""Makes a tiny real model on the spot, with no network: a tokenizer, weights, an adapter.

`python -m inference.tinymodel --out DIR` writes `DIR/model` (a Qwen2 causal
language model with seeded random weights, a byte-level BPE tokenizer trained
on corpus.txt beside this file, and a ChatML template) and
`DIR/adapters/tiny-support` (a LoRA adapter whose weights are not zero, so that
its answers differ). The same code gives the same bytes. Its text makes no
sense; its tokens are as real as any model's. `--embedder` writes `DIR/embedder/model` instead,
a model of the same make whose last state is a vector, as sentence-transformers has them: its
tokenizer ends each text, and its vectors may be cut.

The files are written by hand and not by transformers: half a second instead of
ten, and no dependence on what a release of it adds to a configuration.

Formats: Hugging Face model directory (config.json, tokenizer.json,
safetensors), PEFT's adapter directory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

SERVED_NAME: Final = "tiny"
ADAPTER_NAME: Final = "tiny-support"
CONTEXT_TOKENS: Final = 4096

_SEED: Final = 20_231_116
_VOCABULARY: Final = 1024
# The engine's CPU attention takes 32, 64, 80, 96, 112 or 128.
_HEAD: Final = 64
_LORA_RANK: Final = 8


class Shape(NamedTuple):
    """How large a model is; the names are those of Qwen2's configuration."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    intermediate_size: int = 256


TINY: Final = Shape()
# The layers of SmolLM2-135M: 106 million weights, so that the engine's work is a real model's.
SMALL: Final = Shape(hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536)

_END_OF_TEXT: Final = "<|endoftext|>"
_START: Final = "<|im_start|>"
_END: Final = "<|im_end|>"
_SPECIAL: Final = (_END_OF_TEXT, _START, _END)

_CHAT_TEMPLATE: Final = (
    "{% if tools %}<|im_start|>system\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "\n<tool_call>\n{{ call['function'] | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Weights = dict[str, npt.NDArray[np.float32]]


def _tokenizer() -> Tokenizer:
    text = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The special tokens take the first ids, whatever the text.
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(directory: Path, *, ends_texts: bool) -> None:
    tokenizer = _tokenizer()
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {_END_OF_TEXT}",
            special_tokens=[(_END_OF_TEXT, _SPECIAL.index(_END_OF_TEXT))],
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in _SPECIAL
            },
            "chat_template": _CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": _END,
            "model_max_length": CONTEXT_TOKENS,
            "pad_token": _END_OF_TEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _projections(shape: Shape) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of a layer's linear maps, by their names."""
    return {
        "self_attn.q_proj": (shape.heads * _HEAD, shape.hidden_size),
        "self_attn.k_proj": (shape.kv_heads * _HEAD, shape.hidden_size),
        "self_attn.v_proj": (shape.kv_heads * _HEAD, shape.hidden_size),
        "self_attn.o_proj": (shape.hidden_size, shape.heads * _HEAD),
        "mlp.gate_proj": (shape.intermediate_size, shape.hidden_size),
        "mlp.up_proj": (shape.intermediate_size, shape.hidden_size),
        "mlp.down_proj": (shape.hidden_size, shape.intermediate_size),
    }


def _model_weights(shape: Shape) -> Weights:
    random = np.random.Generator(np.random.PCG64(_SEED))

    def normal(*size: int) -> npt.NDArray[np.float32]:
        return (random.standard_normal(size) * 0.05).astype(np.float32)

    weights: Weights = {
        "model.embed_tokens.weight": normal(_VOCABULARY, shape.hidden_size),
        "lm_head.weight": normal(_VOCABULARY, shape.hidden_size),
        "model.norm.weight": np.ones(shape.hidden_size, np.float32),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, size in _projections(shape).items():
            weights[f"{prefix}{name}.weight"] = normal(*size)
            if name in {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}:
                weights[f"{prefix}{name}.bias"] = np.zeros(size[0], np.float32)
        weights[f"{prefix}input_layernorm.weight"] = np.ones(shape.hidden_size, np.float32)
        weights[f"{prefix}post_attention_layernorm.weight"] = np.ones(shape.hidden_size, np.float32)
    return weights


def _write_model(directory: Path, shape: Shape, *, embeds: bool = False) -> None:
    directory.mkdir(parents=True)
    _write_tokenizer(directory, ends_texts=embeds)
    if embeds:
        _write_pooling(directory, shape)
    _write_json(
        directory / "config.json",
        {
            **({"matryoshka_dimensions": [32, 64, shape.hidden_size]} if embeds else {}),
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "dtype": "float32",
            "eos_token_id": _SPECIAL.index(_END),
            "hidden_act": "silu",
            "hidden_size": shape.hidden_size,
            "initializer_range": 0.05,
            "intermediate_size": shape.intermediate_size,
            "max_position_embeddings": CONTEXT_TOKENS,
            "model_type": "qwen2",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "pad_token_id": _SPECIAL.index(_END_OF_TEXT),
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "served_model_name": SERVED_NAME,
            "tie_word_embeddings": False,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": _VOCABULARY,
        },
    )
    save_file(_model_weights(shape), directory / "model.safetensors", metadata={"format": "pt"})


def _write_pooling(directory: Path, shape: Shape) -> None:
    """What sentence-transformers makes of a text's states: the last one, made a unit."""
    kinds = ("Transformer", "Pooling", "Normalize")
    parts = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    _write_json(directory / "modules.json", parts)
    (directory / "1_Pooling").mkdir()
    _write_json(
        directory / "1_Pooling" / "config.json",
        {
            "pooling_mode_lasttoken": True,
            "pooling_mode_mean_tokens": False,
            "word_embedding_dimension": shape.hidden_size,
        },
    )


def _write_adapter(directory: Path, shape: Shape, seed: int) -> None:
    directory.mkdir(parents=True)
    random = np.random.Generator(np.random.PCG64(seed))
    weights: Weights = {}
    for layer in range(shape.layers):
        for name, (out_size, in_size) in _projections(shape).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = (
                random.standard_normal((_LORA_RANK, in_size)) * 0.1
            ).astype(np.float32)
            weights[f"{prefix}.lora_B.weight"] = (
                random.standard_normal((out_size, _LORA_RANK)) * 0.1
            ).astype(np.float32)
    _write_json(
        directory / "adapter_config.json",
        {
            "base_model_name_or_path": SERVED_NAME,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": 2 * _LORA_RANK,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": _LORA_RANK,
            "target_modules": sorted(name.rpartition(".")[2] for name in _projections(shape)),
            "task_type": "CAUSAL_LM",
        },
    )
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def make(out: Path, shape: Shape = TINY) -> None:
    """Write the model and the adapter below `out`; what stands there whole is kept.

    Each directory appears at once, by rename, so a reader never sees half of one.
    """
    parts = (
        (out / "model", partial(_write_model, shape=shape)),
        (out / "adapters" / ADAPTER_NAME, partial(_write_adapter, shape=shape, seed=_SEED + 1)),
    )
    for target, write in parts:
        _make(out, target, write)


def make_embedder(out: Path, shape: Shape = TINY) -> None:
    """Write the model that embeds below `out`, in `embedder`."""
    _make(out, out / "embedder" / "model", partial(_write_model, shape=shape, embeds=True))


def _make(out: Path, target: Path, write: Callable[[Path], None]) -> None:
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as scratch:
            made = Path(scratch) / target.name
            write(made)
            try:
                os.rename(made, target)
            except OSError:
                # Another process was first; its bytes are the same as ours.
                if not target.is_dir():
                    raise
                shutil.rmtree(made)


def main(arguments: list[str] | None = None) -> None:
    """Command line: `--out DIR`."""
    parser = argparse.ArgumentParser(prog="inference.tinymodel", description=__doc__)
    parser.add_argument("--embedder", action="store_true", help="the model that embeds")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    # Threads would only make the order of work, never the result, uncertain.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        (make_embedder if options.embedder else make)(options.out)
    except OSError as error:
        sys.stderr.write(f"the tiny model cannot be written to {options.out}: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
