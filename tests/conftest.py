"""What all tests share: how Hypothesis runs here, and one stack with all parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import settings

from tollbook.stack import Stack, running_stack

if TYPE_CHECKING:
    from tests.integration.inference_service import KeyServer

# No deadline: a test that fails because the machine was busy is a flaky test. The same examples
# each time: what fails on a change is of that change. New ones are looked for by
# `make test ARGS="--hypothesis-profile=explore tests/unit"`.
settings.register_profile("tollbook", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1_000)
settings.load_profile("tollbook")


@pytest.fixture(scope="session")
def whole_stack() -> Iterator[Stack]:
    """All parts, started once for the session: half a minute. A test may kill any of them and
    need not wait for its return; who comes next begins with `whole_stack.up()`.
    """
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="session")
def ground() -> Iterator[Stack]:
    """Broker and database alone, for the session: what a LedgerWorld stands on. A test may kill
    either; who comes next has it brought up again.
    """
    with running_stack(parts=("kafka", "postgres", "database")) as stack:
        yield stack


@pytest.fixture(scope="session")
def pricing_tables() -> Iterator[Stack]:
    """A database with pricing's schema and no process at it. Who uses it empties the tables."""
    with running_stack(parts=("postgres", "database", "pricing-schema")) as stack:
        yield stack


@pytest.fixture(scope="module")
def broker() -> Iterator[Stack]:
    """A broker of the module's own, with the topic: what tests of the inference service need."""
    with running_stack(parts=("kafka", "topic")) as stack:
        yield stack


@pytest.fixture(scope="module")
def kafka(broker: Stack) -> str:
    """The address of `broker`."""
    return broker.address("kafka")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keys() -> AsyncIterator[KeyServer]:
    """Who the inference service asks for its callers' keys."""
    # Here, so that unit tests need not wait for what it imports.
    from tests.integration.inference_service import KeyServer

    server = KeyServer()
    await server.start()
    yield server
    await server.stop()


def _group(item: pytest.Item) -> str:
    """Whose turn a test takes: tests of one group run one after another, in one process.

    All that need an engine are one group, since two engines on two processors are slower than
    one after the other; what shares a stack of the session is one, so that it is started once.
    """
    fixtures: Iterable[str] = getattr(item, "fixturenames", ())
    if item.get_closest_marker("engine") or "whole_stack" in fixtures:
        return "engine"
    shared = [name for name in ("ground", "pricing_tables") if name in fixtures]
    return shared[0] if shared else item.nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group, the longest first; tests of the whole stack run last of theirs, so
    that it stands beside no other test's processes.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(
        key=lambda item: (
            _group(item) != "engine",
            "whole_stack" in getattr(item, "fixturenames", ()),
        )
    )
