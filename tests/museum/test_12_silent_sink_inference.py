"""A buffer that silently did nothing: litellm#19163. The ledger's half is exhibit 12 beside it.

Here inference's sink is the spool, on a disk of its own. While that disk is full the real service
takes nobody in and says why; when it has space again it does. When the kernel then refuses to
write, the service tells nobody that a record is there, is not ready at once, and ends.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.inference_service import KeyServer, Place, Service, chat, serving
from tests.integration.pricing_world import reason_of
from tests.integration.small_disk import enlarge, small_disk

from inference import tinymodel
from tollbook.inference.v1 import inference_pb2 as inference

pytestmark = [
    pytest.mark.museum,
    pytest.mark.integration,
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

# Of a segment and the next one's space, 16 MiB each, only the first finds room.
FULL_MIB, ENOUGH_MIB = 24, 48
# What the service may still log after the sink is broken: its log is a file like the spool.
LOG_ROOM_BYTES = 32 * 1024
NOTICED_S = 60


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk that is too small; where none may be mounted, any directory, which is never full."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(small_disk(os.getuid(), FULL_MIB))
        except pytest.skip.Exception:
            folder = tmp_path_factory.mktemp("disk")
        yield folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    disk: Path, kafka: str, keys: KeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("sink")
    tinymodel.make(folder / "tiny")
    environment = {"TOLLBOOK_SPOOL_DIR": str(disk / "spool")}
    async with serving(Place(folder, kafka, keys.address, folder / "tiny", environment)) as running:
        yield running


def may_be_full(disk: Path) -> bool:
    """Whether it is a file system of its own."""
    return disk.is_mount()


def written(disk: Path) -> int:
    """Bytes of the segment in use; the rest of its file is zeros."""
    newest = max((disk / "spool").glob("*.spool"))
    return len(newest.read_bytes().rstrip(b"\0"))


async def test_a_full_disk_takes_nobody_in_and_one_with_space_again_does(
    service: Service, disk: Path
) -> None:
    if not may_be_full(disk):
        pytest.skip("no file system may be mounted here")
    before = await service.engine()
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.once(chat("hello", max_tokens=2))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "SPOOL_FULL"
    after = await service.engine()
    assert after.reading.generation_tokens == before.reading.generation_tokens
    enlarge(disk, ENOUGH_MIB)
    deadline = time.monotonic() + 120
    answer = None
    while answer is None:
        try:
            answer = await service.once(chat("hello", max_tokens=2, ignore_eos=True))
        except grpc.aio.AioRpcError as error:
            if reason_of(error) != "SPOOL_FULL" or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    assert answer.usage.output_tokens == 2


async def told_to_the_end(messages: AsyncIterator[inference.GenerateResponse]) -> None:
    """Read on; whoever is told of an end was told of a record that is nowhere."""
    async for message in messages:
        assert not message.HasField("usage"), message


async def test_a_sink_that_takes_nothing_is_known_at_once(service: Service, disk: Path) -> None:
    if may_be_full(disk):
        enlarge(disk, ENOUGH_MIB)
    # The spool is to be longer than the log by then: one limit holds for every file of a process.
    while written(disk) < service.log.stat().st_size + 2 * LOG_ROOM_BYTES:
        await service.once(chat("more", max_tokens=1_000, ignore_eos=True))
    health: Any = health_pb2_grpc.HealthStub(service.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stream = service.stream(chat("go on", "sunk", max_tokens=3_500, ignore_eos=True))
    messages = aiter(stream)
    assert (await anext(messages)).HasField("started")

    limit = service.log.stat().st_size + LOG_ROOM_BYTES
    assert written(disk) > limit
    # From here on the kernel refuses to write, as a dead disk does.
    psutil.Process(service.process.pid).rlimit(resource.RLIMIT_FSIZE, (limit, limit))
    status = (await asyncio.wait_for(watch.read(), NOTICED_S)).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await told_to_the_end(messages)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await service.ended() == 1
    assert "the spool cannot be written" in service.log.read_text()
