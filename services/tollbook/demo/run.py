"""The demo from start to verdict. Every step is what a user would do, over the public doors."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kernel import grpcs, note
from kernel.placement import CUT_LOG
from tollbook.demo import lengths, load, setting, settle, tamper
from tollbook.export.exporter import write_export
from tollbook.export.system import System
from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc
from tollbook.ledger.v1 import ledger_pb2_grpc
from tollbook.listing import all_balances
from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc
from tollbook.stack import HOUSE_ACCOUNT, Stack, running_stack

REQUESTS: Final = 300
_SETTLE_S: Final = 120.0
_WORKER: Final = "ledger-worker"

Say = Callable[[str], None]


@dataclass
class AccountLine:
    """One account at the end. Amounts in pico-units, as strings: JSON numbers would round them."""

    account_id: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    charged_pico: str
    available_pico: str


@dataclass
class Summary:
    """What the demo showed; written to summary.json."""

    requests: int = 0
    cancelled: int = 0
    engine_tokens: int = 0
    billed_tokens: int = 0
    waste_tokens: int = 0
    residual: int = 0
    accounts: list[AccountLine] = field(default_factory=list)
    log_size: int = 0
    root: str = ""
    checkpoint: str = ""
    audit_ok: bool = False
    audit_text: str = ""
    tamper_detected: bool = False
    tamper_text: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all of it held."""
        return self.residual == 0 and self.audit_ok and self.tamper_detected


def shapes() -> list[lengths.Lengths]:
    """Lengths of the requests: the trace of TOLLBOOK_TRACE, or its shape."""
    trace = os.environ.get("TOLLBOOK_TRACE")
    if trace:
        return lengths.from_trace(Path(trace), REQUESTS)
    return lengths.from_quantiles(REQUESTS, seed=2023)


