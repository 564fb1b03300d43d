"""A small system in pure code, and its export: logs, pins, cuts and balances as the services make
them. What a test makes wrong, it makes wrong here: before the tree is built (a service that
cheats and signs) or in the files afterwards (a hand that alters them)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from google.protobuf import json_format
from tests.unit.pricing.builders import published

from kernel import leaf as leaves
from kernel import merkle
from kernel.clock import timestamp_of
from kernel.cosignature import cosign, with_lines
from kernel.keychain import rotate
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tilebuilder import CHECKPOINT_PATH, TileBuilder
from ledger.domain.admission import ACCEPTED, Admission
from ledger.domain.rotation import record_of
from pricing.adapters.cuts import MAX_NEW_PINS, split_pins
from pricing.domain import books
from pricing.domain.card_yaml import parse_card
from pricing.domain.rating import RATING_VERSION
from pricing.domain.replay import Replay
from tollbook.pricing.v1 import control_pb2, money_pb2, pricing_pb2
from tollbook.usage.v1 import usage_pb2 as usage

T0_US = 1_767_225_600_000_000
ORIGIN = "tollbook.test/one"
SIGNER = SignerKey(ORIGIN, bytes(range(32)))
CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: tiny-in, match: {model: tiny, direction: in, cache_use: none}, per: 1000000, price: "0.15"}
  - {id: cached, match: {model: tiny, direction: in, cache_use: read}, per: 1000000, price: 0.075}
  - {id: tiny-out, match: {model: tiny, direction: out}, per: 1_000_000, price: 0.60}
"""

Pin = tuple[int, int]


def control_record(**change: object) -> bytes:
    made = control_pb2.ControlRecord(recorded_time=timestamp_of(T0_US), actor="test", **change)  # type: ignore[arg-type]
    return made.SerializeToString()


def account(account_id: str) -> bytes:
    made = control_pb2.AccountCreated(account_id=account_id, currency="USD")
    return control_record(account_created=made)


def grant(grant_id: str, account_id: str, amount_pico: int) -> bytes:
    amount = money_pb2.Amount(currency="USD", amount_pico=str(amount_pico))
    made = control_pb2.CreditGranted(grant_id=grant_id, account_id=account_id, amount=amount)
    return control_record(credit_granted=made)


def card(text: str = CARD, version: int = 1) -> bytes:
    return control_record(rate_card_published=published(parse_card(text), version))


def usage_event(
    event_id: str,
    account_id: str,
    *,
    plain: int = 0,
    cached: int = 0,
    output: int = 0,
    model: str = "tiny",
    engine_id: str = "engine-1",
    project_id: str = "",
    at_us: int = T0_US,
) -> bytes:
    made = usage.UsageEvent(
        event_id=event_id,
        account_id=account_id,
        project_id=project_id,
        served_model=model,
        outcome=usage.OUTCOME_COMPLETE,
        event_time=timestamp_of(at_us),
        engine_id=engine_id,
    )
    token, inward = usage.UNIT_TOKEN, usage.DIRECTION_IN
    made.quantities.add(unit=token, direction=inward, amount=plain)
    made.quantities.add(unit=token, direction=inward, cache_use=usage.CACHE_USE_READ, amount=cached)
    made.quantities.add(unit=token, direction=usage.DIRECTION_OUT, amount=output)
    return made.SerializeToString()


