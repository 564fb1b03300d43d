"""Adapters come and go while the engine serves: loaded, served, let out, unloaded.

Owns the order. Coming: copied and read (`Library.take`), loaded by the engine, and only then
on the shelf. Going: off the shelf, then every request that has it let out, then unloaded,
and its copy deleted last. So no request meets an adapter that is not whole, and a bad one
is refused before the engine sees it. One change at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from inference import engine as port
from inference.app.shelf import Served, Shelf
from kernel import errors
from tollbook.usage.v1 import usage_pb2 as usage

log = structlog.get_logger()

MAX_ADAPTERS: Final = 64
# How long an unloading waits for the requests that have the adapter.
LET_OUT_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that was read and is kept: `path` holds what `digest` says, for good.

    `account_id` and `project_id` are whose alone it is, or empty.
    """

    name: str
    path: Path
    rank: int
    digest: bytes
    account_id: str = ""
    project_id: str = ""


class Library(Protocol):
    """Where adapters come from and are kept, by their content."""

    def folders(self) -> Sequence[str]:
        """Folders that can be taken, in order of name."""
        ...

    def take(self, folder: str) -> Adapter:
        """Copy one, read it whole. Errors: InvalidArgument, NotFound."""
        ...

    def drop(self, adapter: Adapter) -> None:
        """Delete the copy; nobody has it."""
        ...


class Adapters:
    """See the module. `in_use` tells how many requests under way have a name."""

    def __init__(
        self,
        engine: port.Engine,
        library: Library,
        shelf: Shelf,
        base: Served,
        in_use: Callable[[str], int],
    ) -> None:
        self._engine = engine
        self._library = library
        self._shelf = shelf
        self._base = base
        self._in_use = in_use
        self._loaded: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        # A request ended: an unloading may wait for it.
        self.let_out = asyncio.Event()

    def loaded(self) -> list[Adapter]:
        """What is loaded, in order of name."""
        return [self._loaded[name] for name in sorted(self._loaded)]

    async def load_all(self) -> None:
        """Load every folder there is; one that cannot be harms no other."""
        for folder in self._library.folders():
            try:
                await self.load(folder)
            except errors.TollbookError as error:
                log.error("adapter left out", folder=folder, error=error.message)

    async def load(self, folder: str) -> Adapter:
        """Load a folder and serve it. Again, with the same content: nothing changes.

        Errors: InvalidArgument (it is no sound adapter), NotFound (no such folder),
        AlreadyExists (the name has another content), FailedPrecondition (no room).
        """
        async with self._changing:
            adapter = await asyncio.to_thread(self._library.take, folder)
            known = self._loaded.get(adapter.name)
            if known is not None and known.digest == adapter.digest:
                return known
            try:
                if known is not None:
                    raise errors.AlreadyExists(
                        f"adapter {adapter.name!r} is loaded with another content"
                        f" ({known.digest.hex()}); unload it first",
                        reason="ADAPTER_EXISTS",
                    )
                if len(self._loaded) >= MAX_ADAPTERS:
                    raise errors.FailedPrecondition(
                        f"{MAX_ADAPTERS} adapters are loaded; unload one first",
                        reason="ADAPTERS_FULL",
                    )
                await self._engine.add_adapter(adapter.name, str(adapter.path))
            except BaseException:
                await self._drop(adapter)
                raise
            self._loaded[adapter.name] = adapter
            self._shelf.put(self._served(adapter))
        log.info("adapter loaded", adapter=adapter.name, digest=adapter.digest.hex())
        return adapter

    async def unload(self, name: str) -> Adapter:
        """Serve it no more, let its requests out, and unload it.

        Errors: NotFound; Unavailable, when its requests take too long (it is served again).
        """
        async with self._changing:
            adapter = self._loaded.get(name)
            if adapter is None:
                raise errors.NotFound(f"adapter {name!r} is not loaded", reason="UNKNOWN_MODEL")
            self._shelf.remove(name)
            try:
                async with asyncio.timeout(LET_OUT_MS / 1_000):
                    while self._in_use(name):
                        self.let_out.clear()
                        await self.let_out.wait()
                await self._engine.remove_adapter(name)
            except BaseException as error:
                self._shelf.put(self._served(adapter))
                if isinstance(error, TimeoutError):
                    raise errors.Unavailable(
                        f"requests that have {name!r} did not end within {LET_OUT_MS} ms",
                        reason="ADAPTER_IN_USE",
                    ) from error
                raise
            del self._loaded[name]
            await self._drop(adapter)
        log.info("adapter unloaded", adapter=name)
        return adapter

    async def _drop(self, adapter: Adapter) -> None:
        """Delete a copy, unless another name has the same content."""
        if all(other.digest != adapter.digest for other in self._loaded.values()):
            await asyncio.to_thread(self._library.drop, adapter)

    def _served(self, adapter: Adapter) -> Served:
        provenance = usage.Provenance(adapter_digest=adapter.digest)
        provenance.MergeFrom(self._base.provenance)
        target = port.Target(adapter.name, self._base.target.served_name, adapter.name)
        return Served(target, provenance, adapter.account_id, adapter.project_id)
