"""A ledger server process on a ledger world, and what it says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.free_port import free_port
from tests.integration.ledger_world import LedgerWorld, until

from kernel import grpcs
from tollbook.ledger.v1 import ledger_pb2 as pb
from tollbook.ledger.v1 import ledger_pb2_grpc

WAIT_S = 120.0


class LedgerServer:
    """A server that answers."""

    def __init__(self, address: str, log: Path, channel: grpc.aio.Channel) -> None:
        self.address = address
        self._log = log
        self.stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def said(self, event: str) -> list[dict[str, Any]]:
        """The events of a name that it has logged."""
        # The last one may be half written.
        *lines, _ = self._log.read_text(errors="replace").split("\n")
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in found if line.get("event") == event]

    async def is_serving(self, name: str = "") -> bool:
        answer = await self._health.Check(health_pb2.HealthCheckRequest(service=name))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def read(self, **request: Any) -> list[pb.ReadEventsResponse]:
        """All messages of a ReadEvents call."""
        return [answer async for answer in self.stub.ReadEvents(pb.ReadEventsRequest(**request))]


@asynccontextmanager
async def ledger_server(world: LedgerWorld, **settings: Any) -> AsyncIterator[LedgerServer]:
    """A server for as long as the block runs; `settings` by their names without the prefix."""
    address = f"127.0.0.1:{free_port()}"
    log = world.folder / f"server-{address.rpartition(':')[2]}.log"
    environment = {
        **os.environ,
        **world.stack.environment(),
        "TOLLBOOK_LEDGER_POSTGRES": world.dsn(),
        "TOLLBOOK_LEDGER_ADDRESS": address,
        "TOLLBOOK_LEDGER_SEGMENTS": str(world.folder / "segments"),
        **{f"TOLLBOOK_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "ledger.entrypoints.server"]
    with log.open("ab") as output:
        process = await asyncio.to_thread(
            subprocess.Popen, command, env=environment, stdout=output, stderr=output
        )
    try:
        async with grpcs.channel(address) as channel:
            made = LedgerServer(address, log, channel)
            await made.stub.ListLogs(pb.ListLogsRequest(), wait_for_ready=True, timeout=WAIT_S)
            await until("the server is ready", made.is_serving)
            yield made
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, WAIT_S)
