"""OperatorService: who may change prices, made and revoked by records of the control log."""

from __future__ import annotations

from typing import Any

from kernel import errors
from pricing.adapters.changes import refuse
from pricing.adapters.recorder import Recorder
from pricing.adapters.who import operator_if_any, operator_with
from pricing.domain.operators import ADMIN, operator_problem
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import cards_pb2, cards_pb2_grpc, control_pb2


class OperatorChanges(cards_pb2_grpc.OperatorServiceServicer):
    """Answers OperatorService."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def CreateOperator(  # noqa: N802 - the contract's name
        self, request: cards_pb2.CreateOperatorRequest, context: Any
    ) -> cards_pb2.CreateOperatorResponse:
        """Create an operator, or find the same one created before."""
        made = request.operator
        state = await self._recorder.current()
        known = state.operators.by_id.get(made.operator_id)
        if known is None:
            actor = operator_if_any(context, state.operators, ADMIN)
            refuse("operator", operator_problem(made))
            why = await self._recorder.record(
                f"operator:{made.operator_id}:{state.size}",
                control_pb2.ControlRecord(operator_created=made),
                actor or made.operator_id,
            )
            known = state.operators.by_id.get(made.operator_id)
            if known is None:
                raise errors.FailedPrecondition(why, reason="NOT_APPLIED")
        same = (known.secret_digest, known.roles, known.revoked_position) == (
            made.secret_digest,
            frozenset(made.roles),
            None,
        )
        if not same:
            raise errors.AlreadyExists(
                f"operator {made.operator_id!r} exists with another secret or other roles, or was"
                " revoked; choose another id",
                reason="OPERATOR_EXISTS",
            )
        return cards_pb2.CreateOperatorResponse(position=known.position)

    async def RevokeOperator(  # noqa: N802 - the contract's name
        self, request: cards_pb2.RevokeOperatorRequest, context: Any
    ) -> cards_pb2.RevokeOperatorResponse:
        """Revoke an operator; a repeat is answered like the first."""
        state = await self._recorder.current()
        actor = operator_with(context, state.operators, ADMIN)
        known = state.operators.by_id.get(request.operator_id)
        if known is None:
            raise errors.NotFound(
                f"there is no operator {request.operator_id!r}", reason="OPERATOR_NOT_FOUND"
            )
        if known.revoked_position is None:
            made = records.OperatorRevoked(operator_id=request.operator_id)
            why = await self._recorder.record(
                f"operator-revoked:{request.operator_id}:{state.size}",
                control_pb2.ControlRecord(operator_revoked=made),
                actor.operator_id,
            )
            known = state.operators.by_id[request.operator_id]
            if known.revoked_position is None:
                raise errors.FailedPrecondition(why, reason="NOT_APPLIED")
        return cards_pb2.RevokeOperatorResponse(position=known.revoked_position)

    async def ListOperators(  # noqa: N802 - the contract's name
        self, request: cards_pb2.ListOperatorsRequest, context: Any
    ) -> cards_pb2.ListOperatorsResponse:
        """Answer with all operators, without their secrets' digests."""
        state = await self._recorder.current()
        return cards_pb2.ListOperatorsResponse(
            operators=[
                cards_pb2.Operator(
                    operator_id=one.operator_id,
                    roles=sorted(records.Role.ValueType(role) for role in one.roles),
                    revoked=one.revoked_position is not None,
                )
                for _, one in sorted(state.operators.by_id.items())
            ]
        )
