"""What the control log made: accounts, keys, grants and cards, one record after the other.

A record that breaks a rule is refused with a reason and changes nothing. The
rules are pure and the same for every reader, so all refuse the same records:
nothing that came into the log by another way than the service can raise a
balance, overflow a sum or stop a projector.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from kernel import leaf as leaves
from kernel.clock import us_of
from kernel.placement import CONTROL_LOG
from pricing.domain import books, card_rules
from pricing.domain.card_life import CardLife
from pricing.domain.catalogue import Catalogue, PublishedCard
from pricing.domain.credit import KINDS, CreditState, grant_of
from pricing.domain.months import month_of
from pricing.domain.operators import Operators
from pricing.domain.period_ends import PeriodEnds
from pricing.domain.periods import Periods
from pricing.domain.rerating import Reratings, posting_of
from pricing.domain.state import Account, Closed, Effects, Ignored, Key
from pricing.domain.text import is_plain
from pricing.domain.windows import LAST_US, MINUTE_US
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import card_records_pb2 as records
from tollbook.pricing.v1 import commitment_pb2
from tollbook.pricing.v1 import control_pb2 as control

MAX_GRANT_PICO: Final = 10**30
KEY_ID: Final = card_rules.ACCOUNT_ID
_AMOUNT: Final = re.compile(r"[1-9][0-9]{0,38}")
_KEPT_CATALOGUES: Final = 16


class MissingAsideError(ValueError):
    """A leaf holds its record's digest only, and the record was not given with it."""


def _text_problem(name: str, text: str, most_chars: int, least_chars: int = 0) -> str | None:
    if least_chars <= len(text) <= most_chars and is_plain(text):
        return None
    return f"{name} is {least_chars} to {most_chars} characters without control characters"


def account_problem(made: control.AccountCreated) -> str | None:
    """What is wrong with an account to be made, or None."""
    if not card_rules.ACCOUNT_ID.fullmatch(made.account_id):
        return "account_id is 1-64 of a-z 0-9 . _ - and begins with a letter or digit"
    if not card_rules.CURRENCY.fullmatch(made.currency):
        return "currency is an ISO 4217 code such as USD"
    return _text_problem("display_name", made.display_name, 256)


def key_problem(made: control.KeyCreated) -> str | None:
    """What is wrong with a key to be made, or None."""
    if not KEY_ID.fullmatch(made.key_id):
        return "key_id is 1-64 of a-z 0-9 . _ - and begins with a letter or digit"
    if len(made.secret_digest) != 32:
        return "secret_digest is the SHA-256 of the secret, 32 bytes"
    return _text_problem("project_id", made.project_id, 64)


def grant_problem(made: control.CreditGranted) -> str | None:
    """What is wrong with a grant, or None."""
    if problem := _text_problem("grant_id", made.grant_id, 128, 1):
        return problem
    amount = made.amount.amount_pico
    if not _AMOUNT.fullmatch(amount) or int(amount) > MAX_GRANT_PICO:
        return "a grant is more than 0 and at most 10^18 units of the currency"
    if not 0 <= made.priority <= 1000:
        return "priority is 0 to 1000"
    if problem := _text_problem("project_id", made.project_id, 64):
        return problem
    if made.HasField("expires_time"):
        expires_us = us_of(made.expires_time)
        if expires_us % MINUTE_US or not 0 < expires_us <= LAST_US:
            return "expires_time is a full minute from 1970 to 9999"
    return _text_problem("reason", made.reason, 512)


def needs_aside(raw: bytes) -> bool:
    """Tell whether a leaf holds only its record's digest, so that the record must come with it."""
    try:
        return leaves.decode(raw).aside
    except leaves.LeafError:
        return False


def record_in(leaf: leaves.Leaf, aside: bytes) -> bytes:
    """A record's bytes: in the leaf, or aside when it is too large for one.

    Errors: MissingAsideError when `aside` is not the record the leaf speaks of.
    """
    if not leaf.aside:
        return leaf.value
    digest, length = leaves.aside_of(leaf.value)
    if len(aside) != length or hashlib.sha256(aside).digest() != digest:
        raise MissingAsideError(
            f"the record stands aside ({length} bytes) and was not given, or another one was"
        )
    return aside


