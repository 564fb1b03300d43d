"""Writes an export of a running system.

The order matters. What stands in the logs when the export is asked for is
waited for in the balances; the balances come before the cut and the cut before
the checkpoints, so that what was served is never beyond what the cut vouches
for, and the cut never beyond what is signed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from kernel import leaf as leaves
from kernel.placement import CUT_LOG
from kernel.tilebuilder import CHECKPOINT_PATH, TileBuilder, TileFile
from tollbook.export.folder import ExportFolder, new_export
from tollbook.export.system import System


@dataclass
class Summary:
    """What an export holds."""

    directory: Path
    sizes: dict[str, int] = field(default_factory=dict)
    cut_position: int = -1
    bytes_written: int = 0
    seconds: float = 0.0
    unsigned: list[str] = field(default_factory=list)
    """Logs whose entries do not give the root that their checkpoint signs."""

    @property
    def entries(self) -> int:
        """Entries of all logs."""
        return sum(self.sizes.values())


async def write_export(
    system: System, directory: Path, *, keys: str = "", replace: bool = False
) -> Summary:
    """Export everything in the logs now. `keys`: text of the verifier keys, to lie beside.

    A log whose entries do not give its signed root is written all the same, as
    evidence, and named in the summary. Errors: Unavailable when a service does
    not answer or does not come so far; FailedPrecondition for the directory.
    """
    started = time.monotonic()
    summary = Summary(directory)
    with new_export(directory, replace) as folder:
        now = await system.sizes()
        served = await system.balances(
            {log: size for log, size in now.items() if log != CUT_LOG and size}
        )
        answer = await system.cut((at.log, at.size) for at in served.positions)
        summary.cut_position = answer.position
        wanted = {part.log: part.size for part in answer.cut.logs}
        wanted[CUT_LOG] = answer.position + 1
        for log, size in wanted.items():
            await _export_log(system, folder, log, size, summary)
        folder.put_served(
            json_format.MessageToJson(served, preserving_proto_field_name=True) + "\n"
        )
        if keys:
            folder.put_keys(keys)
        summary.bytes_written = folder.bytes_written
    summary.seconds = time.monotonic() - started
    return summary


async def _export_log(
    system: System, folder: ExportFolder, log: str, min_size: int, summary: Summary
) -> None:
    signed = await system.checkpoint(log, min_size)
    builder = TileBuilder()
    async for position, leaf in system.entries(log, signed.size):
        for file in builder.append(leaf):
            folder.put_log(log, file)
        read = leaves.decode(leaf)
        if read.aside:
            digest, _ = leaves.aside_of(read.value)
            folder.put_aside(digest, await system.aside(log, position))
    for file in builder.partial():
        folder.put_log(log, file)
    folder.put_log(log, TileFile(CHECKPOINT_PATH, signed.note))
    summary.sizes[log] = signed.size
    if builder.root() != signed.root:
        summary.unsigned.append(log)
