"""`tollbook audit EXPORT --key FILE`: recompute everything from an export and a key."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from audit.__main__ import run


@click.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help="Verifier keys, one a line, from a place you trust.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Who must have cosigned every checkpoint (C2SP tlog-policy).",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(export: Path, key: Path, policy: Path | None, as_json: bool) -> None:
    """Recompute every tree, charge and balance of EXPORT.

    Exit 0 when all agrees, 1 when something differs (the first difference is
    named), 2 when the input cannot be used.
    """
    sys.exit(run(export, key, as_json, policy))
