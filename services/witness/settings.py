"""The witness's settings: the environment, read once at start."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kernel.settings import ServiceSettings


class WitnessKeySettings(ServiceSettings):
    """Where a witness's key is, and what it is called."""

    witness_key: Path = Field(description="file of the witness's key, made when it is not there")
    witness_name: str = Field(
        default="", description="name of a key that is made: a URL without its scheme"
    )
    witness_memory: Path = Field(description="file of what was cosigned last")
    witness_address: str = Field(min_length=3, description="host:port to listen on")
    witness_policy: Path = Field(
        default=Path("witness-policy"), description="file of a policy to be made by keygen"
    )


class WitnessSettings(WitnessKeySettings):
    """What a witness needs; nothing of it is shared with the log but its public keys."""

    witness_logs: Path = Field(description="file of the logs' verifier keys, a line each")
