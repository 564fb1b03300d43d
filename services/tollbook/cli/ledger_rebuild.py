"""`tollbook ledger rebuild`: a lost or restored database up to the published checkpoints."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from audit.findings import UnusableError
from audit.keys import read_keys
from kernel.errors import FailedPrecondition
from ledger.adapters.tile_store import StoreUnusableError, TileStore
from tollbook.cli.ledger_verify import settings_of
from tollbook.rebuilding.rebuild import rebuild as bring_up


@click.command()
@click.option("--tiles", default="", help="URL of the published tiles: file:///... or s3://...")
@click.option("--postgres", default="", help="DSN; by default TOLLBOOK_LEDGER_POSTGRES.")
@click.option("--key", type=click.Path(path_type=Path), help="Verifier keys, one a line.")
@click.option("--from-kafka", is_flag=True, help="Usage logs from Kafka, not from their tiles.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def rebuild(tiles: str, postgres: str, key: Path | None, from_kafka: bool, as_json: bool) -> None:
    """Write what the database lacks of every log, up to the same signed root.

    The schema must be there (python -m ledger.entrypoints.migrate) and the ledger's workers
    and servers stopped. All is checked before anything is written.
    """
    settings = settings_of(postgres)
    url = tiles or settings.get("TOLLBOOK_TILES_URL", "")
    if not url:
        raise FailedPrecondition(
            "no published tiles are named: give --tiles file:///DIRECTORY or"
            " --tiles s3://BUCKET/PREFIX, or set TOLLBOOK_TILES_URL",
            reason="NO_TILES",
        )
    try:
        found = read_keys(key or Path(settings.get("TOLLBOOK_VERIFIER_KEYS", "verifier-keys")))
        store = TileStore(url)
    except (UnusableError, StoreUnusableError) as error:
        raise FailedPrecondition(str(error), reason="SOURCE_UNUSABLE") from None
    done = asyncio.run(
        bring_up(
            settings["TOLLBOOK_LEDGER_POSTGRES"],
            settings.get("TOLLBOOK_ORIGIN", "tollbook.local"),
            store,
            [one for named in found.values() for one in named],
            kafka=settings.get("TOLLBOOK_KAFKA", "") if from_kafka else "",
            topic=settings.get("TOLLBOOK_TOPIC", ""),
        )
    )
    if as_json:
        click.echo(
            json.dumps(
                [
                    {"log": one.log, "from": one.before, "size": one.size, "root": one.root.hex()}
                    for one in done
                ]
            )
        )
        return
    for one in done:
        click.echo(f"{one.log:<12} {one.before:>12} to {one.size:>12}  {one.root.hex()}")
    if not done:
        click.echo("nothing lacks: every log is as long as its published checkpoint, or longer")
