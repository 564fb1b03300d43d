"""`tollbook adapters`: LoRA adapters of a running instance, loaded and unloaded while it serves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import click
import grpc.aio

from kernel import grpcs
from kernel.errors import TollbookError
from tollbook.cli.pricing_calls import RefusedError, as_json
from tollbook.cli.tables import table
from tollbook.inference.v1 import adapters_pb2, adapters_pb2_grpc
from tollbook.stack.control import Stack

# Unloading lets requests that have it end, for up to 60 s.
_TIMEOUT_S: Final = 90.0
Metadata = tuple[tuple[str, str], ...]
T = TypeVar("T")


@click.group()
def adapters() -> None:
    """Load, unload and list adapters of an instance that serves.

    The instance is $TOLLBOOK_INFERENCE_ADDRESS, else the running local stack's; the secret of who
    runs the house is taken from $TOLLBOOK_ADMIN_SECRET.
    """


@adapters.command("list")
@click.option("--json", "json_output", is_flag=True, help="Print JSON.")
def list_(json_output: bool) -> None:
    """List what is loaded, whosever it is."""
    answer = _ask(
        lambda stub, secret: stub.ListAdapters(
            adapters_pb2.ListAdaptersRequest(), metadata=secret, timeout=_TIMEOUT_S
        )
    )
    if json_output:
        click.echo(as_json(answer))
        return
    rows = [
        (one.name, one.rank, one.account_id or "everybody", one.project_id, one.digest.hex()[:16])
        for one in answer.adapters
    ]
    click.echo(table(("adapter", "rank", "account", "project", "digest"), rows))


@adapters.command()
@click.argument("folder")
def load(folder: str) -> None:
    """Copy FOLDER of the directory of adapters, and serve it."""
    request = adapters_pb2.LoadAdapterRequest(folder=folder)
    loaded = _ask(
        lambda stub, secret: stub.LoadAdapter(request, metadata=secret, timeout=_TIMEOUT_S)
    ).adapter
    click.echo(f"{loaded.name} is served; its files are {loaded.digest.hex()}")


@adapters.command()
@click.argument("name")
def unload(name: str) -> None:
    """Serve the adapter NAME no more, and unload it when its requests have ended."""
    request = adapters_pb2.UnloadAdapterRequest(name=name)
    gone = _ask(
        lambda stub, secret: stub.UnloadAdapter(request, metadata=secret, timeout=_TIMEOUT_S)
    ).adapter
    click.echo(f"{gone.name} is gone")


def _ask(call: Callable[[adapters_pb2_grpc.AdapterServiceAsyncStub, Metadata], Awaitable[T]]) -> T:
    """Errors: TollbookError with the one line that the user is told."""
    where = os.environ.get("TOLLBOOK_INFERENCE_ADDRESS") or Stack.at().address("inference")
    secret = os.environ.get("TOLLBOOK_ADMIN_SECRET", "")
    if not secret:
        raise TollbookError(
            "set TOLLBOOK_ADMIN_SECRET, whose SHA-256 the instance has as"
            " TOLLBOOK_ADMIN_SECRET_DIGEST"
        )

    async def run() -> T:
        async with grpcs.channel(where) as channel:
            stub: adapters_pb2_grpc.AdapterServiceAsyncStub = adapters_pb2_grpc.AdapterServiceStub(
                channel
            )
            try:
                return await call(stub, (("authorization", f"Bearer {secret}"),))
            except grpc.aio.AioRpcError as error:
                raise RefusedError(where, error, "inference") from None

    return asyncio.run(run())
