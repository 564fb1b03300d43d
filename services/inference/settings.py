"""Inference's settings: the environment, read once at start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from kernel.settings import ServiceSettings


class EngineSettings(ServiceSettings):
    """What the engine needs."""

    model: Path = Field(description="Hugging Face model directory")
    served_name: str = Field(default="tiny", min_length=1, description="the base model's name")
    adapters: Path | None = Field(
        default=None, description="directory of LoRA adapters, one folder each"
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="memory for the prefix cache (CPU)")
    engine_threads: int = Field(default=1, ge=1, le=1024, description="compute threads (CPU)")
    engine_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s]+)?$",
        description="an OpenAI-compatible server that generates, instead of the engine inside",
    )
    engine_task: Literal["generate", "embed"] = Field(
        default="generate", description="what the model does: text, or vectors (embeddings)"
    )
    engine_model: str = Field(
        default="", max_length=256, description="the model's name at that server; empty: the same"
    )
    engine_key: SecretStr = Field(default=SecretStr(""), description="the key that server asks for")
    engine_silence_ms: int = Field(
        default=120_000, ge=100, description="a server that says nothing for so long has failed"
    )
    engine_requests: int = Field(
        default=64, ge=1, le=4096, description="sequences that the engine runs at once"
    )

    tool_parser: str = Field(
        default="", description="vLLM's parser of how the model writes calls of tools; empty: none"
    )
    cache_blocks: int = Field(
        default=0,
        ge=0,
        description="blocks that the engine inside keeps of what it has read; 0: what memory holds",
    )
    draft_tokens: int = Field(
        default=0,
        ge=0,
        le=16,
        description="tokens that the engine inside guesses at each step from the text so far and"
        " then checks; 0: none",
    )
    idle_timeout_ms: int = Field(
        default=0,
        ge=0,
        description="the engine inside is stopped after so long without a request; 0: never",
    )

    @field_validator("adapters", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        # An empty path would be the working directory.
        return value or None


class ServerSettings(EngineSettings):
    """What the server needs besides."""

    inference_address: str = Field(min_length=3, description="host:port to listen on")
    http_address: str = Field(
        default="", description="host:port of the OpenAI-compatible HTTP door; empty: no such door"
    )
    pricing_address: str = Field(min_length=3, description="host:port of pricing's gRPC")
    kafka: str = Field(min_length=3, description="bootstrap servers of the broker")
    spool_dir: Path = Field(description="directory of the usage spool, of this process alone")
    producer: str = Field(
        default="inference-0",
        pattern=r"^[A-Za-z0-9._-]{1,48}$",
        description="name of this producer, the same over restarts",
    )
    region: str = Field(default="", max_length=64, description="region written in usage events")
    credit_policy: Literal["refuse", "lease"] = Field(
        default="refuse",
        description="while pricing is away: refuse requests, or lease to accounts with credit",
    )
    admin_secret_digest: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256, in hex, of the secret that loads and unloads adapters; empty: nobody",
    )
    house_accounts: str = Field(
        default="",
        pattern=r"^([^\s,]+(,[^\s,]+)*)?$",
        max_length=4096,
        description="accounts, with commas between them, whose keys may ask what all engines"
        " counted (GetConservation); empty: nobody",
    )
    wake_ms: int = Field(
        default=120_000, ge=1, description="how long a request waits for a sleeping engine"
    )
    residency_account: str = Field(
        default="", max_length=64, description="account that an engine's presence is charged to"
    )
    residency_slice_ms: int = Field(
        default=60_000, ge=100, description="presence is metered in pieces of so long"
    )
    max_requests: int = Field(
        default=512, ge=1, le=65_536, description="requests under way at once, queued ones included"
    )
    max_account_requests: int = Field(
        default=256, ge=1, le=65_536, description="of these, at most so many of one account"
    )
    spool_max_bytes: int = Field(
        default=1 << 30, ge=64 << 20, description="bound of the spool on the disk"
    )
    drain_ms: int = Field(
        default=8_000, ge=0, description="how long a shutdown waits for requests under way"
    )
