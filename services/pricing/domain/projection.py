"""The fold from logs to money: the one rule that service, preview and auditor share.

`Projection` holds what rating must know (what the control log made, and what
waits in suspense) and gives, for each step, `Effects`: what the caller applies
to its books, in a database or in memory. It holds no balance.

Determinism. A usage entry is rated by the cards known at its pin. What has no
price then waits, and is released by the first later control record that
prices it. A reader may have applied control records beyond a pin before it
meets the entry; it then walks those records for the entry alone. So every
interleaving of the logs, and every cutting into runs, gives the same charges
but for how postings are folded, and the same balances to the last unit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence

from kernel.placement import CONTROL_LOG
from pricing.domain.batch import rate_run
from pricing.domain.billing import Bills
from pricing.domain.catalogue import PublishedCard
from pricing.domain.charges import Charges
from pricing.domain.closing import Closings
from pricing.domain.control import ControlState
from pricing.domain.events import Event, read_event
from pricing.domain.meters import Commitments, Layer, MeterKey, Meters, Month, MonthKey
from pricing.domain.months import month_of
from pricing.domain.rating import RatedLeaf, rate_event
from pricing.domain.spending import leaf_text, line_use, use_of_event
from pricing.domain.state import Billed, BillKey, Closed, Effects, Origin, Suspended


class Projection:
    """The state that rating needs, at a size of the control log."""

    def __init__(
        self,
        sums_use: bool = True,
        control: ControlState | None = None,
        bills: bool = True,
        judges: bool = True,
    ) -> None:
        self.sums_use = sums_use
        """Whether effects tell what was used by the minute: for the service, not for an audit."""
        self.control = control if control is not None else ControlState()
        self._bills = bills
        """Whether charges are summed for bills: not for what is only tried."""
        self._judges = bills and judges
        """Whether closings are judged: not by who reads the control log alone."""
        self.bills = Bills(self.control.ends, self.version)
        self.closings = Closings(self.bills, self.control.accounts.get)
        self.suspense: dict[tuple[str, int], Suspended] = {}
        self.meters = Meters()
        self.commitments = Commitments()
        self._versions: dict[tuple[str, int], PublishedCard] = {}

    def apply_control(self, position: int, raw: bytes, aside: bytes = b"") -> Effects:
        """Apply the control log's leaf at `position`, which must be the next.

        `aside` is the record itself where the leaf holds only its digest.
        A record that cannot be applied is ignored, by a rule that any reader
        repeats, and named in `ignored`. Errors: MissingAsideError.
        """
        effects = Effects()
        concerns = self.control.apply(position, raw, aside, effects)
        if concerns is not None:
            self._release(position, effects, concerns)
        for closed in effects.closed:
            self._close(closed, effects)
        if self._bills:
            self.bills.take(effects, position)
        if self._judges:
            for at, made in effects.closes:
                self.closings.add(at, made)
                self.closings.judge(effects, (made.account_id,))
        return effects

    def _close(self, closed: Closed, effects: Effects) -> None:
        """Bring every account that a card names to its minimum for a month."""
        charges = self._charges(CONTROL_LOG)
        card = closed.terms.card
        for account_id in card.accounts:
            account = self.control.account_at(account_id, closed.position)
            if account is not None and account.currency == card.currency:
                month = MonthKey(account_id, card.currency, card.card_id, closed.period)
                charges.close_month(month, closed.terms, closed.position)
        charges.finish(effects)

    def apply_usage(
        self,
        log: str,
        first_position: int,
        pin: int,
        data: Sequence[bytes],
    ) -> Effects:
        """Rate a run of a usage log's leaves that share a pin.
        Errors: ValueError when the control log is not applied up to the pin.
        """
        if pin > self.control.size:
            raise ValueError(f"pinned to control size {pin}, applied is {self.control.size}")

        def currency_of(account_id: str) -> str | None:
            account = self.control.account_at(account_id, pin)
            return account.currency if account is not None else None

        charges = self._charges(log)
        catalogue = self.control.catalogue(pin)
        rated = rate_run(log, first_position, data, currency_of, catalogue, charges)
        effects = rated.effects
        for position in rated.unpriced:
            raw = data[position - first_position]
            event = read_event(position, raw)
            entry = Suspended(log, pin, event, self._waiting(event, pin), raw)
            rest = self._walk(entry, charges)
            if rest is not None:
                self.suspense[rest.place] = rest
                effects.suspended.append(rest)
        charges.finish(effects)
        if self._bills:
            self.bills.take(effects, pin)
            era = self.control.ends.era_of(pin)
            if data and self.closings.passed.add(log, era, first_position):
                effects.passed.append((log, era, first_position))
                self.closings.judge(effects)
        return effects

    def _charges(self, log: str) -> Charges:
        return Charges(log, self.meters, self.commitments, self.sums_use, self._bills)

    def restore(self, log: str, position: int, pin: int, raw: bytes) -> None:
        """Put back an entry that waits at the control size applied now."""
        event = read_event(position, raw)
        waiting = tuple(
            part.leaf_index for part, _ in self.receipt(event, pin) if part.priced is None
        )
        self.suspense[log, position] = Suspended(log, pin, event, waiting, raw)

    def restore_meter(self, key: MeterKey, layer: Layer, units: int) -> None:
        """Put back a meter's count. Errors: ValueError when no such version is known."""
        self.meters.put(key, layer, units, self.version(key.card_id, layer.version))

    def restore_month(self, key: MonthKey, month: Month) -> None:
        """Put back a committed month. Errors: ValueError when no such version is known."""
        self.commitments.put(key, month, self.version(key.card_id, month.version))

    def restore_bill(self, account_id: str, key: BillKey, origin: Origin, billed: Billed) -> None:
        """Put back a sum of what is to be billed."""
        self.bills.put(account_id, key, origin, billed)

    def restore_passed(self, log: str, era: int, first_position: int) -> None:
        """Put back where a log's era changed, in order; once all is put back, `rejudge`."""
        self.closings.passed.add(log, era, first_position)

    def rejudge(self) -> None:
        """Come again to the verdicts that were given before; what followed from them is kept."""
        self.closings.judge(Effects())

    def version(self, card_id: str, version: int) -> PublishedCard:
        """A version of a card that is or was in force. Errors: ValueError when none is known."""
        known = self._versions.get((card_id, version))
        if known is None:
            entries = self.control.cards.entries(self.control.size)
            self._versions = {(one.card.card_id, one.version): one for one in entries}
            known = self._versions.get((card_id, version))
        if known is None:
            raise ValueError(f"card {card_id!r} version {version} is not in the control log")
        return known

    def _rated(
        self, event: Event, control_size: int, only: Collection[int] | None = None
    ) -> tuple[RatedLeaf, ...] | None:
        """The event rated as known at a control size; None while its account is not known."""
        account = self.control.account_at(event.account_id, control_size)
        if account is None:
            return None
        return rate_event(event, account.currency, self.control.catalogue(control_size), only)

    def _waiting(self, event: Event, control_size: int) -> tuple[int, ...]:
        """Indexes of the leaves of an event that have no price at a control size."""
        rated = self._rated(event, control_size)
        if rated is None:
            return tuple(index for index, part in enumerate(event.leaves) if part.amount)
        return tuple(part.leaf_index for part in rated if part.priced is None)

    def _changes_from(self, control_size: int) -> list[int]:
        """Positions of the control log, from a size on, that may have priced something."""
        changes = self.control.price_changes
        return changes[bisect_left(changes, control_size) :]

    def _walk(self, entry: Suspended, charges: Charges) -> Suspended | None:
        """Give a new entry every release that records applied already hold for it."""
        rest: Suspended | None = entry
        for position in self._changes_from(entry.pin):
            if rest is None:
                break
            rest = self._try_release(rest, position, charges)
        return rest

    def _release(self, position: int, effects: Effects, account_id: str) -> None:
        """Rate what waits and the control record at `position` gave a price to."""
        charges: dict[str, Charges] = {}
        for place, entry in sorted(self.suspense.items()):
            if account_id and entry.event.account_id != account_id:
                continue
            of_log = charges.setdefault(entry.log, self._charges(entry.log))
            rest = self._try_release(entry, position, of_log)
            if rest is None:
                del self.suspense[place]
                effects.released.append(entry)
            else:
                self.suspense[place] = rest
        for of_log in charges.values():
            of_log.finish(effects)

    def _try_release(self, entry: Suspended, position: int, charges: Charges) -> Suspended | None:
        """Rate an entry as known just after a control position: what still waits, or None."""
        event = entry.event
        account = self.control.account_at(event.account_id, position + 1)
        rated = self._rated(event, position + 1, entry.waiting)
        if rated is None or account is None:
            return entry
        use = use_of_event(event)
        for part in rated:
            if part.priced is not None:
                # Its units were counted when it began to wait.
                charges.add(
                    event.account_id,
                    account.currency,
                    part.priced,
                    part.charged,
                    part.amount_pico,
                    event.position,
                    event.position + 1,
                    line_use(use, leaf_text(part.leaf.key), part.priced),
                    month_of(event.event_time_us),
                    position,
                )
        waiting = tuple(part.leaf_index for part in rated if part.priced is None)
        return entry._replace(waiting=waiting) if waiting else None

    def receipt(self, event: Event, pin: int) -> tuple[tuple[RatedLeaf, int], ...]:
        """Rate one event again: each leaf with the control size it was rated under.

        A leaf that waits still has `priced` None and the size applied now.
        """
        answers: list[tuple[RatedLeaf, int]] = []
        waiting = {index: part for index, part in enumerate(event.leaves) if part.amount}
        for size in (pin, *(position + 1 for position in self._changes_from(pin))):
            if not waiting:
                break
            for part in self._rated(event, size, waiting) or ():
                if part.priced is not None:
                    answers.append((part, size))
            for part, _ in answers:
                waiting.pop(part.leaf_index, None)
        answers += (
            (RatedLeaf(leaf, 0, "", None, 0, index), self.control.size)
            for index, leaf in waiting.items()
        )
        # By leaf; what is on top of one stands after it, as it was rated.
        return tuple(sorted(answers, key=lambda answer: answer[0].leaf_index))
