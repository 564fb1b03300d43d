"""`tollbook ledger ...`: the group; its commands are listed in registry.py."""

from __future__ import annotations

import click

from tollbook.cli.lazy import LazyGroup
from tollbook.cli.registry import LEDGER_COMMANDS


@click.group(cls=LazyGroup, entries=LEDGER_COMMANDS)
def ledger() -> None:
    """Look into the ledger, and look after it."""
