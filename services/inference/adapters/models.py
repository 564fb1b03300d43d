"""What is served: the base model and its adapters, found on the disk, with their digests.

Owns names and digests. Reads files, writes none, and knows no engine.

Formats: a Hugging Face model directory (config.json, *.safetensors, tokenizer
files) and PEFT adapter directories (adapter_config.json,
adapter_model.safetensors), one folder for each adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from inference.app.shelf import Served
from inference.engine import Target
from tollbook.usage.v1 import usage_pb2 as usage

_PEFT_PREFIX: Final = "base_model.model."
_CHUNK_BYTES: Final = 1 << 20
_WEIGHTS: Final = ("*.safetensors", "*.bin")
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


class ModelUnusable(Exception):
    """The model, or an adapter, cannot be served; the message says which and why."""


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object. Errors: ModelUnusable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnusable(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path} does not hold a JSON object")
    return value


def digest_of(paths: Iterable[Path]) -> bytes:
    """SHA-256 over files: for each, in order of name, its name, its length, its bytes."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        name = path.name.encode()
        digest.update(len(name).to_bytes(2, "big") + name)
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.digest()


def _files(directory: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in directory.glob(pattern) if path.is_file()]


def _template_digest(model: Path) -> bytes:
    """SHA-256 of the chat template; empty when the model has none."""
    file = model / "chat_template.jinja"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).digest()
    config = model / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if not template:
        return b""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def adapter_name(base_name: str, folder: str) -> str:
    """The served name: the folder's when it begins with `BASE-`, else `BASE-FOLDER`."""
    prefix = f"{base_name}-"
    return folder if folder.startswith(prefix) else prefix + folder


def rank_of(adapter: Path, max_rank: int) -> int:
    """The rank of an adapter's matrices. Errors: ModelUnusable."""
    config = adapter / "adapter_config.json"
    given = read_json(config)
    rank = given.get("r")
    if given.get("peft_type") not in (None, "LORA"):
        raise ModelUnusable(f"{config}: peft_type is {given['peft_type']!r}, not LORA")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise ModelUnusable(f"{config}: r is {rank!r}, not a rank of 1 to {max_rank}")
    return rank


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors, by name, from its head.

    Errors: ModelUnusable, for a file that is cut off, or is another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as weights:
            # No mapping, so its keys are asked for.
            names = list(weights.keys())
            return {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelUnusable(f"{path} is no whole safetensors file: {error}") from error


def base_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all of a model's tensors; none where its weights are elsewhere."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(model, ("*.safetensors",)):
        shapes |= shapes_of(path)
    return shapes


def check_weights(path: Path, base: Mapping[str, tuple[int, ...]], max_rank: int) -> None:
    """Hold an adapter's matrices against the model's: vLLM 0.32 takes in what does not fit.

    A is (rank, in) and B (out, rank) of a base weight that is (out, in). What the model
    has under another name is left to the engine. Errors: ModelUnusable.
    """
    shapes = shapes_of(path)
    if not shapes:
        raise ModelUnusable(f"{path} holds no weights")
    for name, shape in shapes.items():
        module, _, matrix = name.removesuffix(".weight").rpartition(".")
        known = base.get(f"{module.removeprefix(_PEFT_PREFIX)}.weight")
        if matrix not in ("lora_A", "lora_B") or known is None:
            continue
        rank, side = (0, 1) if matrix == "lora_A" else (1, 0)
        if len(shape) != 2 or len(known) != 2 or shape[side] != known[side]:
            raise ModelUnusable(f"{path}: {name} is {shape}, of a weight that is {known}")
        if not 1 <= shape[rank] <= max_rank:
            raise ModelUnusable(f"{path}: {name} is {shape}, not of a rank of 1 to {max_rank}")


def discover(model: Path, base_name: str, elsewhere: bool = False) -> Served:
    """The base model. Reads every byte of the weights once. Errors: ModelUnusable.

    `elsewhere`: the weights are another server's; what is not here has no digest.
    """
    read_json(model / "config.json")
    weights = [] if elsewhere else _files(model, _WEIGHTS)
    if not weights and not elsewhere:
        raise ModelUnusable(f"{model} holds no weights (*.safetensors)")
    provenance = usage.Provenance(
        model_digest=b"" if elsewhere else digest_of([model / "config.json", *weights]),
        tokenizer_digest=digest_of(_files(model, _TOKENIZER)),
        template_digest=_template_digest(model),
    )
    return Served(Target(base_name, base_name, ""), provenance)
