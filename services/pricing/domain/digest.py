"""The digest of all balances: what a cut signs and an auditor recomputes.

SHA-256 over UTF-8 lines, each ended by a newline:

    tollbook-balances-v1
    balance<TAB>LEDGER ACCOUNT<TAB>CURRENCY<TAB>PICO        sorted; zero left out
    suspense<TAB>ACCOUNT<TAB>ENTRIES                        sorted; zero left out

Names are written without control characters (text.py), so no two states give
the same lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pricing.domain.books import BalanceKey
from pricing.domain.text import escaped


def balances_digest(balances: Mapping[BalanceKey, int], suspense: Mapping[str, int]) -> bytes:
    """Digest (32 bytes) of balances in pico-units and of suspense entries for each account."""
    lines = ["tollbook-balances-v1"]
    lines += sorted(
        f"balance\t{escaped(account)}\t{currency}\t{pico}"
        for (account, currency), pico in balances.items()
        if pico
    )
    lines += sorted(
        f"suspense\t{escaped(account)}\t{entries}"
        for account, entries in suspense.items()
        if entries
    )
    return hashlib.sha256(("\n".join(lines) + "\n").encode()).digest()
