"""Another engine's OpenAI server, as a process of its own: vLLM's, on the tests' tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from tests.integration.free_port import free_port
from tests.integration.inference_service import START_S


class OpenAiServer:
    """One process of vLLM's API server, with the core that it starts."""

    def __init__(self, folder: Path, model: Path, task: Sequence[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "openai-server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    *("--model", str(model), "--served-model-name", "tiny"),
                    *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
                    *("--no-enable-chunked-prefill", "--max-num-seqs", "64"),
                    *task,
                ],
                stdout=log,
                stderr=log,
                # Its core outlives it, so both are ended by their group.
                start_new_session=True,
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_DO_NOT_TRACK": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_PLUGINS": "",
                },
            )

    async def ready(self) -> None:
        deadline = time.monotonic() + START_S
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            while True:
                if self.process.poll() is not None:
                    raise AssertionError(f"the server ended: {self.log.read_text()[-3000:]}")
                try:
                    if (await client.get("/v1/models", timeout=2)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        """kill -9 of the server and its core."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(30)


GENERATES = ("--enable-lora", "--max-lora-rank", "64", "--enable-prompt-tokens-details")
EMBEDS = ("--runner", "pooling", "--no-enable-prefix-caching")


@asynccontextmanager
async def openai_server(
    folder: Path, model: Path, task: Sequence[str] = GENERATES
) -> AsyncIterator[OpenAiServer]:
    """A server that is ready; ended with the block."""
    server = OpenAiServer(folder, model, task)
    try:
        await server.ready()
        yield server
    finally:
        server.kill()
