"""`tollbook ledger segments | seal`: where leaves are kept, and moving old ones into files."""

from __future__ import annotations

import asyncio
import os

import asyncpg
import click

from kernel import settings
from kernel.clock import rfc3339, us_of
from kernel.errors import FailedPrecondition
from kernel.migrations import MigrationError
from kernel.note import NoteError
from ledger.adapters.sealing import SealError
from ledger.adapters.store import BrokenLogError
from ledger.entrypoints.seal import seal as seal_due
from ledger.settings import SealSettings
from tollbook.cli.ledger_calls import TIMEOUT_S, ask
from tollbook.cli.pricing_calls import as_json
from tollbook.cli.tables import table
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.stack.control import Stack


@click.command()
@click.option("--log", "log_name", default="", help="Of one log alone, such as usage-0.")
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def segments(log_name: str, for_programs: bool) -> None:
    """Show where the leaves of each log are: in the database, or sealed into a file."""
    request = pb.ListSegmentsRequest(log=log_name)
    answer = ask(lambda to: to.ListSegments(request, timeout=TIMEOUT_S))
    if for_programs:
        click.echo(as_json(answer))
        return
    head = ("LOG", "FROM", "TO", "WHERE", "BYTES", "SEALED", "ROOT AT ITS END")
    click.echo(table(head, [_segment(one) for one in answer.segments]))


def _segment(one: pb.SegmentState) -> tuple[str | int, ...]:
    return (
        one.log,
        one.first_position,
        one.end_position,
        one.file if one.sealed else "database",
        one.bytes,
        rfc3339(us_of(one.sealed_time)) if one.sealed else "-",
        one.end_root.hex() or "-",
    )


@click.command()
@click.option(
    "--keep", type=click.IntRange(min=0), help="Newest entries of a log that stay. [setting]"
)
@click.option(
    "--older-than-h", type=click.IntRange(min=0), help="Hours entries stay at least. [setting]"
)
def seal(keep: int | None, older_than_h: int | None) -> None:
    """Seal old segments into files, prove them, and give up their rows.

    Needs an administrator's connection (TOLLBOOK_POSTGRES); the policy is in TOLLBOOK_SEAL_...,
    unless it is given here. What was sealed is read as before.
    """
    if not os.environ.get("TOLLBOOK_POSTGRES"):
        for name, value in Stack.at().environment().items():
            os.environ.setdefault(name, value)
    given = {"seal_keep_entries": keep, "seal_older_than_h": older_than_h}
    config = settings.load(SealSettings).model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    try:
        done = asyncio.run(seal_due(config))
    except (
        SealError,
        BrokenLogError,
        MigrationError,
        NoteError,
        asyncpg.PostgresError,
        OSError,
    ) as error:
        raise FailedPrecondition(str(error), reason="NOT_SEALED") from None
    for one in done:
        entries = one.segment.end - one.segment.start
        click.echo(
            f"{one.segment.log} [{one.segment.start}, {one.segment.end}): {one.file},"
            f" {one.segment.table_bytes / entries:.0f} -> {one.file_bytes / entries:.0f} bytes an"
            " entry"
        )
    click.echo(f"{len(done)} segments sealed")
