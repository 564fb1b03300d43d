"""The root of the command line: finds commands lazily and gives every error one clear line.

Owns nothing but that; the commands are in their own files, listed in registry.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import click

from kernel.errors import TollbookError
from tollbook.cli.registry import COMMANDS, Entry
from tollbook.stack.errors import StackError

_HELP_WIDTH = 100


def load(entry: Entry) -> click.Command:
    """Imports a command. Raises TypeError when the target is not one."""
    module, _, attribute = entry.target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry.target} is not a click command")
    return command


def is_there(entry: Entry) -> bool:
    """Whether the command's file is part of this installation. Imports nothing of it."""
    return importlib.util.find_spec(entry.target.partition(":")[0]) is not None


class LazyGroup(click.Group):
    """A group whose commands come out of the registry."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the registry's order."""
        return [name for name, entry in COMMANDS.items() if is_there(entry)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command, imported now."""
        entry = COMMANDS.get(cmd_name)
        return load(entry) if entry is not None and is_there(entry) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, out of the registry alone."""
        rows = [(name, COMMANDS[name].help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
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
