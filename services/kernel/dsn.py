"""Addresses of PostgreSQL databases: judged whole when a process starts, by the driver itself.

Once a service runs, whatever the driver says of a connection is taken for a database that is away
and tried again for ever, so a mistake within the address has to be found before.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Annotated, Final
from urllib.parse import urlsplit

import asyncpg
from asyncpg import connect_utils
from pydantic import AfterValidator

from kernel.errors import FailedPrecondition

_FORM: Final = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_ESCAPES: Final = (
    "within a name or a password write @ as %40, : as %3A, / as %2F, ? as %3F and # as %23"
)
# What `asyncpg.connect` could be given beside its DSN.
_NOTHING_ELSE: Final = dict.fromkeys(
    inspect.signature(connect_utils._parse_connect_dsn_and_args).parameters
)


def check(value: str) -> str:
    """The DSN as it is, where the driver can use it.

    Errors: ValueError that says what to do. Of the DSN it shows at most what stands behind the
    address: no password that was written as it should be, and no part of one that was not.
    """
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError(f"this is no DSN: write {_FORM}")
    try:
        parts = urlsplit(value)
        if parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment:
            # The driver would take a piece of the password for the host, and look for that.
            raise ValueError
        # Private, and there is no other way to have it judged without connecting.
        addresses, _ = connect_utils._parse_connect_dsn_and_args(**{**_NOTHING_ELSE, "dsn": value})
    except asyncpg.ClientConfigurationError as error:
        raise ValueError(f"the driver refuses it: {' '.join(str(error).split())}") from None
    except OSError as error:
        # A certificate or a key; OpenSSL does not say which.
        raise ValueError(f"a file that it names cannot be used: {error}") from None
    except (ValueError, LookupError):
        raise ValueError(
            f"it cannot be read: write {_FORM}?OPTION=VALUE, PORT as a number; {_ESCAPES}"
        ) from None
    for address in addresses:
        # A path is a socket's, which has no port.
        if not isinstance(address, str) and not 0 < address[1] < 65_536:
            raise ValueError(f"port {address[1]} is none: use one from 1 to 65535")
    return value


Dsn = Annotated[str, AfterValidator(check)]
"""Address of a PostgreSQL database. It may hold a password: no message shows it."""


@contextlib.contextmanager
def refusals(setting: str, away: tuple[type[Exception], ...]) -> Iterator[None]:
    """Around the first connection: what the server has against it is a mistake in the setting.

    An unknown option is one, which the driver hands to the server as a parameter of the session.
    Errors: FailedPrecondition for what is not among `away`, which goes through.
    """
    try:
        yield
    except away:
        raise
    except asyncpg.PostgresError as error:
        raise FailedPrecondition(
            f"setting {setting}: the database refuses: {said(error)}", reason="REFUSED"
        ) from None


def said(error: BaseException) -> str:
    """The first line of what a database said: the others are for its administrator."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