class Producer:
    """A producer's stream: wraps bodies into records."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.seq = 0

    def record(self, event: bytes) -> bytes:
        made = usage.UsageRecord(stream_id=self.stream_id, stream_seq=self.seq, usage_event=event)
        self.seq += 1
        return made.SerializeToString()

    def reading(self, engine_id: str, tokens: int, waste: int, final: bool) -> bytes:
        made = usage.UsageRecord(stream_id=self.stream_id, stream_seq=self.seq)
        self.seq += 1
        reading = made.engine_reading
        reading.engine_id = engine_id
        reading.generation_tokens = tokens
        reading.reading_time.CopyFrom(timestamp_of(T0_US))
        reading.final = final
        if waste:
            reading.waste.add(kind=usage.WASTE_KIND_WARM_UP, tokens=waste)
        return made.SerializeToString()

    def close(self) -> bytes:
        made = usage.UsageRecord(stream_id=self.stream_id, stream_seq=self.seq)
        made.stream_close.last_seq = self.seq - 1
        self.seq += 1
        return made.SerializeToString()


@dataclasses.dataclass
class UsageLog:
    """A usage log as its worker writes it."""

    leaves: list[bytes] = dataclasses.field(default_factory=list)
    pins: list[Pin] = dataclasses.field(default_factory=list)
    admission: Admission = dataclasses.field(default_factory=Admission)


class World:
    """All logs, and the statements that were made of them."""

    def __init__(self, partitions: int = 2) -> None:
        self.control: list[bytes] = []
        self.usage = {f"usage-{number}": UsageLog() for number in range(partitions)}
        self.cuts: list[bytes] = []
        self.asides: dict[str, bytes] = {}
        self.served: pricing_pb2.ListBalancesResponse | None = None
        self.signer = SIGNER
        self.signers: dict[str, SignerKey] = {}
        """Of logs that another than `signer` signed."""
        self.witnesses: list[SignerKey] = []

    # The ledger -------------------------------------------------------------

    def append(self, log: list[bytes], payload: bytes, key: str = "") -> None:
        position = len(log)
        name = key or f"key-{position}"
        leaf = leaves.encode(ACCEPTED, 0, position, T0_US // 1000, name.encode(), payload)
        self._keep_aside(leaf, payload)
        log.append(leaf)

    def _keep_aside(self, leaf: bytes, payload: bytes) -> None:
        if leaves.decode(leaf).aside:
            self.asides[hashlib.sha256(payload).hexdigest()] = payload

    def change(self, *records: bytes) -> None:
        """Append control records."""
        for record in records:
            self.append(self.control, record)

    def rotate(self, new: SignerKey, by: SignerKey | None = None) -> None:
        """Let the signer take another key; `by` signs the record in the old one's place."""
        found = rotate(ORIGIN, self.signer, new)
        if by is not None:
            found = found._replace(old_signature=rotate(ORIGIN, by, new).old_signature)
        self.change(record_of(found, "signer", T0_US))
        self.signer = new

    def take(self, name: str, *values: bytes) -> None:
        """Let a usage log's worker commit a batch, pinned to the control log as it is now."""
        log = self.usage[name]
        if not log.pins or log.pins[-1][1] != len(self.control):
            log.pins.append((len(log.leaves), len(self.control)))
        for value in values:
            verdict = log.admission.admit(b"key", value)
            self.put(name, value, *verdict)

    def put(self, name: str, value: bytes, disposition: int, reason: int) -> None:
        """Write a leaf as a worker would that decides as told."""
        log = self.usage[name]
        leaf = leaves.encode(disposition, reason, len(log.leaves) * 2, T0_US // 1000, b"key", value)
        self._keep_aside(leaf, value)
        log.leaves.append(leaf)

    # Pricing ------------------------------------------------------------------

    def replay(self) -> Replay:
        """Books at the sizes of now."""
        replay = Replay()
        for position, raw in enumerate(self.control):
            leaf = leaves.decode(raw)
            aside = b""
            if leaf.aside:
                aside = self.asides.get(leaves.aside_of(leaf.value)[0].hex(), b"")
            replay.apply_control(position, raw, aside)
        for name, log in self.usage.items():
            ends = [pin[0] for pin in log.pins[1:]] + [len(log.leaves)]
            for (start, known), end in zip(log.pins, ends, strict=False):
                replay.apply_usage(name, start, known, log.leaves[start:end])
        return replay

    def serve(self) -> None:
        """Let pricing answer ListBalances now."""
        replay = self.replay()
        answer = pricing_pb2.ListBalancesResponse(balances_digest=replay.digest())
        suspense = replay.suspense()
        for account_id in sorted(replay.projection.control.accounts):
            made = answer.balances.add(
                account_id=account_id, suspense_entries=suspense.get(account_id, 0)
            )
            for amount, pico in (
                (made.available, replay.balance(books.customer(account_id), "USD")),
                (made.granted, -replay.balance(books.granted(account_id), "USD")),
                (made.charged, replay.balance(books.revenue(account_id), "USD")),
            ):
                amount.currency = "USD"
                amount.amount_pico = str(pico)
            totals = replay.totals.get(account_id)
            if totals is not None:
                made.usage.requests = totals.requests
                made.usage.input_tokens = totals.input_tokens
                made.usage.cached_tokens = totals.cached_tokens
                made.usage.output_tokens = totals.output_tokens
                made.usage.cache_write_tokens = totals.cache_write_tokens
        for name, size in self.sizes().items():
            answer.positions.add(log=name, size=size)
        self.served = answer

    def sizes(self) -> dict[str, int]:
        return {
            "control": len(self.control),
            **{name: len(log.leaves) for name, log in self.usage.items()},
        }

    def cut(
        self,
        change: Callable[[control_pb2.Cut], None] = lambda cut: None,
        restate: bool = False,
        most_pins: int = MAX_NEW_PINS,
    ) -> None:
        """Let pricing write a cut; `change` alters it before it is appended.

        With `restate` it says all pins again, as the first version's cuts did.
        """
        replay = self.replay()
        cut = control_pb2.Cut(
            cut_time=timestamp_of(T0_US),
            balances_digest=replay.digest(),
            rating_version=RATING_VERSION,
        )
        for engine in replay.engines.values():
            cut.conservation.event_tokens += engine.event_tokens
            cut.conservation.engine_tokens += engine.generation_tokens
            cut.conservation.waste_tokens += engine.waste_tokens
        logs: Iterable[tuple[str, list[bytes], list[Pin]]] = [
            ("control", self.control, []),
            *((name, log.leaves, log.pins) for name, log in self.usage.items()),
        ]
        for name, entries, pins in logs:
            part = cut.logs.add(
                log=name,
                size=len(entries),
                root=merkle.root_of(merkle.leaf_hash(entry) for entry in entries),
            )
            for start, known in pins:
                if start < len(entries):
                    part.pins.add(from_position=start, control_size=known)
        before = None
        if self.cuts and not restate:
            before = control_pb2.Cut.FromString(leaves.decode(self.cuts[-1]).value)
        *alone, whole = split_pins(cut, before, most_pins)
        change(whole)
        for written in (*alone, whole):
            self.append(self.cuts, written.SerializeToString())

    # The export ---------------------------------------------------------------

    def entries(self) -> dict[str, list[bytes]]:
        return {
            "control": self.control,
            "cuts": self.cuts,
            **{name: log.leaves for name, log in self.usage.items()},
        }

    def write(self, root: Path) -> tuple[Path, Path]:
        """Write the export and the auditor's key file; gives both paths."""
        export = root / "export"
        for name, entries in self.entries().items():
            signer = self.signers.get(name, self.signer)
            write_log(export / "logs" / name, name, entries, signer, self.witnesses)
        for digest, data in self.asides.items():
            put_file(export / "aside" / digest, data)
        if self.served is not None:
            text = json_format.MessageToJson(self.served, preserving_proto_field_name=True)
            put_file(export / "served.json", text.encode())
        keys = root / "verifiers"
        keys.write_text(
            "".join(f"{SIGNER.named(f'{ORIGIN}/{name}').verifier}\n" for name in self.entries())
        )
        return export, keys


def put_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_log(
    directory: Path,
    name: str,
    entries: list[bytes],
    signer: SignerKey = SIGNER,
    witnesses: Iterable[SignerKey] = (),
) -> None:
    """Write a log's signed tiles directory."""
    builder = TileBuilder()
    for entry in entries:
        for path, data in builder.append(entry):
            put_file(directory / path, data)
    for path, data in builder.partial():
        put_file(directory / path, data)
    checkpoint = Checkpoint(f"{ORIGIN}/{name}", len(entries), builder.root())
    note = sign_checkpoint(checkpoint, signer.named(checkpoint.origin))
    note = with_lines(note, [cosign(checkpoint.text(), key, T0_US // 10**6) for key in witnesses])
    put_file(directory / CHECKPOINT_PATH, note)


def small_world() -> World:
    """Three accounts, a hundred requests in two logs, a repeat, a conflict, a poison record, an
    oversize one, usage without a price, an engine's readings, two cuts."""
    world = World()
    world.change(card(), account("acme"), grant("g1", "acme", 5 * 10**12), account("globex"))
    one, two = Producer("p/1/0"), Producer("p/1/1")
    events = [
        usage_event(f"a{number}", "acme", plain=100 + number, cached=number, output=7)
        for number in range(40)
    ]
    world.take("usage-0", *(one.record(event) for event in events))
    world.take("usage-0", one.record(events[3]))  # a repeat by another record
    world.take("usage-0", one.record(usage_event("a5", "acme", plain=1)))  # a conflict
    world.take("usage-0", b"\xff\xff rubbish", b"x" * 70_000)
    world.cut()
    world.change(account("initech"), grant("g2", "globex", 3 * 10**12))
    world.take(
        "usage-1",
        *(
            two.record(usage_event(f"b{number}", "globex", plain=50, output=number))
            for number in range(60)
        ),
        two.record(usage_event("c1", "initech", plain=9, output=11, model="unpriced")),
    )
    generated = 40 * 7 + sum(range(60)) + 11
    world.take("usage-1", two.reading("engine-1", generated + 13, 13, final=True), two.close())
    world.serve()
    world.change(grant("g3", "initech", 10**12))
    world.take("usage-0", one.record(usage_event("a99", "acme", plain=1, engine_id="engine-2")))
    world.cut()
    return world
