"""Settings: read from the environment, and one clear line and status 2 when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from kernel.dsn import Dsn
from kernel.settings import ServiceSettings, load


class Settings(ServiceSettings):
    """As a service's settings.py has them."""

    kafka: str = Field(description="bootstrap servers")
    postgres: Dsn = Field(default="postgresql://x/y", description="database")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLBOOK_KAFKA", "127.0.0.1:9092")
    monkeypatch.setenv("TOLLBOOK_LOG_LEVEL", "debug")
    monkeypatch.setenv("TOLLBOOK_HOME", "/srv/tollbook")
    settings = load(Settings)
    assert settings.kafka == "127.0.0.1:9092"
    assert settings.log_level == "DEBUG"
    assert settings.home == Path("/srv/tollbook")
    assert settings.topic == "usage.events.v1"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOLLBOOK_KAFKA", None, "TOLLBOOK_KAFKA (bootstrap servers): Field required"),
        ("TOLLBOOK_PARTITIONS", "0", "TOLLBOOK_PARTITIONS (partitions of the usage topic)"),
        ("TOLLBOOK_PARTITIONS", "four", "TOLLBOOK_PARTITIONS"),
        ("TOLLBOOK_POSTGRES", "", "TOLLBOOK_POSTGRES (database): Value error, this is no DSN"),
        ("TOLLBOOK_POSTGRES", "db:5432", "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("TOLLBOOK_LOG_LEVEL", "LOUD", "use DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_setting_is_named_and_ends_the_process_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str | None,
    said: str,
) -> None:
    monkeypatch.setenv("TOLLBOOK_KAFKA", "127.0.0.1:9092")
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        load(Settings)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
