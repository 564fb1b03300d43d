"""The ledger's settings: the environment, read once at start."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kernel.dsn import Dsn
from kernel.settings import ServiceSettings


class MigrateSettings(ServiceSettings):
    """What the migration needs."""

    postgres: Dsn = Field(description="DSN of a role that may create roles")
    ledger_db_password: str = Field(min_length=1, description="password of tollbook_ledger")


class KeySettings(ServiceSettings):
    """Where the signer's key and the public keys are."""

    signer_key: Path = Field(description="file of the C2SP signer key, mode 0600")
    verifier_keys: Path = Field(description="file of the C2SP verifier keys, one log a line")


class SegmentSettings(ServiceSettings):
    """Where sealed segments are."""

    ledger_segments: str = Field(
        default="",
        description="where sealed segments are: a directory, by default HOME/segments, or a URL"
        " such as s3://BUCKET/PREFIX",
    )

    def segments(self) -> str:
        """Directory or URL of sealed segments."""
        return self.ledger_segments or str(self.home / "segments")


class SealSettings(SegmentSettings):
    """What sealing needs."""

    postgres: Dsn = Field(description="DSN of a role that owns the schema's tables")
    verifier_keys: Path = Field(description="file of the C2SP verifier keys, one log a line")
    seal_older_than_h: int = Field(
        default=720,
        ge=0,
        le=1_000_000,
        description="hours for which entries stay in the database at the least",
    )
    seal_keep_entries: int = Field(
        default=4_194_304,
        ge=0,
        description="newest entries of a log that stay in the database, whatever their age",
    )
    seal_segments: int = Field(
        default=64, ge=1, le=100_000, description="segments that one run seals at the most"
    )


class DatabaseSettings(SegmentSettings):
    """What every running process of the ledger needs."""

    ledger_postgres: Dsn = Field(description="DSN of the role tollbook_ledger")


class ServerSettings(DatabaseSettings):
    """What the server needs."""

    ledger_address: str = Field(min_length=3, description="host:port to listen on")
    ledger_gap_limit_ms: int = Field(
        default=300_000,
        ge=100,
        le=604_800_000,
        description="how long a number of a producer's stream may be missing before it alarms",
    )


class WorkerSettings(DatabaseSettings):
    """What a worker needs."""

    kafka: str = Field(min_length=3, description="bootstrap servers, host:port,host:port")
    health_address: str = Field(min_length=3, description="host:port of its health service")
    ledger_lease_ms: int = Field(
        default=3_000, ge=500, le=60_000, description="how long a silent worker keeps its logs"
    )
    ledger_batch_records: int = Field(
        default=8_192, ge=1, le=100_000, description="records of one transaction at the most"
    )


class SignerSettings(DatabaseSettings, KeySettings):
    """What the signer needs."""

    health_address: str = Field(min_length=3, description="host:port of its health service")
    witness_policy: Path | None = Field(
        default=None, description="file of a C2SP tlog-policy: who must cosign a checkpoint"
    )


class RotateSettings(KeySettings):
    """What putting a new signer key in the place of the old one needs."""

    ledger_address: str = Field(min_length=3, description="host:port of the ledger's server")


class TilesSettings(ServiceSettings):
    """What publishing the logs as tiles needs."""

    ledger_address: str = Field(min_length=3, description="host:port of the ledger's server")
    tiles_url: str = Field(
        min_length=8, description="where tiles are kept: file:///DIRECTORY or s3://BUCKET/PREFIX"
    )
    tiles_address: str = Field(min_length=3, description="host:port to serve them at over HTTP")
    tiles_interval_ms: int = Field(
        default=1_000, ge=50, le=3_600_000, description="how often new checkpoints are published"
    )
