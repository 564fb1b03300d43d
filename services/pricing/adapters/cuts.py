"""Cuts: one statement about the whole system, written into the cut log."""

from __future__ import annotations

from typing import Any, Final

from kernel import errors, ids, merkle
from kernel.clock import Clock, timestamp_of
from kernel.placement import CUT_LOG
from pricing.adapters import queries
from pricing.adapters.answers import Reader
from pricing.adapters.ledger_client import Ledger
from pricing.domain.rating import RATING_VERSION
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2

_MAX_CUT_BYTES: Final = 1_048_576


async def write_cut(reader: Reader, ledger: Ledger, clock: Clock) -> tuple[int, control_pb2.Cut]:
    """Write a cut of everything projected now. Gives its position and the cut.

    Sizes, digest and conservation are of one snapshot of the projection; the
    roots are the ledger's for those sizes, so that anyone can hold the cut
    against the logs' signed checkpoints.
    """

    async def read(db: Any) -> tuple[queries.Snapshot, control_pb2.ConservationCut]:
        return await queries.snapshot(db), await queries.conservation(db)

    snapshot, conservation = await reader.in_snapshot(read)
    listed = await ledger.logs()
    cut = control_pb2.Cut(
        cut_time=timestamp_of(clock.now_us()),
        balances_digest=snapshot.digest(),
        rating_version=RATING_VERSION,
        conservation=conservation,
    )
    for state in sorted(listed.logs, key=lambda state: state.log):
        if state.log != CUT_LOG:
            cut.logs.append(await _log_cut(ledger, state, snapshot.positions.get(state.log, 0)))
    payload = cut.SerializeToString(deterministic=True)
    if len(payload) > _MAX_CUT_BYTES:
        raise errors.FailedPrecondition(
            f"the cut has {len(payload)} bytes, over {_MAX_CUT_BYTES}: too many pins",
            reason="CUT_TOO_LARGE",
        )
    answer = await ledger.append(CUT_LOG, ids.new_id("cut"), payload)
    return answer.position, cut


async def _log_cut(ledger: Ledger, state: ledger_pb2.LogState, size: int) -> control_pb2.LogCut:
    if size == 0:
        root = merkle.EMPTY_ROOT
    elif size == state.size:
        root = state.root
    else:
        root = await ledger.root(state.log, size)
    return control_pb2.LogCut(
        log=state.log,
        size=size,
        root=root,
        pins=[
            control_pb2.PinCut(from_position=pin.from_position, control_size=pin.control_size)
            for pin in state.pins
            if pin.from_position < size
        ],
    )
