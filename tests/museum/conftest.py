"""One stack for all exhibits that need a running system: broker, database, ledger and pricing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.integration.pricing_world import PARTS, World

from tollbook.stack import Stack, running_stack


@pytest.fixture(scope="session")
def pricing_stack() -> Iterator[Stack]:
    with running_stack(parts=PARTS) as running:
        yield running


@pytest.fixture
async def world(pricing_stack: Stack) -> AsyncIterator[World]:
    """Clients of the stack, whole again if an earlier exhibit left it in pieces.

    The house has no operators. Each exhibit has accounts, cards and models of its own.
    """
    pricing_stack.up(PARTS)
    async with World(pricing_stack) as made:
        yield made
