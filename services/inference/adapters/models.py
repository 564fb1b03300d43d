"""What is served: the base model and its adapters, found on the disk, with their digests.

Owns names and digests. Reads files, writes none, and knows no engine.

Formats: a Hugging Face model directory (config.json, *.safetensors, tokenizer
files) and PEFT adapter directories (adapter_config.json,
adapter_model.safetensors), one folder for each adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from inference.app.shelf import Served
from inference.engine import Target
from tollbook.usage.v1 import usage_pb2 as usage

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


def check_weights(path: Path) -> None:
    """Read a safetensors file's head and hold it against its length.

    Errors: ModelUnusable, for a file that is cut off, or is another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise ModelUnusable(f"{path} is no whole safetensors file: {error}") from error
    if not names:
        raise ModelUnusable(f"{path} holds no weights")


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