class ControlState:
    """Accounts, keys, grants and cards at a size of the control log."""

    def __init__(self) -> None:
        self.size = 0
        self.accounts: dict[str, Account] = {}
        self.keys: dict[str, Key] = {}
        self.price_changes: list[int] = []
        """Positions at which something came to be known that may price what waits."""
        self.operators = Operators()
        self.cards = CardLife(self.operators)
        self.reratings = Reratings(self.operators)
        self.periods = Periods()
        self.credit = CreditState()
        self.ends = PeriodEnds()
        self._secrets: set[bytes] = set()
        self._grants: set[str] = set()
        self._recorded_ms: list[int] = []
        self._catalogues: dict[int, Catalogue] = {}

    def catalogue(self, control_size: int) -> Catalogue:
        """The cards known at a pin."""
        known = self.cards.changes(control_size)
        catalogue = self._catalogues.pop(known, None)
        if catalogue is None:
            catalogue = Catalogue(self.entries(control_size))
        # The one used last goes last; the one unused for longest is dropped.
        self._catalogues[known] = catalogue
        if len(self._catalogues) > _KEPT_CATALOGUES:
            del self._catalogues[next(iter(self._catalogues))]
        return catalogue

    def entries(self, control_size: int) -> Sequence[PublishedCard]:
        """What the catalogue of a pin is made of."""
        return self.cards.entries(control_size)

    def size_known_at(self, instant_us: int) -> int:
        """Size of the control log at an instant: all before it was recorded by then."""
        return bisect_right(self._recorded_ms, instant_us // 1000)

    def recorded_us(self, position: int) -> int:
        """When a record was known by: its own time, or a later one of a record before it."""
        return self._recorded_ms[position] * 1000

    def account_at(self, account_id: str, control_size: int) -> Account | None:
        """The account, if it was known at a pin."""
        account = self.accounts.get(account_id)
        return account if account is not None and account.position < control_size else None

    def apply(self, position: int, raw: bytes, aside: bytes, effects: Effects) -> str | None:
        """Apply the leaf at `position`, which must be the next.

        Gives the account that a change concerns, "" when it concerns all, or
        None when no price changed.
        """
        if position != self.size:
            raise ValueError(f"control position {position} is not the next, {self.size}")
        why: str | None
        concerns: str | None = None
        recorded_ms = self._recorded_ms[-1] if self._recorded_ms else 0
        try:
            leaf = leaves.decode(raw)
            recorded_ms = max(recorded_ms, leaf.timestamp_ms)
            # In its place, not at the end: a leaf may come again, with its record beside it.
            self._recorded_ms[position:] = [recorded_ms]
            record = None
            if leaf.disposition == ledger.DISPOSITION_ACCEPTED:
                record = control.ControlRecord.FromString(record_in(leaf, aside))
            why, concerns = self._change(position, record, effects)
        except (leaves.LeafError, DecodeError) as error:
            why = f"not a control record: {error}"
        self.size = position + 1
        self._recorded_ms[position:] = [recorded_ms]
        effects.recorded.append((position, recorded_ms * 1000))
        if why:
            effects.ignored.append(Ignored(CONTROL_LOG, position, why))
        if concerns is not None:
            self.price_changes.append(position)
        return concerns

    def _change(
        self, position: int, record: control.ControlRecord | None, effects: Effects
    ) -> tuple[str | None, str | None]:
        """(why it is refused or None, whose prices it may change as in `apply`)"""
        if record is None:
            return None, None
        match record.WhichOneof("change"):
            case "account_created":
                why = self._create_account(position, record.account_created, effects)
                return why, None if why else record.account_created.account_id
            case "key_created":
                return self._create_key(position, record.key_created, effects), None
            case "key_revoked":
                return self._revoke_key(position, record.key_revoked, effects), None
            case "credit_granted":
                return self._grant(position, record.credit_granted, effects), None
            case "rate_card_published":
                why = self._publish(position, record.rate_card_published, effects)
                return why, None if why else ""
            case kind if kind in KINDS:
                why = self.credit.change(
                    position,
                    record,
                    self.accounts,
                    self._account_of_key,
                    self._recorded_ms[-1] * 1000,
                    effects,
                )
                return why, None
            case _:
                return self._change_prices(position, record, effects)

    def _change_prices(
        self, position: int, record: control.ControlRecord, effects: Effects
    ) -> tuple[str | None, str | None]:
        """What `_change` gives, for the records of cards' lives and of re-rating."""
        match record.WhichOneof("change"):
            case "operator_created":
                return self.operators.create(position, record.operator_created), None
            case "operator_revoked":
                return self.operators.revoke(position, record.operator_revoked), None
            case "rate_card_proposed":
                return self.cards.propose(position, record.rate_card_proposed), None
            case "rate_card_approved":
                why, entries = self.cards.approve(position, record.rate_card_approved)
                effects.cards += entries
                return why, None if why else ""
            case "rate_card_retired":
                # What ends may uncover what was below it, and that may price what waits.
                why, _ = self.cards.retire(position, record.rate_card_retired)
                return why, None if why else ""
            case "rerate_planned":
                return self.reratings.plan(position, record.rerate_planned), None
            case "corrections_posted":
                return self._correct(position, record.corrections_posted, effects), None
            case "commitment_closed":
                return self._close(position, record.commitment_closed, effects), None
            case "period_ended":
                recorded_ms = self._recorded_ms[-1]
                return self.ends.end(position, record.period_ended, recorded_ms), None
            case "period_closed":
                made = record.period_closed
                why = self.ends.close_problem(made, self.accounts.get(made.account_id))
                if why is None:
                    # What the control log alone can say is in order; the rest is judged later.
                    effects.closes.append((position, made))
                return why, None
            case "signer_key_changed":
                # For those who read checkpoints; no balance depends on who signs.
                return None, None
            case _:
                return "a change of a kind that this version does not know", None

    def _account_of_key(self, key_id: str) -> str | None:
        key = self.keys.get(key_id)
        return key.account_id if key is not None else None

    def _create_account(
        self, position: int, made: control.AccountCreated, effects: Effects
    ) -> str | None:
        if problem := account_problem(made):
            return problem
        if made.account_id in self.accounts:
            return f"account {made.account_id!r} exists"
        account = Account(position, made.account_id, made.currency, made.display_name)
        self.accounts[made.account_id] = account
        effects.accounts.append(account)
        return None

    def _create_key(self, position: int, made: control.KeyCreated, effects: Effects) -> str | None:
        if problem := key_problem(made):
            return problem
        if made.account_id not in self.accounts:
            return f"no account {made.account_id!r} for key {made.key_id!r}"
        # Neither id nor secret ever comes back: a key in an old event means one key for ever.
        if made.key_id in self.keys or made.secret_digest in self._secrets:
            return f"key {made.key_id!r} or its secret was in use before"
        key = Key(position, made.key_id, made.account_id, made.project_id, made.secret_digest, None)
        self.keys[made.key_id] = key
        self._secrets.add(made.secret_digest)
        effects.keys.append(key)
        return None

    def _revoke_key(self, position: int, made: control.KeyRevoked, effects: Effects) -> str | None:
        key = self.keys.get(made.key_id)
        if key is None:
            return f"no key {made.key_id[:70]!r} to revoke"
        if key.revoked_position is not None:
            return f"key {made.key_id!r} was revoked before"
        self.keys[made.key_id] = key._replace(revoked_position=position)
        effects.keys.append(self.keys[made.key_id])
        return None

    def _grant(self, position: int, made: control.CreditGranted, effects: Effects) -> str | None:
        if problem := grant_problem(made):
            return problem
        account = self.accounts.get(made.account_id)
        if account is None:
            return f"no account {made.account_id[:70]!r} for grant {made.grant_id!r}"
        if made.grant_id in self._grants:
            return f"grant {made.grant_id!r} was applied before"
        if account.currency != made.amount.currency:
            return f"grant {made.grant_id!r} is not in the account's {account.currency}"
        amount_pico = int(made.amount.amount_pico)
        self._grants.add(made.grant_id)
        granted = grant_of(position, made)
        self.credit.add_grant(granted)
        effects.grants.append(granted)
        effects.postings.append(
            books.Posting(
                books.GRANT,
                books.granted(made.account_id),
                books.customer(made.account_id),
                account.currency,
                amount_pico,
                CONTROL_LOG,
                position,
                position + 1,
            )
        )
        return None

    def _publish(
        self, position: int, made: control.RateCardPublished, effects: Effects
    ) -> str | None:
        why, entries = self.cards.publish(position, made)
        effects.cards += entries
        return why

    def _close(
        self, position: int, made: commitment_pb2.CommitmentClosed, effects: Effects
    ) -> str | None:
        # Known by its own leaf's clock: no reader's.
        recorded_ms = self._recorded_ms[-1]
        why, terms = self.periods.close(position, made, recorded_ms, self.entries(position))
        if terms is not None:
            effects.closed.append(Closed(position, made.period, terms))
        return why

    def _correct(
        self, position: int, made: records.CorrectionsPosted, effects: Effects
    ) -> str | None:
        """Post a batch whole, or not at all."""
        if problem := self.reratings.batch_problem(made):
            return problem
        postings: list[books.Posting] = []
        for correction in made.corrections:
            posting = posting_of(position, correction, self.accounts.get(correction.account_id))
            if isinstance(posting, str):
                return posting
            # Nothing says which month each is of: they are billed in the re-rating's first.
            month = month_of(self.reratings.plans[made.rerate_id].from_us)
            postings.append(posting._replace(period=month))
        self.reratings.post(position, made)
        effects.postings += postings
        return None
