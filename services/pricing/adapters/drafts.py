"""Drafts over gRPC: checked, looked at beside the cards in force, tried on the log's own usage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from kernel import errors
from pricing.adapters.card_text import card_in
from pricing.adapters.queries import positions_message
from pricing.adapters.recorder import Recorder
from pricing.adapters.rehearsal import Previewed, preview
from pricing.adapters.rehearser import Rehearser
from pricing.adapters.rerate_changes import charge_change
from pricing.domain import card_review
from pricing.domain.card import Card, content_hash
from pricing.domain.document import DocumentError, parse_document
from pricing.domain.preview import Amounts, Unpriced
from tollbook.pricing.v1 import cards_pb2, pricing_pb2

_DEFAULT_ENTRIES: Final = 100_000
_DEFAULT_TOP: Final = 20
_MAX_UNPRICED: Final = 100
_MAX_UNMATCHED: Final = 1_000


class Drafts:
    """Answers the calls of RateCardService that are about drafts and record nothing."""

    def __init__(self, recorder: Recorder, rehearser: Rehearser, ledger_address: str) -> None:
        self._recorder = recorder
        self._rehearser = rehearser
        self._ledger_address = ledger_address

    async def ValidateRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.ValidateRateCardRequest, context: Any
    ) -> cards_pb2.ValidateRateCardResponse:
        """Say what is wrong with a draft, then what is odd about it."""
        try:
            draft = card_in(request.yaml)
        except errors.InvalidArgument as error:
            return cards_pb2.ValidateRateCardResponse(findings=_errors(error))
        findings = await self._review(draft, request.yaml)
        entries = request.max_entries or _DEFAULT_ENTRIES
        found = await self._previewed(request.yaml, entries, context)
        for one in [*found.newly_unpriced, *found.still_unpriced][:_MAX_UNPRICED]:
            findings.append(
                _finding(
                    card_review.UNPRICED_IN_USE,
                    f"model {one.model!r} is in use ({one.entries} of the newest entries have"
                    f" {one.leaf!r}) and would have no price for it",
                )
            )
        state = self._recorder.state
        newest = state.cards.newest_version(draft.card_id)
        digest = content_hash(draft.document())
        version = state.cards.versions.get((draft.card_id, newest))
        same = version is not None and version.content_hash == digest and not version.is_over
        return cards_pb2.ValidateRateCardResponse(
            findings=findings,
            card=pricing_pb2.CardRef(
                card_id=draft.card_id, version=newest + (not same), content_hash=digest
            ),
        )

    async def PreviewRateCard(  # noqa: N802 - the contract's name
        self, request: cards_pb2.PreviewRateCardRequest, context: Any
    ) -> cards_pb2.PreviewRateCardResponse:
        """Rate the log's own usage by a draft and say what would change."""
        started = time.monotonic()
        draft = card_in(request.yaml)
        found = await self._previewed(request.yaml, request.max_entries, context)
        flags = [
            flag
            for flag in await self._review(draft, request.yaml)
            if flag.reason in (card_review.TENFOLD, card_review.UNIT_TYPO, card_review.FREE)
        ]
        top = request.top or _DEFAULT_TOP
        models = [one for one in found.models if one.change_pico]
        accounts = [one for one in found.accounts if one.change_pico]
        return cards_pb2.PreviewRateCardResponse(
            events=found.events,
            positions=positions_message(found.sizes),
            totals=_changes(sorted(found.totals, key=lambda one: one.currency)),
            models=_changes(models[:top]),
            winners=_changes([one for one in accounts if one.change_pico < 0][:top]),
            losers=_changes([one for one in accounts if one.change_pico > 0][:top]),
            models_changed=len(models),
            accounts_changed=len(accounts),
            unmatched_lines=found.unmatched_lines[:_MAX_UNMATCHED],
            newly_unpriced=_unpriced(found.newly_unpriced),
            still_unpriced=_unpriced(found.still_unpriced),
            flags=flags,
            took_ms=round((time.monotonic() - started) * 1000),
        )

    async def _review(self, draft: Card, yaml: str) -> list[cards_pb2.Finding]:
        state = await self._recorder.current()
        found = await asyncio.to_thread(
            card_review.review,
            draft,
            state.cards.entries(state.size),
            self._recorder.clock.now_us(),
            places_in(yaml),
        )
        return [_finding(one.reason, one.message, one.line, one.column) for one in found]

    async def _previewed(self, yaml: str, max_entries: int, context: Any) -> Previewed:
        return await self._rehearser.run(
            context.time_remaining(), preview, self._ledger_address, yaml, max_entries
        )


def places_in(yaml: str) -> Callable[[str], tuple[int, int]]:
    """Where each line of a card stands in its YAML, by the line's id."""
    places: dict[str, tuple[int, int]] = {}
    try:
        lines = parse_document(yaml).get("lines")
    except DocumentError:
        lines = None
    for node in (lines.items if lines is not None else None) or ():
        ident = node.get("id")
        if ident is not None and ident.text is not None:
            places[ident.text] = node.line, node.column
    return lambda line_id: places.get(line_id, (0, 0))


def _errors(error: errors.InvalidArgument) -> Iterable[cards_pb2.Finding]:
    for violation in error.violations:
        words = violation.field.replace(",", "").split()
        # `line 3, column 11`, as card_text.py writes it.
        numbers = [int(word) for word in words if word.isdecimal()]
        line, column = numbers if len(numbers) == 2 else (0, 0)
        yield cards_pb2.Finding(
            severity=cards_pb2.SEVERITY_ERROR,
            reason=error.reason,
            line=line,
            column=column,
            message=violation.description,
        )
    if not error.violations:
        yield cards_pb2.Finding(
            severity=cards_pb2.SEVERITY_ERROR, reason=error.reason, message=error.message
        )


def _finding(reason: str, message: str, line: int = 0, column: int = 0) -> cards_pb2.Finding:
    is_error = reason in card_review.ERRORS
    return cards_pb2.Finding(
        severity=cards_pb2.SEVERITY_ERROR if is_error else cards_pb2.SEVERITY_WARNING,
        reason=reason,
        line=line,
        column=column,
        message=message,
    )


def _changes(found: Iterable[Amounts]) -> list[cards_pb2.ChargeChange]:
    return [charge_change(*one) for one in found]


def _unpriced(found: Sequence[Unpriced]) -> list[cards_pb2.UnpricedUsage]:
    return [
        cards_pb2.UnpricedUsage(model=one.model, leaf=one.leaf, entries=one.entries)
        for one in found[:_MAX_UNPRICED]
    ]
