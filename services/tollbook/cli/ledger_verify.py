"""`tollbook ledger verify`: every row of the ledger's database against all that was signed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from audit.findings import UnusableError
from audit.keys import read_keys
from kernel.errors import FailedPrecondition, TollbookError
from ledger.adapters.tile_store import StoreUnusableError, TileStore
from tollbook.checking.sources import Sources
from tollbook.checking.verdict import Verdict
from tollbook.checking.verify import verify as check
from tollbook.stack.control import Stack
from tollbook.stack.errors import StackError

_MEMORY = Path("signer") / "signed.json"


@click.command()
@click.option("--postgres", default="", help="DSN; by default TOLLBOOK_LEDGER_POSTGRES.")
@click.option("--key", type=click.Path(path_type=Path), help="Verifier keys, one a line.")
@click.option("--memory", type=click.Path(path_type=Path), help="The signer's memory.")
@click.option("--tiles", default="", help="URL of the published tiles: file:///... or s3://...")
@click.option("--kafka/--no-kafka", default=True, help="Compare with the records in Kafka.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(
    postgres: str, key: Path | None, memory: Path | None, tiles: str, kafka: bool, as_json: bool
) -> None:
    """Check every row of every log, and name the log and the position of what was changed.

    Settings that are not given are the environment's, else the local stack's. Exit 0 when
    nothing differs, 1 when something does, 2 when it cannot be told.
    """
    try:
        settings = settings_of(postgres)
        sources = _sources(settings, key, memory, tiles, kafka)
        verdict = asyncio.run(check(settings["TOLLBOOK_LEDGER_POSTGRES"], sources))
    except (StackError, TollbookError) as problem:
        # Not 1: whoever asks by the status alone must not take it for a log that was changed.
        click.echo(f"tollbook: {problem}", err=True)
        sys.exit(2)
    click.echo(json.dumps(_as_json(verdict), indent=1) if as_json else _as_text(verdict))
    sys.exit(0 if verdict.ok else 1)


def settings_of(postgres: str = "") -> Mapping[str, str]:
    """The environment's settings, or those of the running local stack, which a database that is
    named does not need. Errors: StackError.
    """
    named = {"TOLLBOOK_LEDGER_POSTGRES": postgres} if postgres else {}
    if os.environ.get("TOLLBOOK_LEDGER_POSTGRES"):
        return {**os.environ, **named}
    try:
        local = Stack.at().environment()
    except StackError:
        if not postgres:
            raise
        local = {}
    return {**local, **os.environ, **named}


def _sources(
    settings: Mapping[str, str], key: Path | None, memory: Path | None, tiles: str, kafka: bool
) -> Sources:
    key_file = key or Path(settings.get("TOLLBOOK_VERIFIER_KEYS", "verifier-keys"))
    try:
        keys = [one for named in read_keys(key_file).values() for one in named]
    except UnusableError as error:
        raise FailedPrecondition(str(error), reason="KEYS_UNUSABLE") from None
    if memory is None and settings.get("TOLLBOOK_HOME"):
        beside = Path(settings["TOLLBOOK_HOME"]) / _MEMORY
        memory = beside if beside.exists() else None
    url = tiles or settings.get("TOLLBOOK_TILES_URL", "")
    try:
        store = TileStore(url) if url else None
    except StoreUnusableError as error:
        raise FailedPrecondition(str(error), reason="TILES_UNUSABLE") from None
    return Sources(
        keys,
        memory,
        store,
        settings.get("TOLLBOOK_KAFKA", "") if kafka else "",
        settings.get("TOLLBOOK_TOPIC", "usage.events.v1"),
        settings.get("TOLLBOOK_LEDGER_SEGMENTS")
        or str(Path(settings.get("TOLLBOOK_HOME") or ".tollbook") / "segments"),
    )


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "ok": verdict.ok,
        "logs": {
            log: {"size": size, "root": verdict.roots[log].hex()}
            for log, size in verdict.sizes.items()
        },
        "findings": [
            {
                "place": found.place,
                "position": found.position,
                "end_position": found.end_position,
                "what": found.what,
            }
            for found in verdict.findings
        ],
        "notes": verdict.notes,
    }


def _as_text(verdict: Verdict) -> str:
    lines = [f"  DIFFERS: {found}" for found in verdict.findings]
    lines += [f"  note: {note}" for note in verdict.notes]
    entries = sum(verdict.sizes.values())
    if verdict.ok:
        lines.append(f"verify: nothing differs ({entries} entries of {len(verdict.sizes)} logs)")
    else:
        lines.append(f"verify: {len(verdict.findings)} differences in {entries} entries")
    return "\n".join(lines)
