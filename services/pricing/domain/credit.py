"""How credit comes, moves and goes by the control log: the part of its fold beside keys and cards.

Owns the rules by which such a record is applied or refused, pure and the same
for every reader. Each record has an id that it is applied under once. What an
account can spend at this moment is no business of the fold, since it depends
on the usage logs: the service asks that before it appends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from google.protobuf.message import Message

from kernel.clock import us_of
from pricing.domain import books, card_rules, windows
from pricing.domain.credits import NEVER_US, Lot
from pricing.domain.state import Account, Change, Effects, Grant, Limit, Terms
from pricing.domain.text import is_plain
from tollbook.pricing.v1 import accounts_pb2 as accounts
from tollbook.pricing.v1 import control_pb2 as control
from tollbook.pricing.v1 import money_pb2 as money

MAX_AMOUNT_PICO: Final = 10**30
"""Of one change: 10^18 units of the currency. Sums stay well inside 128 bits."""
_AMOUNT: Final = re.compile(r"0|[1-9][0-9]{0,38}")
WINDOW_WORDS: Final = {
    accounts.SPEND_WINDOW_MINUTE: windows.MINUTE,
    accounts.SPEND_WINDOW_HOUR: windows.HOUR,
    accounts.SPEND_WINDOW_DAY: windows.DAY,
    accounts.SPEND_WINDOW_WEEK: windows.WEEK,
    accounts.SPEND_WINDOW_MONTH: windows.MONTH,
    accounts.SPEND_WINDOW_EVER: windows.EVER,
}

PROJECT: Final = "project_created"
TERMS: Final = "terms_set"
LIMIT: Final = "limit_set"
REFUND: Final = "charge_refunded"
TRANSFER: Final = "credit_transferred"
RULE: Final = "top_up_rule_set"
TOP_UP: Final = "credit_topped_up"
EXPIRED: Final = "credit_expired"
KINDS: Final = frozenset({PROJECT, TERMS, LIMIT, REFUND, TRANSFER, RULE, TOP_UP, EXPIRED})


def text_problem(name: str, text: str, most_chars: int, least_chars: int = 0) -> str | None:
    """What is wrong with a text, or None."""
    if least_chars <= len(text) <= most_chars and is_plain(text):
        return None
    return f"{name} is {least_chars} to {most_chars} characters without control characters"


def amount_problem(name: str, amount: money.Amount, least_pico: int) -> str | None:
    """What is wrong with an amount that is at least `least_pico`, or None."""
    text = amount.amount_pico
    if not _AMOUNT.fullmatch(text) or not least_pico <= int(text) <= MAX_AMOUNT_PICO:
        least = "more than 0" if least_pico else "at least 0"
        return f"{name} is {least} and at most 10^18 units of the currency, in pico-units"
    if not card_rules.CURRENCY.fullmatch(amount.currency):
        return f"{name}: currency is an ISO 4217 code such as USD"
    return None


def lot_of(grant: Grant, expired_pico: int = 0) -> Lot:
    """A grant as a lot, less what of it is void."""
    return Lot(
        grant.priority,
        grant.expires_us,
        grant.position,
        grant.grant_id,
        grant.project_id,
        grant.amount_pico - expired_pico,
    )


class Rule(NamedTuple):
    """When an account is topped up by itself. `amount_pico` None: it is not."""

    position: int
    threshold_pico: int
    amount_pico: int | None


def id_of(kind: str, made: Message) -> str:
    """The id that a change of a kind is applied under once."""
    match made:
        case accounts.ProjectCreated():
            return f"{made.account_id}/{made.project_id}"
        case accounts.TermsSet():
            return made.terms_id
        case accounts.LimitSet():
            return made.change_id
        case accounts.ChargeRefunded():
            return f"{made.account_id}/{made.event_id}"
        case accounts.CreditTransferred():
            return made.transfer_id
        case accounts.TopUpRuleSet():
            return made.rule_id
        case accounts.CreditToppedUp():
            return made.top_up_id
        case accounts.CreditExpired():
            return made.grant_id
        case _:
            raise ValueError(f"{kind} is no change of credit")


def account_of(made: Message) -> str:
    """The account that a change is listed under; of a transfer, who gives."""
    if isinstance(made, accounts.CreditTransferred):
        return made.from_account_id
    account_id: str = getattr(made, "account_id", "")
    return account_id


class CreditState:
    """Terms, limits, lots and what was applied, at a size of the control log."""

    def __init__(self) -> None:
        self.projects: dict[tuple[str, str], str] = {}
        """Display names, by (account_id, project_id)."""
        self.terms: dict[str, Terms] = {}
        self.limits: dict[str, dict[str, Limit]] = {}
        """Limits in force, by account_id and limit_id."""
        self.grants: dict[str, Grant] = {}
        self.expired_pico: dict[str, int] = {}
        """What of a grant is void, by grant_id; a grant is in it once it is closed."""
        self.expiries: list[tuple[int, accounts.CreditExpired]] = []
        """What was applied of them: (control position, record)."""
        self.rules: dict[str, Rule] = {}
        self.crossings: dict[str, int] = {}
        self._applied: set[tuple[str, str]] = set()
        self._lots: dict[str, list[str]] = {}
        self._limit_owners: dict[str, str] = {}

    def add_grant(self, grant: Grant) -> None:
        """Enter a grant that the control log made."""
        self.grants[grant.grant_id] = grant
        self._lots.setdefault(grant.account_id, []).append(grant.grant_id)

    def lots(self, account_id: str) -> list[Lot]:
        """The account's grants as lots, less what is void."""
        return [
            lot_of(self.grants[grant_id], self.expired_pico.get(grant_id, 0))
            for grant_id in self._lots.get(account_id, ())
        ]

    def credit_limit_pico(self, account_id: str) -> int:
        """How far the account may go below 0."""
        terms = self.terms.get(account_id)
        return terms.credit_limit_pico if terms is not None else 0

    def limits_of(self, account_id: str) -> list[Limit]:
        """The account's limits that are in force."""
        return list(self.limits.get(account_id, {}).values())

    def change(
        self,
        position: int,
        record: control.ControlRecord,
        known: Mapping[str, Account],
        key_accounts: Callable[[str], str | None],
        recorded_us: int,
        effects: Effects,
    ) -> str | None:
        """Apply a record of one of KINDS. Gives why it is refused, or None.

        `known` are the accounts there are; `key_accounts` tells whose a key is;
        `recorded_us` is when the record was known by.
        """
        kind = record.WhichOneof("change") or ""
        made = getattr(record, kind)
        ident = id_of(kind, made)
        if problem := text_problem("its id", ident, 200, 1):
            return problem
        if (kind, ident) in self._applied:
            return f"{kind} {ident!r} was applied before"
        account_id = account_of(made)
        account = known.get(account_id)
        if account is None:
            return f"no account {account_id[:70]!r} for {kind} {ident!r}"
        why = self._apply(position, made, account, known, key_accounts, recorded_us, effects)
        if why is None:
            self._applied.add((kind, ident))
            effects.changes.append(
                Change(
                    kind, ident, account_id, position, made.SerializeToString(deterministic=True)
                )
            )
        return why

    def _apply(
        self,
        position: int,
        made: Message,
        account: Account,
        known: Mapping[str, Account],
        key_accounts: Callable[[str], str | None],
        recorded_us: int,
        effects: Effects,
    ) -> str | None:
        match made:
            case accounts.ProjectCreated():
                return self._create_project(made)
            case accounts.TermsSet():
                return self._set_terms(position, made, account, effects)
            case accounts.LimitSet():
                return self._set_limit(position, made, account, key_accounts, effects)
            case accounts.ChargeRefunded():
                return self._refund(position, made, account, effects)
            case accounts.CreditTransferred():
                return self._transfer(position, made, account, known, effects)
            case accounts.TopUpRuleSet():
                return self._set_rule(position, made, account)
            case accounts.CreditToppedUp():
                return self._top_up(position, made, account, effects)
            case accounts.CreditExpired():
                return self._expire(position, made, account, recorded_us, effects)
            case _:
                return "a change of a kind that this version does not know"

    def _create_project(self, made: accounts.ProjectCreated) -> str | None:
        if problem := project_problem(made):
            return problem
        self.projects[made.account_id, made.project_id] = made.display_name
        return None

    def _set_terms(
        self, position: int, made: accounts.TermsSet, account: Account, effects: Effects
    ) -> str | None:
        problem = amount_problem("credit_limit", made.credit_limit, 0)
        if problem := problem or _currency_problem(made.credit_limit, account):
            return problem
        terms = Terms(position, account.account_id, int(made.credit_limit.amount_pico))
        self.terms[account.account_id] = terms
        effects.terms.append(terms)
        return None

    def _set_limit(
        self,
        position: int,
        made: accounts.LimitSet,
        account: Account,
        key_accounts: Callable[[str], str | None],
        effects: Effects,
    ) -> str | None:
        if problem := limit_problem(made):
            return problem
        if made.HasField("amount") and (problem := _currency_problem(made.amount, account)):
            return problem
        if made.key_id and key_accounts(made.key_id) != account.account_id:
            return f"account {account.account_id!r} has no key {made.key_id!r}"
        owner = self._limit_owners.setdefault(made.limit_id, account.account_id)
        if owner != account.account_id:
            return f"limit {made.limit_id!r} is of another account"
        amount_pico = int(made.amount.amount_pico) if made.HasField("amount") else None
        limit = Limit(
            position,
            made.limit_id,
            account.account_id,
            made.project_id,
            made.key_id,
            WINDOW_WORDS[made.window],
            made.time_zone or "UTC",
            amount_pico,
        )
        mine = self.limits.setdefault(account.account_id, {})
        if amount_pico is None:
            mine.pop(made.limit_id, None)
        else:
            mine[made.limit_id] = limit
        effects.limits.append(limit)
        return None

    def _refund(
        self, position: int, made: accounts.ChargeRefunded, account: Account, effects: Effects
    ) -> str | None:
        if problem := refund_problem(made) or _currency_problem(made.amount, account):
            return problem
        _post(
            effects,
            position,
            books.REFUND,
            books.refunded(account.account_id),
            books.customer(account.account_id),
            account.currency,
            int(made.amount.amount_pico),
        )
        return None

    def _transfer(
        self,
        position: int,
        made: accounts.CreditTransferred,
        account: Account,
        known: Mapping[str, Account],
        effects: Effects,
    ) -> str | None:
        if problem := transfer_problem(made) or _currency_problem(made.amount, account):
            return problem
        to = known.get(made.to_account_id)
        if to is None:
            return f"no account {made.to_account_id[:70]!r} to transfer to"
        if to.currency != account.currency:
            return f"account {to.account_id!r} is in {to.currency}, not in {account.currency}"
        amount_pico = int(made.amount.amount_pico)
        for giver, getter in (
            (books.customer(account.account_id), books.transferred(account.account_id)),
            (books.transferred(to.account_id), books.customer(to.account_id)),
        ):
            _post(effects, position, books.TRANSFER, giver, getter, account.currency, amount_pico)
        if made.hold_id:
            effects.settled_holds.append((account.account_id, made.hold_id))
        return None

    def _set_rule(self, position: int, made: accounts.TopUpRuleSet, account: Account) -> str | None:
        if problem := rule_problem(made) or _currency_problem(made.threshold, account):
            return problem
        amount_pico = int(made.amount.amount_pico) if made.HasField("amount") else None
        if made.HasField("amount") and (problem := _currency_problem(made.amount, account)):
            return problem
        self.rules[account.account_id] = Rule(
            position, int(made.threshold.amount_pico), amount_pico
        )
        return None

    def _top_up(
        self, position: int, made: accounts.CreditToppedUp, account: Account, effects: Effects
    ) -> str | None:
        if problem := top_up_problem(made) or _currency_problem(made.amount, account):
            return problem
        if made.crossing:
            rule = self.rules.get(account.account_id)
            if rule is None or rule.amount_pico != int(made.amount.amount_pico):
                return "the account's rule says another amount, or there is none"
            following = self.crossings.get(account.account_id, 0) + 1
            if made.crossing != following:
                return f"crossing {made.crossing} is not the next, {following}"
            self.crossings[account.account_id] = following
        _post(
            effects,
            position,
            books.TOP_UP,
            books.paid(account.account_id),
            books.customer(account.account_id),
            account.currency,
            int(made.amount.amount_pico),
        )
        return None

    def _expire(
        self,
        position: int,
        made: accounts.CreditExpired,
        account: Account,
        recorded_us: int,
        effects: Effects,
    ) -> str | None:
        problem = amount_problem("amount", made.amount, 0)
        if problem := problem or _currency_problem(made.amount, account):
            return problem
        grant = self.grants.get(made.grant_id)
        if grant is None or grant.account_id != account.account_id:
            return f"account {account.account_id!r} has no grant {made.grant_id[:70]!r}"
        if grant.expires_us == NEVER_US:
            return f"grant {made.grant_id!r} does not expire"
        if recorded_us < grant.expires_us:
            return f"grant {made.grant_id!r} has not ended"
        amount_pico = int(made.amount.amount_pico)
        if amount_pico > grant.amount_pico:
            return f"grant {made.grant_id!r} was of less"
        if made.control_size > position:
            return f"it was worked out at control size {made.control_size}, which is after it"
        self.expiries.append((position, made))
        self.expired_pico[grant.grant_id] = amount_pico
        _post(
            effects,
            position,
            books.EXPIRY,
            books.customer(account.account_id),
            books.expired(account.account_id),
            account.currency,
            amount_pico,
        )
        return None


