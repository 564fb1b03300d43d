"""What integration tests share: one ledger with all that makes its evidence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tollbook.stack import Stack, running_stack


@pytest.fixture(scope="session")
def evidence_stack() -> Iterator[Stack]:
    """Broker, database, the ledger's processes, tiles and witness, started once for the session.

    A test leaves it running and whole. Each module has a usage log of its own: what a test says
    of sizes is of that one.
    """
    with running_stack(parts=["ledger-worker", "ledger-tiles"]) as stack:
        yield stack
