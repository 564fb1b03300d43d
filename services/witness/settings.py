"""The witness's settings: the environment, read once at start."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kernel.settings import ServiceSettings


class WitnessSettings(ServiceSettings):
    """What a witness needs; nothing of it is shared with the log."""

    witness_key: Path = Field(description="file of the witness's key, made when it is not there")
    witness_name: str = Field(
        default="", description="name of a key that is made: a URL without its scheme"
    )
    witness_memory: Path = Field(description="file of what was cosigned last")
    witness_address: str = Field(min_length=3, description="host:port to listen on")
    witness_logs: Path = Field(description="file of the logs' verifier keys, a line each")
