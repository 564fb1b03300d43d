"""What a bench of the ledger stands on: a topic, a database of its own, and worker processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
from tests.integration.free_port import free_port

from bench import usage_load
from tollbook.stack import Stack, Unusable
from tollbook.stack.kafka import ensure_topic
from tollbook.stack.ports import HOST

PARTITIONS: Final = 4
_OWNED_S: Final = 60


@dataclass(frozen=True)
class Arena:
    """A topic and a database for one run."""

    stack: Stack
    topic: str
    database: str

    @property
    def admin(self) -> str:
        """The database for its administrator."""
        return with_database(self.stack.environment()["TOLLBOOK_POSTGRES"], self.database)

    def environment(self, **more: str) -> dict[str, str]:
        """Settings of a ledger process of this run."""
        env = {**os.environ, **self.stack.environment()}
        env["TOLLBOOK_TOPIC"] = self.topic
        env["TOLLBOOK_PARTITIONS"] = str(PARTITIONS)
        for part in ("POSTGRES", "LEDGER_POSTGRES", "PRICING_POSTGRES"):
            setting = f"TOLLBOOK_{part}"
            env[setting] = with_database(env[setting], self.database)
        return {**env, "TOLLBOOK_LOG_LEVEL": "WARNING", **more}


def with_database(dsn: str, database: str) -> str:
    """The address of another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def arena(stack: Stack, name: str, topic: str = "") -> Arena:
    """Make topic and database, and migrate. With a `topic` that is there, only the database."""
    made = Arena(stack, topic or f"bench.{name}", f"bench_{name}")
    db = await asyncpg.connect(stack.environment()["TOLLBOOK_POSTGRES"])
    try:
        await db.execute(f'CREATE DATABASE "{made.database}"')
    finally:
        await db.close()
    if not topic:
        await make_topic(stack, made.topic)
    await migrate(made, "ledger")
    return made


async def migrate(on: Arena, service: str) -> None:
    """Make the tables of a service. Errors: RuntimeError."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", f"{service}.entrypoints.migrate"],
        env=on.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"migrate failed: {done.stderr}")


async def make_topic(stack: Stack, topic: str) -> None:
    deadline = time.perf_counter() + 30
    while True:
        try:
            await ensure_topic(stack.address("kafka"), topic, PARTITIONS)
        except Unusable:
            # A broker may describe a topic for a moment as if it had no partitions yet.
            if time.perf_counter() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@asynccontextmanager
async def workers(on: Arena, count: int) -> AsyncIterator[list[psutil.Process]]:
    """Worker processes for as long as the block runs."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            env = on.environment(TOLLBOOK_HEALTH_ADDRESS=f"{HOST}:{free_port()}")
            command = [sys.executable, "-m", "ledger.entrypoints.worker"]
            started.append(await asyncio.to_thread(subprocess.Popen, command, env=env))
        yield [psutil.Process(item.pid) for item in started]
    finally:
        for item in started:
            item.terminate()
        for item in started:
            await asyncio.to_thread(item.wait, 30)


async def full_topic(stack: Stack, events: int) -> str:
    """Make a topic and fill it; gives its name."""
    topic = f"bench.full.{events}"
    await make_topic(stack, topic)
    await usage_load.fill(stack.address("kafka"), topic, PARTITIONS, events, seed=1)
    return topic


async def wait_owned(db: Any) -> None:
    deadline = time.perf_counter() + _OWNED_S
    while await db.fetchval(
        "SELECT count(*) < $1 FROM ledger.log_head WHERE log_id >= 100 AND owner <> ''", PARTITIONS
    ):
        if time.perf_counter() > deadline:
            raise TimeoutError("no worker took the logs")
        await asyncio.sleep(0.05)