def _post(
    effects: Effects,
    position: int,
    kind: str,
    debit: str,
    credit: str,
    currency: str,
    amount_pico: int,
) -> None:
    """One double entry for the control record at a position; none for an amount of 0."""
    if amount_pico:
        effects.postings.append(
            books.Posting(
                kind, debit, credit, currency, amount_pico, books.CONTROL, position, position + 1
            )
        )


def _currency_problem(amount: money.Amount, account: Account) -> str | None:
    if amount.currency == account.currency:
        return None
    return f"account {account.account_id!r} is in {account.currency}, not in {amount.currency!r}"


def project_problem(made: accounts.ProjectCreated) -> str | None:
    """What is wrong with a project to be made, or None."""
    if not card_rules.ACCOUNT_ID.fullmatch(made.project_id):
        return "project_id is 1-64 of a-z 0-9 . _ - and begins with a letter or digit"
    return text_problem("display_name", made.display_name, 256)


def limit_problem(made: accounts.LimitSet) -> str | None:
    """What is wrong with a limit, or None."""
    if made.window not in WINDOW_WORDS:
        return "window is one of " + ", ".join(windows.WINDOWS)
    if made.HasField("amount") and (problem := amount_problem("amount", made.amount, 0)):
        return problem
    return (
        text_problem("limit_id", made.limit_id, 128, 1)
        or text_problem("project_id", made.project_id, 64)
        or text_problem("key_id", made.key_id, 64)
        or windows.zone_problem(made.time_zone)
    )


