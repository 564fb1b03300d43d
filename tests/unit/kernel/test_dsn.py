"""A mistake within a database's address ends the process at its start, and shows no password."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ledger.settings
import pricing.settings
from kernel import dsn
from kernel.errors import FailedPrecondition
from kernel.settings import ServiceSettings, load


def with_databases() -> Iterator[tuple[type[ServiceSettings], str]]:
    """Settings of every process of every service that has a database, and the setting's name."""
    for module in (ledger.settings, pricing.settings):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, ServiceSettings):
                for name in found.model_fields:
                    if name.endswith("postgres"):
                        yield found, f"TOLLBOOK_{name.upper()}"


EVERY = sorted(with_databases(), key=str)


def test_every_process_with_a_database_is_looked_at() -> None:
    assert {name for _, name in EVERY} == {
        "TOLLBOOK_POSTGRES",
        "TOLLBOOK_LEDGER_POSTGRES",
        "TOLLBOOK_PRICING_POSTGRES",
    }
    assert len(EVERY) >= 9


@pytest.mark.parametrize(("settings", "name"), EVERY)
def test_a_wrong_option_ends_every_process_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: type[ServiceSettings],
    name: str,
) -> None:
    monkeypatch.setenv(name, "postgresql://u:secret@db/x?sslmode=nonsense")
    with pytest.raises(SystemExit) as caught:
        load(settings)
    assert caught.value.code == 2
    (line,) = [
        one for one in capsys.readouterr().err.splitlines() if one.startswith(f"setting {name} (")
    ]
    assert "`sslmode` parameter must be one of: disable, allow" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "this is no DSN: write postgresql://USER"),
        ("db:5432", "this is no DSN: write postgresql://USER"),
        ("postgresql://u:secret@db:54x2/x", "PORT as a number"),
        ("postgresql://u:secret@db:0/x", "port 0 is none: use one from 1 to 65535"),
        ("postgresql://u:secret@db:65536/x", "port 65536 is none"),
        ("postgresql://u:secret@db:-5/x", "port -5 is none"),
        ("postgresql://u:secret@/x?host=one,two&port=1,2,3", "match 3 port numbers to 2 hosts"),
        ("postgresql://u:secret@one,,two/x", "it cannot be read"),
        ("postgresql://u:secret@[::1/x", "it cannot be read"),
        ("postgresql://u:secret@db/x?sslmode", "it cannot be read"),
        ("postgresql://u:secret@db/x?sslmode=on", "`sslmode` parameter must be one of"),
        ("postgresql://u:secret@db/x?target_session_attrs=first", "target_session_attrs"),
        (
            "postgresql://u:secret@db/x?sslmode=require&ssl_min_protocol_version=TLSv9",
            "No such TLS version: TLSv9",
        ),
        (
            "postgresql://u:secret@db/x?sslmode=verify-full&sslrootcert=/nowhere.crt",
            "a file that it names cannot be used: [Errno 2] No such file",
        ),
        ("postgresql://u:sec@ret@db/x", "write @ as %40"),
        ("postgresql://u:sec/ret@db/x", "/ as %2F"),
        ("postgresql://u:12/ret@db/x", "/ as %2F"),
        ("postgresql://u:12#ret@db/x", "# as %23"),
        ("postgresql://u:12?ret@db/x", "? as %3F"),
        ("postgresql://u:s@e:secret@db:1/x", ": as %3A"),
    ],
)
def test_what_the_driver_cannot_use_is_told_in_one_line_without_the_password(
    value: str, said: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - looked at below
        dsn.check(value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(part in str(caught.value) for part in ("secret", "sec@", "ret@", "sec/"))


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://db/x",
        "postgres://u@db:5432/x",
        "postgresql://u:p%40%3A%2F%3F%23@db:65535/x?sslmode=require&application_name=a@b",
        # No [::1] among several: some releases of Python's urllib refuse it for the driver.
        "postgresql://u:p@one:1,two:2/x?target_session_attrs=read-write",
        "postgresql://u:p@[::1]:3/x",
        "postgresql://u:p@/x?host=/run/postgresql",
    ],
)
def test_what_the_driver_can_use_stays_as_it_is(value: str) -> None:
    assert dsn.check(value) == value


@given(st.text(max_size=40))
def test_any_text_behind_the_scheme_is_taken_or_told_of(text: str) -> None:
    # Anything but a ValueError would end the process with a traceback that may show the password.
    with contextlib.suppress(ValueError):
        assert dsn.check(f"postgresql://{text}") == f"postgresql://{text}"


def test_what_a_server_refuses_names_the_setting_and_what_is_away_goes_through() -> None:
    with (
        pytest.raises(FailedPrecondition, match=r"^setting TOLLBOOK_X: the database refuses: no$"),
        dsn.refusals("TOLLBOOK_X", (asyncpg.PostgresConnectionError,)),
    ):
        raise asyncpg.UndefinedObjectError("no\nDETAIL: never")
    with (
        pytest.raises(asyncpg.ConnectionFailureError),
        dsn.refusals("TOLLBOOK_X", (asyncpg.PostgresConnectionError,)),
    ):
        raise asyncpg.ConnectionFailureError("gone")
