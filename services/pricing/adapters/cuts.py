"""Cuts: one statement about the whole system, written into the cut log."""

from __future__ import annotations

from typing import Any, Final

from kernel import errors, ids, merkle
from kernel import leaf as leaf_format
from kernel.clock import Clock, timestamp_of
from kernel.placement import CUT_LOG
from pricing.adapters import queries
from pricing.adapters.answers import Reader
from pricing.adapters.ledger_client import SIZE_MOVED, Ledger
from pricing.domain.rating import RATING_VERSION
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import control_pb2

MAX_NEW_PINS: Final = 20_000
"""Pins of one record at the most, of all logs together: some 300 KB."""

_ATTEMPTS: Final = 5


async def write_cut(reader: Reader, ledger: Ledger, clock: Clock) -> tuple[int, control_pb2.Cut]:
    """Write a cut of everything projected now. Gives its position and the cut.

    Sizes, digest and conservation are of one snapshot of the projection; the
    roots are the ledger's for those sizes, so that anyone can hold the cut
    against the logs' signed checkpoints. Of pins it has those that no earlier
    cut has; when they are too many for one record, cuts of pins alone go before
    it. Each is appended right after the cut that it follows, or not at all.
    """
    for _ in range(_ATTEMPTS):
        try:
            return await _write(reader, ledger, clock)
        except errors.FailedPrecondition as error:
            if error.reason != SIZE_MOVED:
                raise
    raise errors.Unavailable("others write cuts all the time; try again", reason="CUTS_CONTENDED")


async def _write(reader: Reader, ledger: Ledger, clock: Clock) -> tuple[int, control_pb2.Cut]:
    async def read(db: Any) -> tuple[queries.Snapshot, control_pb2.ConservationCut]:
        return await queries.snapshot(db), await queries.conservation(db)

    written = await ledger.size(CUT_LOG)
    before = await _last_cut(ledger, written)
    snapshot, conservation = await reader.in_snapshot(read)
    cut = control_pb2.Cut(
        cut_time=timestamp_of(clock.now_us()),
        balances_digest=snapshot.digest(),
        rating_version=RATING_VERSION,
        conservation=conservation,
    )
    # Listed now: the logs reach at least as far as what was projected of them.
    listed = await ledger.logs()
    for state in sorted(listed.logs, key=lambda state: state.log):
        if state.log != CUT_LOG:
            cut.logs.append(await _log_cut(ledger, state, snapshot.positions.get(state.log, 0)))
    parts = split_pins(cut, before)
    answer: ledger_pb2.AppendResponse | None = None
    for number, part in enumerate(parts):
        payload = part.SerializeToString(deterministic=True)
        answer = await ledger.append(CUT_LOG, ids.new_id("cut"), payload, written + number)
    assert answer is not None  # noqa: S101 - there is always a last part
    return answer.position, parts[-1]


async def _last_cut(ledger: Ledger, written: int) -> control_pb2.Cut | None:
    if written == 0:
        return None
    entry = await ledger.entry(CUT_LOG, written - 1)
    leaf = leaf_format.decode(entry.leaf)
    return control_pb2.Cut.FromString(entry.aside if leaf.aside else leaf.value)


def split_pins(
    cut: control_pb2.Cut, before: control_pb2.Cut | None, most: int = MAX_NEW_PINS
) -> list[control_pb2.Cut]:
    """Leave out the pins that earlier cuts have, and put what is too much into cuts of its own.

    `cut` has all pins of its logs; `before` is the newest cut there is. The last
    one given is whole. Errors: Unavailable when `cut` is behind `before`.
    """
    earlier: dict[str, int] = {}
    for part in before.logs if before is not None else ():
        earlier[part.log] = part.earlier_pins + len(part.pins)
    sizes = {part.log: part.size for part in before.logs} if before is not None else {}
    for part in cut.logs:
        if part.size < sizes.get(part.log, 0) or len(part.pins) < earlier.get(part.log, 0):
            raise errors.Unavailable(
                f"what is projected of log {part.log!r} is behind the last cut; try again",
                reason="BEHIND_LAST_CUT",
                retry_after_ms=250,
            )
        part.earlier_pins = earlier.get(part.log, 0)
        del part.pins[: part.earlier_pins]
    parts: list[control_pb2.Cut] = []
    while sum(len(part.pins) for part in cut.logs) > most:
        alone = control_pb2.Cut(
            cut_time=cut.cut_time,
            balances_digest=bytes(32),
            rating_version=cut.rating_version,
            pins_only=True,
        )
        room = most
        for part in cut.logs:
            fitting = min(room, len(part.pins))
            room -= fitting
            said = alone.logs.add(
                log=part.log, size=part.size, root=part.root, earlier_pins=part.earlier_pins
            )
            said.pins.extend(part.pins[:fitting])
            part.earlier_pins += fitting
            del part.pins[:fitting]
        parts.append(alone)
    return [*parts, cut]


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
