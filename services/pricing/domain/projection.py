"""The fold from logs to money: the one rule that service, preview and auditor share.

`Projection` holds what rating must know (accounts, keys, cards, what waits in
suspense) and gives, for each step, `Effects`: postings and changes that the
caller applies to its books, in a database or in memory. It holds no balance.

Determinism. A usage entry is rated by the cards known at its pin. What has no
price then waits, and is released by the first later control record that
prices it. A reader may have applied control records beyond a pin before it
meets the entry; it then walks those records for the entry alone. So every
interleaving of the logs gives the same postings but for their batches, and
the same balances to the last unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kernel import leaf as leaves
from pricing.domain import books
from pricing.domain.card import card_from_document, content_hash
from pricing.domain.catalogue import Catalogue, PublishedCard
from pricing.domain.events import Event, EventLeaf, Reading, read_leaves
from pricing.domain.rating import RatedLeaf, rate_event
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import control_pb2 as control


class Account(NamedTuple):
    """An account as the control log made it."""

    position: int
    account_id: str
    currency: str
    display_name: str


class Key(NamedTuple):
    """A key as the control log made it; `secret_digest` is SHA-256 of the secret."""

    position: int
    key_id: str
    account_id: str
    project_id: str
    secret_digest: bytes


class Suspended(NamedTuple):
    """A usage event with the leaves that have no price yet."""

    log: str
    pin: int
    event: Event
    """Its `leaves` are those that wait, and no others."""


class Ignored(NamedTuple):
    """A control record that could not be applied; it stays in the log and counts for nothing."""

    position: int
    why: str


@dataclass(slots=True)
class Totals:
    """What an account used, in tokens but for `requests`."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(slots=True)
class Effects:
    """What one step changes. Everything a projector writes, nothing else."""

    postings: list[books.Posting] = field(default_factory=list)
    totals: dict[str, Totals] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    engine_tokens: dict[str, int] = field(default_factory=dict)
    suspended: list[Suspended] = field(default_factory=list)
    released: list[Suspended] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    cards: list[PublishedCard] = field(default_factory=list)
    grants: list[tuple[int, control.CreditGranted]] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)


_LineKey = tuple[str, str, str, int, bytes, str, str, int]


