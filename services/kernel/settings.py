"""Settings: the environment and nothing else, one prefix, one clear line when wrong.

Every process reads `TOLLBOOK_*`; a service's own settings extend
`ServiceSettings` in its settings.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What all processes may need."""

    model_config = SettingsConfigDict(env_prefix="TOLLBOOK_", extra="ignore", frozen=True)

    home: Path = Field(default=Path(".tollbook"), description="directory of all state")
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR")
    topic: str = Field(default="usage.events.v1", description="the usage topic")
    partitions: int = Field(default=4, ge=1, le=4096, description="partitions of the usage topic")
    origin: str = Field(default="tollbook.local", description="C2SP origin; a log's is ORIGIN/LOG")

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("use DEBUG, INFO, WARNING or ERROR")
        return value.upper()


S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S]) -> S:
    """Read the settings, or say on stderr which one is wrong and leave with status 2."""
    try:
        return settings()
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for problem in error.errors(include_url=False, include_input=False):
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            field = settings.model_fields.get(str(problem["loc"][0])) if problem["loc"] else None
            what = f" ({field.description})" if field is not None and field.description else ""
            sys.stderr.write(f"setting {name}{what}: {problem['msg']}\n")
        raise SystemExit(2) from None