def audit(export: Path, keys: Path) -> tuple[bool, str]:
    """Run the auditor as an outsider would: a process of its own, with files alone."""
    done = subprocess.run(
        (sys.executable, "-m", "audit", str(export), "--key", str(keys)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")},
    )
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def _checkpoint(export: Path) -> bytes:
    """The signed checkpoint of the cut log: the one that speaks for all logs."""
    return (export / "logs" / CUT_LOG / "checkpoint").read_bytes()


def _keys(environment: Mapping[str, str]) -> str:
    """Text of the verifier keys: what an auditor is given by hand, apart from the export."""
    return Path(environment["TOLLBOOK_VERIFIER_KEYS"]).read_text()


async def _drive(stack: Stack, folder: Path, summary: Summary, say: Say) -> None:
    environment = stack.environment()
    inference_channel = grpcs.channel(environment["TOLLBOOK_INFERENCE_ADDRESS"])
    ledger_channel = grpcs.channel(environment["TOLLBOOK_LEDGER_ADDRESS"])
    pricing_channel = grpcs.channel(environment["TOLLBOOK_PRICING_ADDRESS"])
    inference: Any = inference_pb2_grpc.InferenceServiceStub(inference_channel)
    ledger: Any = ledger_pb2_grpc.LedgerServiceStub(ledger_channel)
    pricing: Any = pricing_pb2_grpc.PricingServiceStub(pricing_channel)
    control: Any = pricing_pb2_grpc.ControlServiceStub(pricing_channel)

    earlier = await all_balances(pricing, 30)
    customers = await setting.set_up(control, {one.account_id for one in earlier.balances})
    house = await setting.house(control, HOUSE_ACCOUNT)
    listed = await inference.ListModels(
        inference_pb2.ListModelsRequest(),
        metadata=customers[0].metadata,
        timeout=30,
        wait_for_ready=True,
    )
    models = {model.name: bool(model.adapter) for model in listed.models}
    await setting.publish(control, models)
    before = {
        engine.reading.engine_id: engine.reading.generation_tokens
        for engine in (await settle.drained(inference, house.metadata, _SETTLE_S)).engines
    }
    say(f"{len(customers)} accounts with credit, one rate card for {', '.join(models)}")

    async def kill_worker() -> None:
        killed = await asyncio.to_thread(stack.kill, _WORKER)
        say(f"killed the ledger worker (kill -9 of process {killed.pid}) half-way")

    began = time.monotonic()
    sent = await load.send_all(inference, customers, list(models), shapes(), kill_worker)
    took_s = time.monotonic() - began
    summary.requests = sent.completed + sent.cancelled
    summary.cancelled = sent.cancelled
    say(
        f"{summary.requests} requests answered in {took_s:.1f} s,"
        f" {sent.cancelled} of them cancelled midway by their callers"
    )

    await settle.drained(inference, house.metadata, _SETTLE_S)
    ends = await settle.broker_ends(
        environment["TOLLBOOK_KAFKA"],
        environment["TOLLBOOK_TOPIC"],
        int(environment["TOLLBOOK_PARTITIONS"]),
    )
    sizes = await settle.logged(ledger, ends, _SETTLE_S)
    wanted = [
        pricing_pb2.LogPosition(log=log, size=size)
        for log, size in sizes.items()
        if log != CUT_LOG and size
    ]
    balances = await all_balances(
        pricing, _SETTLE_S, pricing_pb2.ListBalancesRequest(wait_for=wanted)
    )
    await settle.counted(control, _SETTLE_S)
    conservation = await settle.drained(inference, house.metadata, _SETTLE_S)
    # An engine of an earlier run, known from its spool, has not moved since.
    readings = [
        engine.reading
        for engine in conservation.engines
        if engine.reading.generation_tokens != before.get(engine.reading.engine_id)
    ]
    summary.engine_tokens = sum(reading.generation_tokens for reading in readings)
    summary.waste_tokens = sum(item.tokens for reading in readings for item in reading.waste)
    mine = {customer.account_id for customer in customers}
    summary.accounts = [
        AccountLine(
            one.account_id,
            one.usage.requests,
            one.usage.input_tokens,
            one.usage.cached_tokens,
            one.usage.output_tokens,
            one.charged.amount_pico,
            one.available.amount_pico,
        )
        for one in balances.balances
        if one.account_id in mine
    ]
    # Billed is what pricing says of the log; the engine's counter is the engine's own.
    summary.billed_tokens = sum(line.output_tokens for line in summary.accounts)
    summary.residual = summary.engine_tokens - summary.billed_tokens - summary.waste_tokens

    say("exporting all logs as signed tiles")
    async with System(
        environment["TOLLBOOK_LEDGER_ADDRESS"], environment["TOLLBOOK_PRICING_ADDRESS"], _SETTLE_S
    ) as system:
        exported = await write_export(
            system,
            folder / "export",
            keys=_keys(environment),
            replace=True,
        )
    summary.log_size = exported.entries
    checkpoint = _checkpoint(folder / "export")
    summary.checkpoint = checkpoint.decode()
    summary.root = note.parse_checkpoint(note.split_note(checkpoint)[0]).root.hex()
    for channel in (inference_channel, ledger_channel, pricing_channel):
        await channel.close()


def run(folder: Path, say: Say) -> Summary:
    """Run the demo with its state under `folder`.

    The state is made anew, unless a broker or a database of the user's own holds a part of it:
    then keys and origin stay, the logs go on, and this run takes account ids of its own.
    """
    began = time.monotonic()
    summary = Summary()
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "stack"
    if home.exists() and not {"kafka", "postgres"} & Stack.at(home).given.keys():
        Stack.at(home).remove()
        shutil.rmtree(home, ignore_errors=True)
    keys = folder / "verifier-keys"
    say("starting broker, database, model, ledger, pricing and inference")
    with running_stack(home) as stack:
        say(f"all parts are up after {time.monotonic() - began:.1f} s")
        asyncio.run(_drive(stack, folder, summary, say))
        keys.write_text(_keys(stack.environment()))
    say("everything is stopped; the auditor has files and a public key alone")
    summary.audit_ok, summary.audit_text = audit(folder / "export", keys)
    flipped = tamper.flip_one_byte(folder / "export", folder / "tampered")
    say(f"flipping one byte of {flipped} in a copy")
    agrees, summary.tamper_text = audit(folder / "tampered", keys)
    summary.tamper_detected = not agrees and "usage-" in summary.tamper_text
    summary.seconds = round(time.monotonic() - began, 1)
    (folder / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    return summary


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