def refund_problem(made: accounts.ChargeRefunded) -> str | None:
    """What is wrong with a refund, or None."""
    return (
        text_problem("event_id", made.event_id, 128, 1)
        or amount_problem("amount", made.amount, 1)
        or text_problem("reason", made.reason, 512)
    )


def transfer_problem(made: accounts.CreditTransferred) -> str | None:
    """What is wrong with a transfer, or None."""
    if made.from_account_id == made.to_account_id:
        return "a transfer goes to another account"
    return amount_problem("amount", made.amount, 1) or text_problem("hold_id", made.hold_id, 64)


def rule_problem(made: accounts.TopUpRuleSet) -> str | None:
    """What is wrong with a top-up rule, or None."""
    if problem := amount_problem("threshold", made.threshold, 0):
        return problem
    return amount_problem("amount", made.amount, 1) if made.HasField("amount") else None


def top_up_problem(made: accounts.CreditToppedUp) -> str | None:
    """What is wrong with a top-up, or None."""
    if made.crossing < 0:
        return "crossing is 0, or a number from 1 on"
    return amount_problem("amount", made.amount, 1)


def grant_of(position: int, made: control.CreditGranted) -> Grant:
    """A grant, which was checked."""
    return Grant(
        position,
        made.grant_id,
        made.account_id,
        int(made.amount.amount_pico),
        made.priority,
        us_of(made.expires_time) if made.HasField("expires_time") else NEVER_US,
        made.project_id,
    )
