"""`tollbook demo`: the whole path, real, with a summary a person can read."""

from __future__ import annotations

import sys
import time

import click

from kernel.money import format_pico
from tollbook.demo.run import Summary, run, table
from tollbook.stack import Stack


@click.command()
def demo() -> None:
    """Run the whole path, from requests to the audit."""
    folder = Stack.at().home.root / "demo"
    began = time.monotonic()
    summary = run(folder, lambda text: click.echo(f"{time.monotonic() - began:6.1f} s  {text}"))
    click.echo(_text(summary))
    click.echo(f"written: {folder / 'summary.json'}, {folder / 'export'}")
    if not summary.ok:
        click.echo("tollbook: the demo found a difference; see above", err=True)
        sys.exit(1)


def _text(summary: Summary) -> str:
    head = ("account", "requests", "input", "cached", "output", "charged USD", "balance USD")
    rows = [head] + [
        (
            line.account_id,
            str(line.requests),
            str(line.input_tokens),
            str(line.cached_tokens),
            str(line.output_tokens),
            format_pico(int(line.charged_pico)),
            format_pico(int(line.available_pico)),
        )
        for line in summary.accounts
    ]
    verdict = "agrees" if summary.audit_ok else "DIFFERS"
    caught = "caught" if summary.tamper_detected else "NOT CAUGHT"
    return f"""
{table(rows)}

engine's own counter  {summary.engine_tokens:>8} output tokens
billed                {summary.billed_tokens:>8}
itemised waste        {summary.waste_tokens:>8}
residual              {summary.residual:>8}

checkpoint of the cut log ({summary.log_size} entries in all logs):
{summary.checkpoint.strip()}

the auditor {verdict}:
{_indented(summary.audit_text)}

one byte flipped in a copy: {caught}
{_indented(summary.tamper_text)}

{summary.requests} requests, {summary.cancelled} cancelled midway, {summary.seconds} s in all
"""


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[:24])
