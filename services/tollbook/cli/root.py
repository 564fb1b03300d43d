"""The root of the command line: gives every error one clear line.

Owns nothing but that; the commands are in their own files, listed in registry.py.
"""

from __future__ import annotations

import sys

import click

from kernel.errors import TollbookError
from tollbook.cli.lazy import LazyGroup
from tollbook.cli.registry import COMMANDS
from tollbook.stack.errors import StackError

_HELP_WIDTH = 100


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _HELP_WIDTH},
)
def root() -> None:
    """An event-sourced billing mesh for LLM inference.

    State lives in $TOLLBOOK_HOME, by default .tollbook in the current folder.
    """


def main() -> None:
    """Runs a command; an expected error is one line on stderr and exit 1, never a traceback."""
    try:
        root(prog_name="tollbook")
    except (StackError, TollbookError) as problem:
        click.echo(f"tollbook: {problem}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
