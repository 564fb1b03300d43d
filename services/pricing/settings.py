"""Pricing's settings: the environment, read once at start."""

from __future__ import annotations

from pydantic import Field

from kernel.dsn import Dsn
from kernel.settings import ServiceSettings


class PricingSettings(ServiceSettings):
    """What pricing's processes need."""

    pricing_postgres: Dsn = Field(description="DSN of the role tollbook_pricing")
    ledger_address: str = Field(min_length=3, description="host:port of the ledger's gRPC")
    alerts: str = Field(default="", description="YAML file of what to watch and whom to tell")


class ServerSettings(PricingSettings):
    """What the server needs besides."""

    pricing_address: str = Field(min_length=3, description="host:port to listen on")


class ProjectorSettings(PricingSettings):
    """What the projector needs besides."""

    health_address: str = Field(min_length=3, description="host:port of its health service")


class MigrateSettings(ServiceSettings):
    """What the migration needs."""

    postgres: Dsn = Field(description="DSN of a role that may create roles")
    pricing_db_password: str = Field(min_length=1, description="password of tollbook_pricing")
