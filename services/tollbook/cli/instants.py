"""Instants on the command line: RFC 3339 with a zone, as they stand in cards."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import timestamp_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(click.ParamType[Timestamp]):
    """`2026-01-31T00:00:00Z`, to microseconds; gives a protobuf timestamp."""

    name = "instant"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Timestamp:
        """Read it. Errors: click's own, one line."""
        try:
            instant = datetime.fromisoformat(str(value))
            if instant.tzinfo is None:
                raise ValueError
            delta = instant.astimezone(UTC) - _EPOCH
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no instant with its zone, such as 2026-01-31T00:00:00Z", param, ctx
            )
        return timestamp_of((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds)


INSTANT = Instant()
