"""Re-rating over gRPC: a plan computed and recorded, then posted batch by batch.

What a plan comes to is computed in the rehearsal process, and again before it
is posted: the log's readers hold each batch against the plan's digests, so a
broken-off posting is gone on with by whoever calls next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kernel import errors
from kernel.clock import us_of
from pricing.adapters import queries
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.recorder import Recorder
from pricing.adapters.rehearsal import Rerated, rerate, usage_sizes
from pricing.adapters.rehearser import Rehearser
from pricing.adapters.who import operator_if_any
from pricing.domain.operators import APPROVER, AUTHOR
from pricing.domain.rerating import MAX_BATCHES, Plan, batch_digest, batches
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import cards_pb2, control_pb2

_MAX_ACCOUNTS: Final = 1_000


class RerateChanges:
    """Answers the two calls of RateCardService that re-rate."""

    def __init__(
        self, recorder: Recorder, ledger: Ledger, rehearser: Rehearser, ledger_address: str
    ) -> None:
        self._recorder = recorder
        self._ledger = ledger
        self._rehearser = rehearser
        self._ledger_address = ledger_address

    async def PlanRerate(  # noqa: N802 - the contract's name
        self, request: cards_pb2.PlanRerateRequest, context: Any
    ) -> cards_pb2.PlanRerateResponse:
        """Compute and record a plan, or find the same one recorded before."""
        state = await self._recorder.current()
        planner = operator_if_any(context, state.operators, AUTHOR)
        known = state.reratings.plans.get(request.rerate_id)
        if known is not None:
            if not _same(known.made, request):
                raise errors.AlreadyExists(
                    f"re-rating {request.rerate_id!r} was planned for another card or other"
                    " instants; use a new id",
                    reason="RERATE_EXISTS",
                )
            return _planned(known, await self._computed(known.made, context))
        _check(state.cards.newest_approved(request.card_id), request)
        if state.reratings.open is not None:
            raise errors.FailedPrecondition(
                f"re-rating {state.reratings.open.made.rerate_id!r} is half posted; post it to its"
                " end first",
                reason="RERATE_OPEN",
            )
        plan = records.ReratePlanned(
            rerate_id=request.rerate_id,
            card_id=request.card_id,
            event_from=request.event_from,
            event_to=request.event_to,
            planner=planner,
            reason=request.reason,
        )
        for log, size in (await usage_sizes(self._ledger)).items():
            plan.logs.add(log=log, size=size)
        # After the usage logs' sizes were taken: no entry below them has a pin beyond it.
        state = await self._recorder.current()
        plan.control_size = state.size
        found = await self._computed(plan, context)
        if found.newly_unpriced:
            raise errors.FailedPrecondition(
                f"{found.newly_unpriced} events have a price and would have none by the cards known"
                " now; approve a version with a line for them first",
                reason="USAGE_WITHOUT_PRICE",
            )
        plan.corrections = len(found.corrections)
        plan.batch_digests.extend(batch_digest(batch) for batch in _batches(found))
        if len(plan.batch_digests) > MAX_BATCHES:
            raise errors.FailedPrecondition(
                f"there are more than {MAX_BATCHES} batches of corrections; plan a shorter time",
                reason="RERATE_TOO_LARGE",
            )
        why = await self._recorder.record(
            f"rerate:{request.rerate_id}:{plan.control_size}",
            control_pb2.ControlRecord(rerate_planned=plan),
            planner or "unknown",
        )
        known = self._recorder.state.reratings.plans.get(request.rerate_id)
        if known is None or known.made.batch_digests != plan.batch_digests:
            raise errors.FailedPrecondition(
                why or "it was planned by another call meanwhile", reason="NOT_APPLIED"
            )
        return _planned(known, found)

    async def PostRerate(  # noqa: N802 - the contract's name
        self, request: cards_pb2.PostRerateRequest, context: Any
    ) -> cards_pb2.PostRerateResponse:
        """Post what of a plan is not posted yet."""
        state = await self._recorder.current()
        approver = operator_if_any(context, state.operators, APPROVER)
        plan = state.reratings.plans.get(request.rerate_id)
        if plan is None:
            raise errors.NotFound(
                f"there is no re-rating {request.rerate_id!r}; plan it first",
                reason="RERATE_NOT_FOUND",
            )
        first = plan.next_batch
        if first < len(plan.made.batch_digests):
            if approver and approver == plan.made.planner:
                raise errors.PermissionDenied(
                    f"operator {approver!r} planned re-rating {request.rerate_id!r}; another"
                    " posts it",
                    reason="PLANNER_POSTS",
                )
            await self._post(plan, approver, _batches(await self._computed(plan.made, context)))
        return cards_pb2.PostRerateResponse(
            batches_posted=plan.next_batch - first,
            batches=len(plan.made.batch_digests),
            corrections=plan.made.corrections,
            control_size=self._recorder.state.size,
        )

    async def _post(
        self, plan: Plan, approver: str, found: Sequence[Sequence[records.Correction]]
    ) -> None:
        """Append every batch from the next one on, and wait until the last is applied."""
        rerate_id = plan.made.rerate_id
        made = [
            records.CorrectionsPosted(
                rerate_id=rerate_id, batch=number, corrections=batch, approver=approver
            )
            for number, batch in enumerate(found)
        ]
        problem = self._recorder.state.reratings.batch_problem(made[plan.next_batch])
        if problem is not None:
            raise errors.FailedPrecondition(problem, reason="CANNOT_POST")
        last = 0
        for batch in made[plan.next_batch :]:
            position = await self._recorder.append(
                f"rerate:{rerate_id}:{batch.batch}:{approver}",
                control_pb2.ControlRecord(corrections_posted=batch),
                approver or "unknown",
            )
            last = max(last, position if position is not None else 0)
        await self._recorder.reached(last + 1)
        await self._recorder.current()
        if plan.posted_position is None:
            raise errors.FailedPrecondition(
                f"re-rating {rerate_id!r} is posted up to batch {plan.next_batch} of {len(made)};"
                " ask again",
                reason="NOT_APPLIED",
            )

    async def _computed(self, plan: records.ReratePlanned, context: Any) -> Rerated:
        return await self._rehearser.run(
            context.time_remaining(), rerate, self._ledger_address, plan.SerializeToString()
        )


def _batches(found: Rerated) -> list[list[records.Correction]]:
    return batches([records.Correction.FromString(made) for made in found.corrections])


def _check(newest_approved: int, request: cards_pb2.PlanRerateRequest) -> None:
    if not newest_approved:
        raise errors.NotFound(
            f"no version of a card {request.card_id!r} was ever in force", reason="CARD_NOT_FOUND"
        )
    if us_of(request.event_from) >= us_of(request.event_to):
        raise errors.InvalidArgument.of_field("event_to", "'event_to' is not after 'event_from'")


def _same(made: records.ReratePlanned, request: cards_pb2.PlanRerateRequest) -> bool:
    return (made.card_id, made.event_from, made.event_to) == (
        request.card_id,
        request.event_from,
        request.event_to,
    )


def _planned(plan: Plan, found: Rerated) -> cards_pb2.PlanRerateResponse:
    totals: dict[str, list[int]] = {}
    for _, currency, before, after in found.charges:
        sums = totals.setdefault(currency, [0, 0])
        sums[0] += before
        sums[1] += after
    by_change = sorted(found.charges, key=lambda row: (-abs(row[3] - row[2]), row[:2]))
    return cards_pb2.PlanRerateResponse(
        position=plan.position,
        plan=plan.made,
        totals=[
            charge_change("", currency, before, after)
            for currency, (before, after) in sorted(totals.items())
        ],
        accounts=[charge_change(*row) for row in by_change[:_MAX_ACCOUNTS]],
        accounts_changed=len(found.charges),
    )


def charge_change(name: str, currency: str, before: int, after: int) -> cards_pb2.ChargeChange:
    """Amounts before and after as the contract writes them."""
    return cards_pb2.ChargeChange(
        name=name,
        before=queries.amount(currency, before),
        after=queries.amount(currency, after),
    )
