"""`tollbook doctor`: what is missing on this machine, and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tollbook.stack.doctor import examine
from tollbook.stack.home import DEFAULT_HOME


@click.command()
def doctor() -> None:
    """Name what this machine lacks and what to do about it; exit 1 if it lacks something."""
    home = Path(os.environ.get("TOLLBOOK_HOME") or DEFAULT_HOME).expanduser().absolute()
    findings = examine(home, os.environ)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(
            f"{'ok' if finding.is_well else 'MISSING':<8}{finding.name:<{width}}  {finding.seen}"
        )
        if not finding.is_well:
            click.echo(f"{'':<8}{'':<{width}}  -> {finding.advice}")
    missing = [finding.name for finding in findings if not finding.is_well]
    if missing:
        click.echo(f"doctor: not ready: {', '.join(missing)}")
        sys.exit(1)
    click.echo("doctor: nothing is missing")
