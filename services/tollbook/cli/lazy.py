"""Groups that import a command when it is called, so that a slow one costs the others nothing."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import click

from tollbook.cli.registry import Entry


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
    """A group whose commands come out of a table of the registry."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the registry's order."""
        return [name for name, entry in self._entries.items() if is_there(entry)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command, imported now."""
        entry = self._entries.get(cmd_name)
        return load(entry) if entry is not None and is_there(entry) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, out of the table alone."""
        rows = [(name, self._entries[name].help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