class _Sums:
    """Charges of a batch, folded by account and card line into postings."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._sums: dict[_LineKey, list[int]] = {}

    def add(
        self, event: Event, currency: str, rated: RatedLeaf, kind: str, control_position: int
    ) -> None:
        priced = rated.priced
        if priced is None or rated.amount_pico == 0:
            return
        known = priced.published
        key = (
            event.account_id,
            currency,
            known.card.card_id,
            known.version,
            known.content_hash,
            priced.line.line_id,
            kind,
            control_position,
        )
        sums = self._sums.get(key)
        if sums is None:
            self._sums[key] = [
                rated.amount_pico,
                rated.charged,
                event.position,
                event.position + 1,
            ]
            return
        sums[0] += rated.amount_pico
        sums[1] += rated.charged
        sums[2] = min(sums[2], event.position)
        sums[3] = max(sums[3], event.position + 1)

    def postings(self) -> list[books.Posting]:
        return [
            books.Posting(
                kind=kind,
                debit=books.customer(account_id),
                credit=books.revenue(account_id),
                currency=currency,
                amount_pico=amount_pico,
                log=self._log,
                from_position=first,
                to_position=end,
                card_id=card_id,
                card_version=version,
                card_hash=card_hash,
                line_id=line_id,
                quantity=quantity,
                control_position=control_position,
            )
            for (
                account_id,
                currency,
                card_id,
                version,
                card_hash,
                line_id,
                kind,
                control_position,
            ), (amount_pico, quantity, first, end) in sorted(self._sums.items())
        ]


class Projection:
    """The state that rating needs, at a size of the control log."""

    def __init__(self) -> None:
        self.control_size = 0
        self.accounts: dict[str, Account] = {}
        self.keys: dict[str, Key] = {}
        self.suspense: dict[tuple[str, int], Suspended] = {}
        self._secrets: set[bytes] = set()
        self._grants: set[str] = set()
        self._cards: list[PublishedCard] = []
        # Positions at which something came to be known that may price what waits.
        self._changes: list[int] = []
        self._catalogues: dict[int, Catalogue] = {}

    def catalogue(self, control_size: int) -> Catalogue:
        """The cards known at a pin."""
        known = [card for card in self._cards if card.position < control_size]
        cached = self._catalogues.get(len(known))
        if cached is None:
            cached = self._catalogues[len(known)] = Catalogue(known)
        return cached

    def account_at(self, account_id: str, control_size: int) -> Account | None:
        """The account, if it was known at a pin."""
        account = self.accounts.get(account_id)
        return account if account is not None and account.position < control_size else None

    # Control records ------------------------------------------------------

    def apply_control(self, position: int, raw: bytes) -> Effects:
        """Apply the control log's entry at `position`, which must be the next.

        A record that cannot be applied is ignored, by a rule that any reader
        repeats, and named in `ignored`.
        """
        if position != self.control_size:
            raise ValueError(f"control position {position} is not the next, {self.control_size}")
        effects = Effects()
        leaf = leaves.decode(raw)
        self.control_size = position + 1
        if leaf.disposition != ledger.DISPOSITION_ACCEPTED:
            return effects
        try:
            record = control.ControlRecord.FromString(leaf.value)
        except DecodeError:
            effects.ignored.append(Ignored(position, "not a control record"))
            return effects
        why = self._apply_change(position, record, effects)
        if why:
            effects.ignored.append(Ignored(position, why))
        return effects

    def _apply_change(
        self, position: int, record: control.ControlRecord, effects: Effects
    ) -> str | None:
        match record.WhichOneof("change"):
            case "account_created":
                return self._create_account(position, record.account_created, effects)
            case "key_created":
                return self._create_key(position, record.key_created, effects)
            case "key_revoked":
                if self.keys.pop(record.key_revoked.key_id, None) is None:
                    return f"no key {record.key_revoked.key_id!r} to revoke"
                effects.revoked.append(record.key_revoked.key_id)
                return None
            case "credit_granted":
                return self._grant(position, record.credit_granted, effects)
            case "rate_card_published":
                return self._publish(position, record.rate_card_published, effects)
            case other:
                return f"a change of a kind this version does not know: {other}"

    def _create_account(
        self, position: int, made: control.AccountCreated, effects: Effects
    ) -> str | None:
        if made.account_id in self.accounts:
            return f"account {made.account_id!r} exists"
        account = Account(position, made.account_id, made.currency, made.display_name)
        self.accounts[made.account_id] = account
        effects.accounts.append(account)
        self._changes.append(position)
        self._release(position, effects, made.account_id)
        return None

    def _create_key(self, position: int, made: control.KeyCreated, effects: Effects) -> str | None:
        if made.account_id not in self.accounts:
            return f"no account {made.account_id!r} for key {made.key_id!r}"
        if made.key_id in self.keys or made.secret_digest in self._secrets:
            return f"key {made.key_id!r} or its secret is in use"
        key = Key(position, made.key_id, made.account_id, made.project_id, made.secret_digest)
        self.keys[made.key_id] = key
        self._secrets.add(made.secret_digest)
        effects.keys.append(key)
        return None

    def _grant(self, position: int, made: control.CreditGranted, effects: Effects) -> str | None:
        account = self.accounts.get(made.account_id)
        if account is None:
            return f"no account {made.account_id!r} for grant {made.grant_id!r}"
        if made.grant_id in self._grants:
            return f"grant {made.grant_id!r} was applied before"
        if account.currency != made.amount.currency:
            return f"grant {made.grant_id!r} is in {made.amount.currency}, not {account.currency}"
        try:
            amount_pico = int(made.amount.amount_pico)
        except ValueError:
            amount_pico = 0
        if amount_pico <= 0:
            return f"grant {made.grant_id!r} is not more than 0"
        self._grants.add(made.grant_id)
        effects.grants.append((position, made))
        effects.postings.append(
            books.Posting(
                "grant",
                books.granted(made.account_id),
                books.customer(made.account_id),
                account.currency,
                amount_pico,
                "control",
                position,
                position + 1,
            )
        )
        return None

    def _publish(
        self, position: int, made: control.RateCardPublished, effects: Effects
    ) -> str | None:
        if content_hash(made.document) != made.content_hash:
            return f"card {made.card_id!r}: the document is not what its hash says"
        try:
            card = card_from_document(made.document)
        except ValueError as error:
            return f"card {made.card_id!r}: {error}"
        if card.card_id != made.card_id:
            return f"card {made.card_id!r}: the document is of {card.card_id!r}"
        if any(
            known.card.card_id == made.card_id and known.version >= made.version
            for known in self._cards
        ):
            return f"card {made.card_id!r}: version {made.version} is not new"
        published = PublishedCard(position, card, made.version, made.content_hash)
        self._cards.append(published)
        self._changes.append(position)
        effects.cards.append(published)
        self._release(position, effects, None)
        return None

    # Usage ----------------------------------------------------------------

    def apply_usage(
        self, log: str, first_position: int, pin: int, data: Sequence[bytes]
    ) -> Effects:
        """Rate a run of a usage log's leaves that share a pin.

        Errors: ValueError when the control log is not applied up to the pin.
        """
        if pin > self.control_size:
            raise ValueError(f"pinned to control size {pin}, applied is {self.control_size}")
        effects = Effects()
        sums = _Sums(log)
        catalogue = self.catalogue(pin)
        for item in read_leaves(first_position, data):
            if isinstance(item, Reading):
                effects.readings.append(item)
                continue
            effects.events.append(item)
            _count(effects, item)
            account = self.account_at(item.account_id, pin)
            if account is None:
                waiting = tuple(part for part in item.leaves if part.amount)
            else:
                rated = rate_event(item, account.currency, catalogue)
                for part in rated:
                    sums.add(item, account.currency, part, "usage", -1)
                waiting = tuple(part.leaf for part in rated if part.priced is None)
            if waiting:
                self._suspend(Suspended(log, pin, item._replace(leaves=waiting)), effects, sums)
        effects.postings.extend(sums.postings())
        return effects

    def _suspend(self, entry: Suspended, effects: Effects, sums: _Sums) -> None:
        """Let leaves wait; control records already applied beyond the pin may release some."""
        rest: Suspended | None = entry
        for position in self._changes:
            if position >= entry.pin and rest is not None:
                rest = self._try_release(rest, position, sums)
        if rest is not None:
            self.suspense[rest.log, rest.event.position] = rest
            effects.suspended.append(rest)

    def _release(self, position: int, effects: Effects, account_id: str | None) -> None:
        """Rate what waits and the control record at `position` gave a price to."""
        sums: dict[str, _Sums] = {}
        for place, entry in sorted(self.suspense.items()):
            if account_id is not None and entry.event.account_id != account_id:
                continue
            log_sums = sums.setdefault(entry.log, _Sums(entry.log))
            rest = self._try_release(entry, position, log_sums)
            if rest is entry:
                continue
            effects.released.append(entry)
            del self.suspense[place]
            if rest is not None:
                self.suspense[place] = rest
                effects.suspended.append(rest)
        for log_sums in sums.values():
            effects.postings.extend(log_sums.postings())

    def _try_release(self, entry: Suspended, position: int, sums: _Sums) -> Suspended | None:
        """Rate an entry as known just after a control position: what still waits, or None."""
        account = self.account_at(entry.event.account_id, position + 1)
        if account is None:
            return entry
        rated = rate_event(entry.event, account.currency, self.catalogue(position + 1))
        waiting: list[EventLeaf] = []
        for part in rated:
            if part.priced is None:
                waiting.append(part.leaf)
            else:
                sums.add(entry.event, account.currency, part, "suspense", position)
        if len(waiting) == len(entry.event.leaves):
            return entry
        if not waiting:
            return None
        return entry._replace(event=entry.event._replace(leaves=tuple(waiting)))

    # Receipts ---------------------------------------------------------------

    def receipt(self, event: Event, pin: int) -> tuple[tuple[RatedLeaf, int], ...]:
        """Rate one event again: each leaf with the control size it was rated under.

        A leaf that waits still has `priced` None and the newest size.
        """
        answers: list[tuple[RatedLeaf, int]] = []
        sizes = [pin, *(position + 1 for position in self._changes if position >= pin)]
        for part in event.leaves:
            if part.amount == 0:
                continue
            single = event._replace(leaves=(part,))
            found = (RatedLeaf(part, 0, "", None, 0), self.control_size)
            for size in sizes:
                account = self.account_at(event.account_id, size)
                if account is None:
                    continue
                rated = rate_event(single, account.currency, self.catalogue(size))
                if rated[0].priced is not None:
                    found = (rated[0], size)
                    break
            answers.append(found)
        return tuple(answers)


def _count(effects: Effects, event: Event) -> None:
    """Add an event to its account's totals and to its engine's settled tokens."""
    totals = effects.totals.setdefault(event.account_id, Totals())
    totals.requests += 1
    for part in event.leaves:
        key = part.key
        if key.unit != "token":
            continue
        if key.direction == "out":
            totals.output_tokens += part.amount
            effects.engine_tokens[event.engine_id] = (
                effects.engine_tokens.get(event.engine_id, 0) + part.amount
            )
        elif key.direction == "in":
            if key.cache_use == "read":
                totals.cached_tokens += part.amount
            elif key.cache_use == "write":
                totals.cache_write_tokens += part.amount
            else:
                totals.input_tokens += part.amount
