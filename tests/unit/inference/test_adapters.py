"""Adapters that come and go: in which order, and who may see them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inference.scripted import ScriptedEngine

from inference.app import adapters as module
from inference.app.adapters import Adapter, Adapters
from inference.app.shelf import Served, Shelf
from inference.engine import Target
from kernel import errors
from tollbook.usage.v1 import usage_pb2 as usage

BASE = Served(Target("tiny", "tiny", ""), usage.Provenance(model_digest=b"m" * 32))


class Engine(ScriptedEngine):
    """Loads what it is told to, but for "bad"."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[str, str] = {}

    async def add_adapter(self, name: str, path: str) -> None:
        await asyncio.sleep(0)
        if "bad" in name:
            raise errors.InvalidArgument("not its shapes", reason="BAD_ADAPTER")
        assert name not in self.there
        self.there[name] = path

    async def remove_adapter(self, name: str) -> None:
        await asyncio.sleep(0)
        del self.there[name]


class Books:
    """A library in memory: folder to (content, account)."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[str, str]] = {}
        self.kept: set[Path] = set()

    def folders(self) -> Sequence[str]:
        return sorted(self.content)

    def take(self, folder: str) -> Adapter:
        if folder not in self.content:
            raise errors.NotFound("no such folder")
        content, account = self.content[folder]
        path = Path("/kept") / content
        self.kept.add(path)
        return Adapter(f"tiny-{folder}", path, 8, content.encode(), account)

    def drop(self, adapter: Adapter) -> None:
        self.kept.discard(adapter.path)


class World:
    def __init__(self) -> None:
        self.engine = Engine()
        self.books = Books()
        self.shelf = Shelf({"tiny": BASE})
        self.users: dict[str, int] = {}
        self.adapters = Adapters(
            self.engine, self.books, self.shelf, BASE, lambda name: self.users.get(name, 0)
        )


async def test_a_loaded_adapter_is_served_with_its_digest_and_again_changes_nothing() -> None:
    world = World()
    world.books.content["a"] = ("x", "")
    await world.adapters.load("a")
    served = world.shelf.find("tiny-a", "anybody", "")
    assert served.provenance.adapter_digest == b"x"
    assert served.provenance.model_digest == b"m" * 32
    assert (served.target.base_name, served.target.adapter) == ("tiny", "tiny-a")
    await asyncio.gather(world.adapters.load("a"), world.adapters.load("a"))
    assert list(world.engine.there) == ["tiny-a"]


async def test_a_name_never_stands_for_two_contents() -> None:
    world = World()
    world.books.content["a"] = ("x", "")
    await world.adapters.load("a")
    world.books.content["a"] = ("y", "")
    with pytest.raises(errors.AlreadyExists, match="unload it first"):
        await world.adapters.load("a")
    assert world.books.kept == {Path("/kept/x")}
    await world.adapters.unload("tiny-a")
    await world.adapters.load("a")
    assert world.engine.there == {"tiny-a": "/kept/y"}


async def test_a_bad_one_is_nowhere_and_the_others_are_loaded() -> None:
    world = World()
    world.books.content.update({"a": ("x", ""), "bad": ("z", ""), "c": ("y", "")})
    await world.adapters.load_all()
    assert list(world.shelf.all()) == ["tiny", "tiny-a", "tiny-c"]
    assert world.books.kept == {Path("/kept/x"), Path("/kept/y")}


async def test_an_unloading_lets_requests_out_and_takes_no_new_ones() -> None:
    world = World()
    world.books.content["a"] = ("x", "")
    await world.adapters.load("a")
    world.users["tiny-a"] = 2
    unloading = asyncio.create_task(world.adapters.unload("tiny-a"))
    for left in (1, 0):
        for _ in range(5):
            await asyncio.sleep(0)
        assert "tiny-a" in world.engine.there
        with pytest.raises(errors.NotFound):
            world.shelf.find("tiny-a", "", "")
        world.users["tiny-a"] = left
        world.adapters.let_out.set()
    await unloading
    assert (world.engine.there, world.books.kept) == ({}, set())


async def test_an_unloading_that_takes_too_long_leaves_it_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LET_OUT_MS", 1)
    world = World()
    world.books.content["a"] = ("x", "")
    await world.adapters.load("a")
    world.users["tiny-a"] = 1
    with pytest.raises(errors.Unavailable, match="did not end"):
        await world.adapters.unload("tiny-a")
    assert world.shelf.find("tiny-a", "", "").target.adapter == "tiny-a"
    assert world.engine.there


async def test_a_copy_that_two_names_share_goes_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.books.content.update({"a": ("x", ""), "b": ("x", "")})
    await world.adapters.load_all()
    await world.adapters.unload("tiny-a")
    assert world.books.kept == {Path("/kept/x")}
    await world.adapters.unload("tiny-b")
    assert world.books.kept == set()
    monkeypatch.setattr(module, "MAX_ADAPTERS", 1)
    await world.adapters.load("a")
    with pytest.raises(errors.FailedPrecondition, match="unload one first"):
        await world.adapters.load("b")


OWNERS = st.sampled_from(["", "acme", "birch"])


@given(st.dictionaries(st.sampled_from("abcd"), OWNERS), OWNERS.filter(bool))
def test_anothers_is_not_told_from_what_is_not_there(owners: dict[str, str], caller: str) -> None:
    shelf = Shelf({"tiny": BASE})
    for name, owner in owners.items():
        shelf.put(Served(Target(name, "tiny", name), usage.Provenance(), owner))
    visible = shelf.visible(caller, "p")
    assert set(visible) == {"tiny"} | {
        name for name, owner in owners.items() if owner in ("", caller)
    }
    for name in [*owners, "nothing"]:
        if name in visible:
            assert shelf.find(name, caller, "p") is visible[name]
            continue
        with pytest.raises(errors.NotFound) as hidden:
            shelf.find(name, caller, "p")
        # The same words, but for the name that was asked for.
        assert hidden.value.message == (f"no model {name!r}; served are {', '.join(visible)}")


def test_a_projects_adapter_is_not_its_accounts() -> None:
    shelf = Shelf({})
    shelf.put(Served(Target("x", "tiny", "x"), usage.Provenance(), "acme", "p"))
    assert list(shelf.visible("acme", "p")) == ["x"]
    assert list(shelf.visible("acme", "q")) == list(shelf.visible("birch", "p")) == []
