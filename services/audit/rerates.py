"""Re-ratings computed again from the logs: what was posted is what the plan's own terms give.

The replay has applied each batch as it stands; that a batch is as it was
planned, every reader checks. Whether the plan itself is right, whoever made
it, is checked here and by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from audit.balances import Source, runs
from audit.cuts import Pin
from audit.findings import Finding
from kernel.placement import CONTROL_LOG
from pricing.domain.control import ControlState
from pricing.domain.rerating import Plan, batch_digest, batches
from pricing.domain.what_if import Rerating


def check(
    state: ControlState, sources: Mapping[str, Source], pins: Mapping[str, Sequence[Pin]]
) -> Iterator[Finding]:
    """A finding for each re-rating, posted whole or in part, that the logs do not give."""
    for plan in state.reratings.plans.values():
        if plan.next_batch:
            yield from _check(plan, state, sources, pins)


def _check(
    plan: Plan,
    state: ControlState,
    sources: Mapping[str, Source],
    pins: Mapping[str, Sequence[Pin]],
) -> Iterator[Finding]:
    name = f"re-rating {plan.made.rerate_id!r}"
    rerating = Rerating(state, plan.made)
    for part in plan.made.logs:
        source = sources.get(part.log)
        known = pins.get(part.log, ())
        if source is None or source.readable < part.size or not known:
            yield Finding(
                CONTROL_LOG,
                f"{name} cannot be computed again: {part.log} cannot be read up to {part.size}",
                plan.position,
            )
            return
        for run in runs(source.files, source.size, 0, part.size, known):
            rerating.add(part.log, run.first_position, run.control_size, run.leaves)
    digests = [batch_digest(batch) for batch in batches(rerating.difference.corrections())]
    if digests != list(plan.made.batch_digests):
        yield Finding(
            CONTROL_LOG,
            f"{name} posts other corrections than the logs give by its card, instants and control"
            " size",
            plan.position,
        )
