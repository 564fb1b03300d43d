"""docs/pricing-team.md and docs/accounts.md, run: files written, commands typed, answers held."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from tests.integration.pricing_world import PARTS, T0_US, World

from tollbook.stack import Stack, running_stack

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# One stack for both, in this order: the card of the first prices the usage of the second.
PAGES = (DOCS / "pricing-team.md", DOCS / "accounts.md")
_STEP = re.compile(r"^```(\w+)\n(.*?)^```$|^<!-- usage: (.*?) -->$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A block of the page (`kind` is its language) or a request that it speaks of."""

    kind: str
    text: str
    line: int


def steps(path: Path) -> Iterator[Step]:
    page = path.read_text()
    for found in _STEP.finditer(page):
        line = page.count("\n", 0, found.start()) + 1
        if found[3] is not None:
            yield Step("usage", found[3], line)
        else:
            yield Step(found[1], found[2], line)


def fits(shown: str, printed: str) -> bool:
    """Whether an output is what the page shows, `...` standing for anything within a line."""
    # Spaces are a table's: how wide a column is depends on what `...` stands for.
    words = [re.escape(part) for part in re.sub(" +", " ", shown).strip().split("...")]
    return re.fullmatch("[^\n]*".join(words), re.sub(" +", " ", printed).strip()) is not None


def commands(block: str) -> Iterator[tuple[str, str]]:
    """(command, output shown) of a console block."""
    for part in block.split("$ ")[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


@pytest.fixture
def stack() -> Iterator[Stack]:
    with running_stack(parts=PARTS) as running:
        yield running


async def use(world: World, text: str) -> None:
    """Send the request that the page speaks of: ACCOUNT EVENT MODEL COUNT=N... [at=INSTANT]."""
    account_id, event_id, model, *rest = text.split()
    given = dict(word.split("=") for word in rest)
    assert given.keys() <= {"plain", "cached", "output", "at"}, text
    at = given.get("at")
    await world.use(
        account_id,
        model=model,
        event_id=event_id,
        at_us=int(datetime.fromisoformat(at).timestamp()) * 1_000_000 if at else T0_US,
        plain=int(given.get("plain", 0)),
        cached=int(given.get("cached", 0)),
        output=int(given.get("output", 0)),
    )
    await world.balance(account_id, event_id=event_id)


@pytest.mark.timeout(900)  # half a minute of commands, each a process; more where others work too
async def test_the_pages_say_what_happens(stack: Stack, tmp_path: Path) -> None:
    environment = {**os.environ, **stack.environment()}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def typed(command: str) -> str:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        return done.stdout

    ran: Counter[str] = Counter()
    wrong: list[str] = []
    async with World(stack) as world:
        for page, step in [(path, found) for path in PAGES for found in steps(path)]:
            place = f"{page.name} line {step.line}"
            match step.kind:
                case "usage":
                    await use(world, step.text)
                case "yaml" | "yml":
                    name = step.text.splitlines()[0].removeprefix("# ")
                    (tmp_path / name).write_text(step.text)
                case "console":
                    for command, shown in commands(step.text):
                        printed = typed(command.replace("EXAMPLES", str(DOCS / "examples")))
                        if not fits(shown, printed):
                            wrong.append(f"{place}: $ {command}\n{printed}")
                        ran[page.name] += 1
                case "python" | "json":
                    pass  # an excerpt of an example that a console block runs, or of what is sent
                case other:
                    pytest.fail(f"{place}: a block of {other!r} is run by nobody")
    assert wrong == [], "\n".join(wrong)
    assert all(ran[page.name] > 15 for page in PAGES), ran
