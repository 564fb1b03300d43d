"""`tollbook up | down | status | logs | env`: the local stack from the command line.

Shows and asks; what happens to the stack is tollbook.stack.control's doing.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tollbook.stack.control import UP_TIMEOUT_S, Stack
from tollbook.stack.errors import StackError
from tollbook.stack.logs import tail
from tollbook.stack.parts import Process
from tollbook.stack.processes import ProcessId
from tollbook.stack.state import PartState, StackState

_FOLLOW_POLL_S = 0.2
_PROBE_S = 5


@click.command()
@click.option("--only", default="", help="Parts, by name with commas between: kafka,postgres.")
@click.option("--timeout-s", default=UP_TIMEOUT_S, show_default=True, type=click.IntRange(1, 3600))
def up(only: str, timeout_s: int) -> None:
    """Start the stack and wait until every part of it answers."""
    stack = Stack.at()
    started = time.monotonic()

    def watch(name: str, part: PartState) -> None:
        seconds = time.monotonic() - started
        click.echo(f"{seconds:6.1f} s  {name:<18} {part.status:<9} {_where(part)}".rstrip())

    wanted = [name for name in only.replace(" ", "").split(",") if name]
    if stack.up(wanted, timeout_s=timeout_s, watch=watch):
        click.echo(f"up, in {time.monotonic() - started:.1f} s; state in {stack.home.root}")
    else:
        click.echo(f"already up; state in {stack.home.root}")


@click.command()
@click.option("--remove", is_flag=True, help="Delete the stack's data and home as well.")
def down(remove: bool) -> None:
    """Stop all of the stack, also what a killed one left behind."""
    stack = Stack.at()
    stopped = stack.down()
    click.echo("down" if stopped else "nothing was running")
    if remove:
        stack.remove()
        click.echo(f"removed {stack.home.root}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show each part; exit 0 when all answer, 3 when nothing runs, 1 otherwise."""
    stack = Stack.at()
    state = stack.state()
    if state is None or not state.is_supervised():
        left = stack.processes()
        if as_json:
            click.echo(json.dumps({"running": False, "home": str(stack.home.root)}))
        elif left:
            pids = ", ".join(str(process.pid) for process in sorted(left, key=lambda p: p.pid))
            click.echo(f"the supervisor is gone, processes are left: {pids}; run `tollbook up`")
        else:
            click.echo(f"nothing runs; state in {stack.home.root}")
        sys.exit(1 if left else 3)
    rows = asyncio.run(_rows(stack, state))
    if as_json:
        click.echo(json.dumps({"running": True, "home": str(stack.home.root), "parts": rows}))
    else:
        click.echo(f"{'PART':<18} {'STATE':<14} {'PID':>8}  {'STARTS':>6}  {'FOR':>7}  WHERE")
        for row in rows:
            click.echo(
                f"{row['part']:<18} {row['state']:<14} {row['pid'] or '-':>8}  "
                f"{row['starts'] or '-':>6}  {row['for']:>7}  {row['where']}"
            )
        for name, place in state.given.items():
            click.echo(
                f"{name:<18} {'your own':<14} {'-':>8}  {'-':>6}  {'-':>7}  {_redacted(place)}"
            )
    sys.exit(0 if all(row["state"] == "ready" for row in rows) else 1)


@click.command()
@click.argument("part", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(0, 10_000))
def logs(part: str | None, follow: bool, lines: int) -> None:
    """Show the last lines that PART wrote, or every part."""
    stack = Stack.at()
    known = sorted(path.stem for path in stack.home.logs.glob("*.log"))
    if part is not None and part not in known:
        there = ", ".join(known) or "none yet"
        raise StackError(f"there is no log of {part!r}; there are: {there}")
    chosen = [part] if part is not None else known
    for name in chosen:
        for line in tail(stack.log_file(name), lines):
            click.echo(_labelled(name, line, part))
    if follow:
        for name, line in _follow(stack, part):
            click.echo(_labelled(name, line, part))


@click.command()
def env() -> None:
    """Print the running stack's settings as shell lines: eval "$(tollbook env)"."""
    for name, value in Stack.at().environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _where(part: PartState) -> str:
    return " ".join(word for word in (part.address, part.detail) if word)


async def _rows(stack: Stack, state: StackState) -> list[dict[str, str | int]]:
    probes = {part.name: part for part in stack.parts() if isinstance(part, Process)}
    also = {name: probe.also for name, probe in probes.items()}

    async def one(name: str, part: PartState) -> dict[str, str | int]:
        shown: str = part.status
        if shown == "ready" and name in probes and not await _answers(probes[name], part.process):
            shown = "not answering"
        return {
            "part": name,
            "state": shown,
            "pid": part.process.pid if part.process is not None else 0,
            "starts": part.starts,
            "for": _for(part),
            "where": " ".join(filter(None, (_where(part), also.get(name)))),
        }

    return list(await asyncio.gather(*(one(name, part) for name, part in state.parts.items())))


async def _answers(part: Process, process: ProcessId | None) -> bool:
    if process is None or not process.is_alive():
        return False
    try:
        async with asyncio.timeout(_PROBE_S):
            await part.probe()
    except Exception:
        return False
    return True


def _for(part: PartState) -> str:
    seconds = max(0, int(time.time() - part.since_s))
    if seconds < 120:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _redacted(place: str) -> str:
    """An address without the password in it."""
    scheme, separator, rest = place.partition("://")
    credentials, at, host = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{scheme}{separator}{user}{at}{host}" if separator and at else place


def _labelled(name: str, line: str, chosen: str | None) -> str:
    return line if chosen is not None else f"{name:<18} {line}"


def _follow(stack: Stack, part: str | None) -> Iterator[tuple[str, str]]:
    """Lines as they are written, for ever; a log that was cut short is read from its beginning."""
    read: dict[Path, int] = {path: path.stat().st_size for path in stack.home.logs.glob("*.log")}
    rest: dict[Path, bytes] = {}
    while True:
        for path in sorted(stack.home.logs.glob("*.log")):
            if part is not None and path.stem != part:
                continue
            at = read.get(path, 0)
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(at if at <= size else 0)
                text = rest.pop(path, b"") + file.read()
                read[path] = file.tell()
            *whole, rest[path] = text.split(b"\n")
            for line in whole:
                yield path.stem, line.decode(errors="replace")
        time.sleep(_FOLLOW_POLL_S)
