"""What a restart does with what a dead process left: settle, itemise, close.

Runs before anything is served, on the spool alone; the broker may be away.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.adapters.spool import Spool
from inference.app.settlement import settled
from inference.app.streams import Streams
from inference.domain.event import complete
from inference.domain.journal import OpenRequest, count_of
from inference.domain.outcome import End
from inference.domain.records import Closed, Noted
from kernel.clock import Clock
from tollbook.usage.v1 import usage_pb2 as usage


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found: requests settled as lost, engines closed, streams closed."""

    requests: int
    lost_tokens: int
    engines: int
    streams: int


def recover(spool: Spool, streams: Streams, engine_id: str, clock: Clock) -> Recovered:
    """Settle every orphan at its last recorded count and close what its process left open.

    `engine_id` is this process's engine, which is not to be closed.
    """
    journal = spool.journal
    orphans = list(journal.open.values())
    for orphan in orphans:
        settle_orphan(spool, streams, orphan, clock)
    lost = 0
    dead = [book for book in journal.engines.values() if not book.final]
    dead = [book for book in dead if book.engine_id != engine_id]
    for book in dead:
        before = book.waste.get(usage.WASTE_KIND_ENGINE_LOST, 0)
        book.close_lost()
        lost += book.waste.get(usage.WASTE_KIND_ENGINE_LOST, 0) - before
        reading = streams.engine_reading(book.reading(clock.now_us()))
        spool.append(Noted(count_of(book), reading))
    stale = [name for name in streams.open_streams() if not streams.is_own(name)]
    for name in stale:
        spool.append(Closed(streams.closing(name)))
    return Recovered(len(orphans), lost, len(dead), len(stale))


def settle_orphan(spool: Spool, streams: Streams, orphan: OpenRequest, clock: Clock) -> None:
    """Settle a request whose process died, as that process would have, had it known."""
    started = orphan.started
    template = usage.UsageEvent.FromString(started.template)
    event = complete(template, orphan.tally, End.ENGINE_LOST, orphan.first_token_us, clock.now_us())
    trace_ids = started.trace_id, started.span_id
    spool.append(
        settled(streams, started.serial, event, started.body_digest, trace_ids, orphan.results())
    )
