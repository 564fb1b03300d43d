"""`tollbook ledger events`: a log's entries, all or those that match, as lines or as Arrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from kernel import leaf as leaf_format
from kernel import memory
from kernel.placement import partition_of, usage_log
from tollbook.cli.ledger_calls import TIMEOUT_S, ask
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.usage.v1 import usage_pb2 as usage

_DISPOSITIONS = {
    name.removeprefix("DISPOSITION_").lower(): number for name, number in pb.Disposition.items()[1:]
}


@click.command()
@click.argument("log_name", metavar="[LOG]", required=False)
@click.option("--account", default="", help="Of this account; LOG may be left out then.")
@click.option("--model", default="", help="Of this served model.")
@click.option("--since", default="", help="Event time from here on, RFC 3339.")
@click.option("--until", default="", help="Event time before this, RFC 3339.")
@click.option(
    "--disposition", "dispositions", multiple=True, type=click.Choice(list(_DISPOSITIONS))
)
@click.option("--from", "first", default=0, type=click.IntRange(min=0), help="First position.")
@click.option("--to", "end", default=0, type=click.IntRange(min=0), help="Before this position.")
@click.option("--follow", is_flag=True, help="Stay, and show what is added.")
@click.option(
    "--arrow", type=click.Path(path_type=Path, dir_okay=False), help="Write an Arrow IPC stream."
)
def events(
    log_name: str | None,
    account: str,
    model: str,
    since: str,
    until: str,
    dispositions: tuple[str, ...],
    first: int,
    end: int,
    follow: bool,
    arrow: Path | None,
) -> None:
    """Show the entries of LOG that match, a JSON object a line, and at the end what was looked at.

    Each line has the entry's position; every position between two of them was looked at and does
    not match, which `GetEntry` lets anyone check for any of them.
    """
    if log_name is None:
        if not account:
            raise click.UsageError("name a log, or an account whose log it is")
        log_name = _log_of(account)
    wanted = _filter(account, model, since, until, dispositions)
    if arrow is not None:
        if follow:
            raise click.UsageError("--follow has no end, a file has: leave one of them out")
        request = pb.ReadArrowRequest(
            log=log_name, from_position=first, to_position=end, filter=wanted
        )
        looked_at = ask(lambda to: _write_arrow(to, request, arrow))
    else:
        looked_at = ask(
            lambda to: _show(
                to,
                pb.ReadEventsRequest(
                    log=log_name,
                    from_position=first,
                    to_position=end,
                    follow=follow,
                    filter=wanted,
                ),
            )
        )
    click.echo(f"{log_name}: looked at positions [{first}, {looked_at})", err=True)


def _log_of(account: str) -> str:
    answer = ask(lambda to: to.ListPartitions(pb.ListPartitionsRequest(), timeout=TIMEOUT_S))
    if not answer.partitions:
        raise click.UsageError("the ledger has no usage log yet")
    return usage_log(partition_of(account, len(answer.partitions)))


def _filter(
    account: str, model: str, since: str, until: str, dispositions: tuple[str, ...]
) -> pb.EventFilter | None:
    if not (account or model or since or until or dispositions):
        return None
    return pb.EventFilter(
        account_id=account,
        served_model=model,
        from_time=_instant(since),
        to_time=_instant(until),
        dispositions=[pb.Disposition.ValueType(_DISPOSITIONS[name]) for name in dispositions],
    )


def _instant(text: str) -> Timestamp | None:
    if not text:
        return None
    instant = Timestamp()
    try:
        instant.FromJsonString(text)
    except ValueError as error:
        raise click.UsageError(
            f"{text!r} is no instant such as 2026-01-31T08:00:00Z: {error}"
        ) from None
    return instant


async def _show(to: Any, request: pb.ReadEventsRequest) -> int:
    position = request.from_position
    is_filtered = request.HasField("filter")
    async for answer in to.ReadEvents(request):
        whole = range(answer.first_position, answer.next_position)
        positions = answer.positions if is_filtered else whole
        for at, data in zip(positions, answer.leaves, strict=True):
            click.echo(json.dumps({"position": at, **_described(data)}))
        position = answer.next_position
    return position


async def _write_arrow(to: Any, request: pb.ReadArrowRequest, path: Path) -> int:
    memory.keep_freed()
    position = request.from_position
    with path.open("wb") as file:
        async for answer in to.ReadArrow(request):
            file.write(answer.ipc)
            position = answer.next_position
        file.write(_END_OF_STREAM)
    return position


_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _described(data: bytes) -> dict[str, Any]:
    """What stands in a leaf, as JSON has it."""
    leaf = leaf_format.decode(data)
    told: dict[str, Any] = {
        "disposition": pb.Disposition.Name(pb.Disposition.ValueType(leaf.disposition))
        .removeprefix("DISPOSITION_")
        .lower(),
        "offset": leaf.offset,
        "timestamp_ms": leaf.timestamp_ms,
        "key": leaf.key.decode("utf-8", "backslashreplace"),
    }
    if leaf.reason:
        told["reason"] = (
            pb.Reason.Name(pb.Reason.ValueType(leaf.reason)).removeprefix("REASON_").lower()
        )
    try:
        record = usage.UsageRecord.FromString(leaf.value)
        if leaf.aside or not record.stream_id:
            raise DecodeError
        event = usage.UsageEvent.FromString(record.usage_event)
    except DecodeError:
        told["value_hex"] = leaf.value.hex()
        return told
    told["stream"] = f"{record.stream_id} #{record.stream_seq}"
    body = record.WhichOneof("body")
    if body == "usage_event":
        told["usage_event"] = json_format.MessageToDict(event, preserving_proto_field_name=True)
    elif body is not None:
        told[body] = json_format.MessageToDict(
            getattr(record, body), preserving_proto_field_name=True
        )
    return told
