"""What to watch and whom to tell: the file that TOLLBOOK_ALERTS names, read once at start.

    webhooks:
      - {name: ops, url: "https://ops.example/hook", secret: whsec_...}
    rules:
      - {id: low, kind: balance_below, amount: "5.00"}
      - {id: day, kind: spent, window: day, time_zone: Europe/Berlin, amount: "100"}
      - {id: fast, kind: burn_rate, hours: 24}
      - {id: jump, kind: spike, window: hour, times: 10, amount: "1.00"}
      - {id: unpriced, kind: suspense, entries: 1}

`accounts` limits a rule to those named; without it a rule is for all. Amounts
are in each account's own currency.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from kernel.errors import InvalidArgument
from kernel.money import MoneyError, parse_amount
from pricing.domain.windows import DAY, HOUR, MINUTE, zone_problem

MAX_BYTES: Final = 1_000_000
MAX_RULES: Final = 200
MAX_WEBHOOKS: Final = 20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MARK: Final = "whsec_"
_SECRET_BYTES: Final = (24, 64)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name is 1-64 of a-z 0-9 . _ - and begins with a letter or digit")
    return value


def _pico(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError('an amount stands in quotes, such as "5.00"')
    try:
        pico = parse_amount(value)
    except MoneyError as error:
        raise ValueError(str(error)) from None
    if pico < 0:
        raise ValueError("an amount is not below 0")
    return pico


Name = Annotated[str, AfterValidator(_name)]
Pico = Annotated[int, BeforeValidator(_pico)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Webhook(_Strict):
    """Whom to tell."""

    name: Name
    url: str
    secret: SecretStr

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("a url is http:// or https://, with a host and without a password")
        return value

    @field_validator("secret")
    @classmethod
    def _is_secret(cls, value: SecretStr) -> SecretStr:
        secret_of(value.get_secret_value())
        return value

    def key(self) -> bytes:
        """What signs what is sent to it."""
        return secret_of(self.secret.get_secret_value())


def secret_of(text: str) -> bytes:
    """A secret's bytes: `whsec_` and base64 of 24 to 64 bytes (Standard Webhooks). ValueError."""
    least, most = _SECRET_BYTES
    try:
        secret = base64.b64decode(text.removeprefix(_MARK), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_MARK) or not least <= len(secret) <= most:
        raise ValueError(f"a secret is {_MARK} and base64 of {least} to {most} bytes")
    return secret


class Rule(_Strict):
    """What to watch."""

    id: Name
    kind: Literal["balance_below", "spendable_below", "spent", "burn_rate", "spike", "suspense"]
    accounts: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()
    amount: Pico | None = None
    window: Literal["minute", "hour", "day", "week", "month"] | None = None
    time_zone: str = "UTC"
    hours: Annotated[int, Field(ge=1, le=8_784)] | None = None
    times: Annotated[int, Field(ge=2, le=10_000)] | None = None
    entries: Annotated[int, Field(ge=1)] | None = None

    @field_validator("time_zone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        if problem := zone_problem(value):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        needs = {
            "balance_below": {"amount"},
            "spendable_below": {"amount"},
            "spent": {"amount", "window"},
            "burn_rate": {"hours"},
            "spike": {"amount", "window", "times"},
            "suspense": {"entries"},
        }[self.kind]
        given = {
            name
            for name in ("amount", "window", "hours", "times", "entries")
            if getattr(self, name) is not None
        }
        if needs != given:
            raise ValueError(f"{self.kind} has {', '.join(sorted(needs))} and none of the others")
        if self.kind == "spike" and self.window not in SPIKE_WINDOWS:
            raise ValueError(f"the window of a spike is one of {', '.join(SPIKE_WINDOWS)}")
        return self

    def covers(self, account_id: str) -> bool:
        """Tell whether it watches an account."""
        return not self.accounts or account_id in self.accounts

    @property
    def span(self) -> str | None:
        """The window whose spending it looks at, or None."""
        return HOUR if self.kind == "burn_rate" else self.window


SPIKE_WINDOWS: Final = (MINUTE, HOUR, DAY)


class Alerts(_Strict):
    """The whole file."""

    webhooks: Annotated[tuple[Webhook, ...], Field(max_length=MAX_WEBHOOKS)] = ()
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()

    @model_validator(mode="after")
    def _names_are_ones(self) -> Self:
        for what, names in (
            ("webhook", [one.name for one in self.webhooks]),
            ("rule", [one.id for one in self.rules]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s have the same name")
        return self


NONE: Final = Alerts()


def read(path: str) -> Alerts:
    """The file at a path; without a path nothing is watched. Errors: InvalidArgument."""
    if not path:
        return NONE
    try:
        data = Path(path).read_bytes()
        if len(data) > MAX_BYTES:
            raise InvalidArgument(f"{path}: it is larger than {MAX_BYTES} bytes")
        return Alerts.model_validate(yaml.safe_load(data) or {})
    except (OSError, yaml.YAMLError) as error:
        raise InvalidArgument(f"TOLLBOOK_ALERTS {path}: {error}") from None
    except ValidationError as error:
        # Without what was given: a secret is among it.
        said = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise InvalidArgument(f"TOLLBOOK_ALERTS {path}: {said}") from None
