"""`tollbook ledger partitions | streams`: who works on which log, and what producers lack."""

from __future__ import annotations

from typing import Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel.clock import rfc3339, us_of
from tollbook.cli.ledger_calls import TIMEOUT_S, ask
from tollbook.cli.pricing_calls import as_json
from tollbook.cli.tables import table
from tollbook.ledger.v1 import ledger_pb2 as pb

_FOR_PROGRAMS = click.option("--json", "for_programs", is_flag=True, help="For programs.")
_PAGE: Final = 1_000
_MAX_RANGES: Final = 4


@click.command()
@_FOR_PROGRAMS
def partitions(for_programs: bool) -> None:
    """Show each usage log: its owner, the owner's epoch, how far it is and how far behind.

    LAG is the number of records of the partition that are not in the log yet, as the owner last
    saw it; `-` while nobody has.
    """
    answer = ask(lambda to: to.ListPartitions(pb.ListPartitionsRequest(), timeout=TIMEOUT_S))
    if for_programs:
        click.echo(as_json(answer))
        return
    head = ("LOG", "OWNER", "EPOCH", "POSITION", "OFFSET", "END", "LAG", "STATE")
    click.echo(table(head, [_partition(one) for one in answer.partitions]))
    for one in answer.partitions:
        if one.halted:
            click.echo(f"\n{one.log} is halted: {one.halted}")
    click.echo(f"\n{len(answer.workers)} workers: {', '.join(answer.workers) or 'none'}")


def _partition(one: pb.PartitionState) -> tuple[str | int, ...]:
    return (
        one.log,
        one.owner or "-",
        one.epoch,
        one.size,
        one.next_offset,
        one.end_offset if one.HasField("end_offset") else "-",
        one.lag if one.HasField("lag") else "-",
        "halted" if one.halted else "owned" if one.owned else "free",
    )


@click.command()
@click.option("--log", "log_name", default="", help="Of one log alone, such as usage-0.")
@click.option("--gaps", is_flag=True, help="Only those of which something is missing.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1_000_000))
@_FOR_PROGRAMS
def streams(log_name: str, gaps: bool, limit: int, for_programs: bool) -> None:
    """Show producers' streams: the last number that came, and the numbers that did not."""
    found: list[pb.ProducerStream] = []
    token = ""
    while True:
        answer = _page(
            pb.ListStreamsRequest(
                log=log_name,
                gaps_only=gaps,
                page_size=min(_PAGE, limit - len(found)),
                page_token=token,
            )
        )
        found += answer.streams
        token = answer.next_page_token
        if not token or len(found) >= limit:
            break
    if for_programs:
        del answer.streams[:]
        answer.streams.extend(found)
        click.echo(as_json(answer))
        return
    head = ("LOG", "STREAM", "LAST", "STATE", "MISSING", "NUMBERS", "SINCE")
    click.echo(table(head, [_stream(one) for one in found]))
    if token:
        click.echo(f"\nThere are more; see them with --limit {limit * 10}.")
    click.echo(
        f"\n{answer.overdue_streams} streams lack a number for longer than"
        f" {answer.gap_limit_ms / 1000:g} s"
    )


def _page(request: pb.ListStreamsRequest) -> pb.ListStreamsResponse:
    return ask(lambda to: to.ListStreams(request, timeout=TIMEOUT_S))


def _stream(one: pb.ProducerStream) -> tuple[str | int, ...]:
    parts = [
        str(part.first_seq)
        if part.first_seq == part.last_seq
        else f"{part.first_seq}-{part.last_seq}"
        for part in one.missing[:_MAX_RANGES]
    ]
    if len(one.missing) > _MAX_RANGES:
        parts.append("...")
    return (
        one.log,
        one.stream_id,
        one.last_seq,
        ("closed" if one.closed else "open") + (", OVERDUE" if one.overdue else ""),
        one.missing_count,
        ", ".join(parts) or "-",
        _time(one.gap_since) if one.HasField("gap_since") else "-",
    )


def _time(instant: Timestamp) -> str:
    return rfc3339(us_of(instant))
