"""`tollbook export DIR`: all logs, signed, with the balances that were served, as files."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import click

from tollbook.export.exporter import Summary, write_export
from tollbook.export.system import System
from tollbook.stack.control import Stack


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--ledger", default="", help="HOST:PORT; by default the local stack's.")
@click.option("--pricing", default="", help="HOST:PORT; by default the local stack's.")
@click.option("--replace", is_flag=True, help="Put it in the place of an older export.")
@click.option("--wait-s", default=60.0, show_default=True, type=click.FloatRange(1, 3600))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def export(
    directory: Path, ledger: str, pricing: str, replace: bool, wait_s: float, as_json: bool
) -> None:
    """Write everything an auditor needs into DIRECTORY."""
    ledger = ledger or _setting("TOLLBOOK_LEDGER_ADDRESS")
    pricing = pricing or _setting("TOLLBOOK_PRICING_ADDRESS")
    summary = asyncio.run(_write(directory, ledger, pricing, replace, wait_s))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "directory": str(summary.directory),
                    "sizes": summary.sizes,
                    "cut_position": summary.cut_position,
                    "bytes": summary.bytes_written,
                    "seconds": round(summary.seconds, 3),
                    "unsigned": summary.unsigned,
                }
            )
        )
    else:
        click.echo(
            f"{summary.directory}: {summary.entries} entries of {len(summary.sizes)} logs,"
            f" cut {summary.cut_position}, {summary.bytes_written / 1e6:.1f} MB"
            f" in {summary.seconds:.1f} s"
        )
    if summary.unsigned:
        click.echo(
            f"tollbook: the entries of {', '.join(summary.unsigned)} do not give the root that is"
            " signed; the export is kept as evidence: audit it",
            err=True,
        )
        sys.exit(1)


async def _write(
    directory: Path, ledger: str, pricing: str, replace: bool, wait_s: float
) -> Summary:
    async with System(ledger, pricing, wait_s) as system:
        return await write_export(system, directory, keys=_verifier_keys(), replace=replace)


def _setting(name: str) -> str:
    """From the environment, else from the running local stack."""
    return os.environ.get(name) or Stack.at().environment()[name]


def _verifier_keys() -> str:
    """The verifier keys where this machine has them; an export is whole without."""
    named = os.environ.get("TOLLBOOK_VERIFIER_KEYS")
    path = Path(named) if named else Stack.at().home.root / "keys" / "verifiers"
    return path.read_text() if path.is_file() else ""
