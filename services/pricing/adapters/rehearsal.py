"""A process of its own that rates the log's usage again: previews, re-ratings, what is in use.

It takes both cores if it may, for seconds, so it must not share a process with
those who wait for a balance. The server starts it when it is first needed and
ends it with the call that it works for; what it gives is bytes, and what it
changes is nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from kernel import cycles
from kernel.placement import CONTROL_LOG, partition_of_log
from pricing.adapters.ledger_client import Ledger
from pricing.domain.card import Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.control import ControlState
from pricing.domain.preview import Amounts, Preview, Unpriced
from pricing.domain.projection import Projection
from pricing.domain.tally import prepare
from pricing.domain.what_if import Rerating
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import card_records_pb2 as records

RUN_LEAVES: Final = 65_536
IDLE_S: Final = 600.0
_QUEUED_RUNS: Final = 2
_BATCH: Final = 20_000


class Run(NamedTuple):
    """Consecutive leaves of a log under one pin."""

    log: str
    first_position: int
    pin: int
    leaves: list[bytes]


class Rerated(NamedTuple):
    """A re-rating, computed: serialized corrections in their order, and what has no price."""

    corrections: list[bytes]
    newly_unpriced: int
    charges: list[tuple[str, str, int, int]]
    """(account, currency, before, after) in pico-units, of those that change."""


def rerate(address: str, plan: bytes) -> Rerated:
    """Compute a re-rating from the logs that its plan names. Errors: grpc's own."""
    return asyncio.run(_rerate(address, records.ReratePlanned.FromString(plan)))


async def _rerate(address: str, plan: records.ReratePlanned) -> Rerated:
    async with _ledger(address) as ledger:
        state = await control_state(ledger, plan.control_size)
        rerating = Rerating(state, plan)
        spans = [(part.log, 0, part.size) for part in plan.logs]
        await each_run(ledger, spans, lambda run: rerating.add(*run))
    charges: dict[tuple[str, str], list[int]] = {}
    for key, found in rerating.difference.sums.items():
        # What other cards charged is not at issue, where it stays as it is.
        if key.card_id != plan.card_id and found.before_pico == found.after_pico:
            continue
        sums = charges.setdefault((key.account_id, key.currency), [0, 0])
        sums[0] += found.before_pico
        sums[1] += found.after_pico
    return Rerated(
        [made.SerializeToString(deterministic=True) for made in rerating.difference.corrections()],
        rerating.newly_unpriced(),
        [
            (account_id, currency, before, after)
            for (account_id, currency), (before, after) in sorted(charges.items())
            if before != after
        ],
    )


class Previewed(NamedTuple):
    """A preview, computed."""

    events: int
    sizes: dict[str, int]
    totals: list[Amounts]
    models: list[Amounts]
    accounts: list[Amounts]
    unmatched_lines: list[str]
    newly_unpriced: list[Unpriced]
    still_unpriced: list[Unpriced]


def preview(address: str, yaml: str, max_entries: int) -> Previewed:
    """Try a draft on the newest entries of each usage log (0: on all). Errors: grpc's own."""
    return asyncio.run(_preview(address, parse_card(yaml), max_entries))


async def _preview(address: str, draft: Card, max_entries: int) -> Previewed:
    async with _ledger(address) as ledger:
        sizes = await usage_sizes(ledger)
        # After the usage logs' sizes were taken: no entry below them has a pin beyond it.
        control_size = await ledger.size(CONTROL_LOG)
        state = await control_state(ledger, control_size)
        trial = Preview(state, control_size, draft)
        spans = [
            (log, max(0, size - max_entries) if max_entries else 0, size)
            for log, size in sizes.items()
        ]
        await each_run(ledger, spans, lambda run: trial.add(*run))
    return Previewed(
        trial.events,
        sizes,
        trial.totals(),
        trial.models(),
        trial.accounts(),
        trial.unmatched_lines(),
        trial.newly_unpriced(),
        trial.still_unpriced(),
    )


@contextlib.asynccontextmanager
async def _ledger(address: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(address)
    try:
        yield ledger
    finally:
        await ledger.close()


async def control_state(ledger: Ledger, control_size: int) -> ControlState:
    """What the control log says up to a size."""
    projection = Projection()
    async for run in ledger.read(CONTROL_LOG, 0, control_size):
        for position, raw in enumerate(run.leaves, run.first_position):
            projection.apply_control(position, raw, run.asides.get(position, b""))
    return projection.control


async def usage_sizes(ledger: Ledger) -> dict[str, int]:
    """Size of every usage log now, in order of name."""
    listed = await ledger.logs()
    return {
        state.log: state.size
        for state in sorted(listed.logs, key=lambda state: state.log)
        if partition_of_log(state.log) is not None and state.size
    }


async def each_run(
    ledger: Ledger, spans: Sequence[tuple[str, int, int]], take: Callable[[Run], None]
) -> None:
    """Give every run of the spans (log, first, end) to `take`, in order.

    The next runs are read while one is worked on.
    """
    queue: asyncio.Queue[Run | None] = asyncio.Queue(_QUEUED_RUNS)

    async def read() -> None:
        for log, first, end in spans:
            held: Run | None = None
            async for part in _read(ledger, log, first, end):
                if held is not None and (
                    held.pin != part.pin or len(held.leaves) + len(part.leaves) > RUN_LEAVES
                ):
                    await queue.put(held)
                    held = None
                if held is None:
                    held = part
                else:
                    held.leaves.extend(part.leaves)
            if held is not None:
                await queue.put(held)
        await queue.put(None)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        while (run := await queue.get()) is not None:
            await asyncio.to_thread(take, run)


async def _read(ledger: Ledger, log: str, first: int, end: int) -> AsyncIterator[Run]:
    """[first, end) of a log, read as Arrow record batches."""
    if first >= end:
        return
    request = ledger_pb2.ReadArrowRequest(
        log=log, from_position=first, to_position=end, max_batch=_BATCH
    )
    schema: pa.Schema | None = None
    async for answer in ledger.stub.ReadArrow(request):
        piece = pa.py_buffer(answer.ipc)
        if schema is None:
            schema = pa.ipc.read_schema(piece)
            continue
        batch = pa.ipc.read_record_batch(piece, schema)
        pins = batch.column("control_size").to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(pins)) + 1).tolist(), len(pins)]
        leaves: list[bytes] = batch.column("leaf").to_pylist()
        for begin, stop in pairwise(starts):
            if begin < stop:
                yield Run(log, answer.first_position + begin, int(pins[begin]), leaves[begin:stop])


def work(connection: Connection) -> None:
    """The process: takes (function, arguments), gives (True, result) or (False, what went wrong).

    Ends when nobody asked for IDLE_S, or when the server is gone.
    """
    prepare()
    cycles.settle()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while connection.poll(IDLE_S):
            function, arguments = connection.recv()
            answer: tuple[bool, Any]
            try:
                answer = True, function(*arguments)
            except Exception as error:
                answer = False, f"{type(error).__name__}: {error}"[:1_000]
            connection.send(answer)
