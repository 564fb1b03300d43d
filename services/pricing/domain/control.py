"""What the control log made: accounts, keys, grants and cards, one record after the other.

A record that breaks a rule is refused with a reason and changes nothing. The
rules are pure and the same for every reader, so all refuse the same records:
nothing that came into the log by another way than the service can raise a
balance, overflow a sum or stop a projector.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from typing import Final

from google.protobuf.message import DecodeError

from kernel import leaf as leaves
from kernel.clock import us_of
from kernel.placement import CONTROL_LOG
from pricing.domain import books, card_rules
from pricing.domain.card import Card, content_hash, read_document
from pricing.domain.catalogue import Catalogue, PublishedCard, published_card
from pricing.domain.state import Account, Effects, Grant, Ignored, Key
from pricing.domain.text import is_plain
from tollbook.ledger.v1 import ledger_pb2 as ledger
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
    return _text_problem("reason", made.reason, 512)


def card_of(made: control.RateCardPublished) -> Card:
    """The card that a record publishes. Errors: ValueError with what is wrong."""
    if content_hash(made.document) != made.content_hash:
        raise ValueError("the document is not what its hash says")
    card = card_rules.check(read_document(made.document))
    if card.card_id != made.card_id:
        raise ValueError(f"the document is of card {card.card_id!r}")
    ends_us = us_of(made.effective_to) if made.HasField("effective_to") else None
    if (us_of(made.effective_from), ends_us) != (card.effective_from_us, card.effective_to_us):
        raise ValueError("its instants are not those of the document")
    if made.version < 1:
        raise ValueError("versions are counted from 1")
    return card


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
        self._secrets: set[bytes] = set()
        self._grants: set[str] = set()
        self._cards: list[PublishedCard] = []
        self._card_positions: list[int] = []
        self._versions: dict[str, int] = {}
        self._catalogues: dict[int, Catalogue] = {}

    def catalogue(self, control_size: int) -> Catalogue:
        """The cards known at a pin."""
        known = bisect_left(self._card_positions, control_size)
        catalogue = self._catalogues.pop(known, None)
        if catalogue is None:
            catalogue = Catalogue(self._cards[:known])
        # The one used last goes last; the one unused for longest is dropped.
        self._catalogues[known] = catalogue
        if len(self._catalogues) > _KEPT_CATALOGUES:
            del self._catalogues[next(iter(self._catalogues))]
        return catalogue

    def account_at(self, account_id: str, control_size: int) -> Account | None:
        """The account, if it was known at a pin."""
        account = self.accounts.get(account_id)
        return account if account is not None and account.position < control_size else None

    def newest_version(self, card_id: str) -> int:
        """The newest version of a card, or 0."""
        return self._versions.get(card_id, 0)

    def apply(self, position: int, raw: bytes, aside: bytes, effects: Effects) -> str | None:
        """Apply the leaf at `position`, which must be the next.

        Gives the account that a change concerns, "" when it concerns all, or
        None when no price changed.
        """
        if position != self.size:
            raise ValueError(f"control position {position} is not the next, {self.size}")
        why: str | None
        concerns: str | None = None
        try:
            leaf = leaves.decode(raw)
            record = None
            if leaf.disposition == ledger.DISPOSITION_ACCEPTED:
                record = control.ControlRecord.FromString(record_in(leaf, aside))
            why, concerns = self._change(position, record, effects)
        except (leaves.LeafError, DecodeError) as error:
            why = f"not a control record: {error}"
        self.size = position + 1
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
            case _:
                return "a change of a kind that this version does not know", None

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
        effects.grants.append(Grant(position, made.grant_id, made.account_id, amount_pico))
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
        try:
            card = card_of(made)
        except ValueError as error:
            return f"card {made.card_id[:70]!r}: {error}"
        if made.version <= self.newest_version(card.card_id):
            return f"card {card.card_id!r}: version {made.version} is not new"
        published = published_card(position, card, made.version, made.content_hash)
        self._cards.append(published)
        self._card_positions.append(position)
        self._versions[card.card_id] = made.version
        effects.cards.append(published)
        return None
