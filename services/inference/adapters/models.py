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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.app.requests import Served
from inference.engine import Target
from tollbook.usage.v1 import usage_pb2 as usage

MAX_ADAPTERS: Final = 64
MAX_ADAPTER_RANK: Final = 512
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


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: its served name, its folder, and the rank of its matrices."""

    name: str
    path: Path
    rank: int


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnusable(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path} does not hold a JSON object")
    return value


def _digest(paths: Iterable[Path]) -> bytes:
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
    template = _read_json(config).get("chat_template") if config.is_file() else None
    if not template:
        return b""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def adapters_of(base_name: str, directory: Path | None) -> list[Adapter]:
    """Adapters in a directory, in order of name. Errors: ModelUnusable.

    A folder's name is the served name when it begins with `BASE-`; else the
    served name is `BASE-FOLDER`.
    """
    if directory is None:
        return []
    if not directory.is_dir():
        raise ModelUnusable(f"{directory}, the directory of adapters, is not there")
    found: dict[str, Adapter] = {}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        prefix = f"{base_name}-"
        name = folder.name if folder.name.startswith(prefix) else prefix + folder.name
        if name in found:
            raise ModelUnusable(f"{found[name].path} and {folder} are both served as {name!r}")
        rank = _read_json(folder / "adapter_config.json").get("r")
        if not isinstance(rank, int) or not 1 <= rank <= MAX_ADAPTER_RANK:
            raise ModelUnusable(
                f"{folder / 'adapter_config.json'}: r is {rank!r}, not a rank of 1 to"
                f" {MAX_ADAPTER_RANK}"
            )
        if not _files(folder, ("adapter_model.safetensors",)):
            raise ModelUnusable(f"{folder / 'adapter_model.safetensors'} is missing")
        found[name] = Adapter(name, folder, rank)
    if len(found) > MAX_ADAPTERS:
        raise ModelUnusable(
            f"{directory} holds {len(found)} adapters, at most {MAX_ADAPTERS} are served"
        )
    return sorted(found.values(), key=lambda adapter: adapter.name)


def discover(
    model: Path, base_name: str, adapters: Path | None, elsewhere: bool = False
) -> dict[str, Served]:
    """All served names. Reads every byte of the weights once. Errors: ModelUnusable.

    `elsewhere`: the weights are another server's; what is not here has no digest.
    """
    _read_json(model / "config.json")
    weights = [] if elsewhere else _files(model, _WEIGHTS)
    if not weights and not elsewhere:
        raise ModelUnusable(f"{model} holds no weights (*.safetensors)")
    base = usage.Provenance(
        model_digest=b"" if elsewhere else _digest([model / "config.json", *weights]),
        tokenizer_digest=_digest(_files(model, _TOKENIZER)),
        template_digest=_template_digest(model),
    )
    served = {base_name: Served(Target(base_name, base_name, ""), base)}
    for adapter in adapters_of(base_name, adapters):
        provenance = usage.Provenance(
            adapter_digest=_digest(_files(adapter.path, ("*.json", *_WEIGHTS)))
        )
        provenance.MergeFrom(base)
        served[adapter.name] = Served(Target(adapter.name, base_name, adapter.name), provenance)
    return served
