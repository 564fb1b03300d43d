"""What an audit says at its end: for people as text, for programs as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from audit.conservation import EngineLine
from audit.findings import Finding, Findings
from audit.log_check import LogResult
from kernel.money import format_pico


@dataclass
class AccountLine:
    """An account as the logs give it, amounts in pico-units."""

    account_id: str
    currency: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    granted_pico: int
    charged_pico: int
    available_pico: int
    suspense_entries: int


@dataclass
class CutLine:
    """The last cut, and whether the balances recomputed at it have its digest."""

    position: int
    sizes: dict[str, int]
    digest: bytes
    recomputed_digest: bytes | None
    """None where the balances could not be recomputed."""


@dataclass
class Report:
    """The audit of one export."""

    findings: Findings = field(default_factory=Findings)
    notes: list[str] = field(default_factory=list)
    logs: list[LogResult] = field(default_factory=list)
    cuts: int = 0
    cut: CutLine | None = None
    served_positions: dict[str, int] = field(default_factory=dict)
    accounts: list[AccountLine] = field(default_factory=list)
    engines: list[EngineLine] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not len(self.findings)

    @property
    def first(self) -> Finding | None:
        """The first difference, in the order in which one follows from another."""
        return next(iter(self.findings), None)

    @property
    def entries(self) -> int:
        """Entries in all logs."""
        return sum(log.size for log in self.logs)

    def as_json(self) -> dict[str, Any]:
        """Plain data; money and 64-bit counts as the contract's JSON has them, as strings."""
        return {
            "ok": self.ok,
            "first": None if self.first is None else str(self.first),
            "findings": [
                {
                    "place": found.place,
                    "position": found.position,
                    "end_position": found.end_position,
                    "what": found.what,
                    "text": str(found),
                }
                for found in self.findings
            ],
            "findings_not_shown": self.findings.dropped,
            "notes": self.notes,
            "logs": [
                {
                    "log": log.log,
                    "size": log.size,
                    "root": log.root.hex(),
                    "accepted": log.counts.accepted,
                    "duplicate": log.counts.duplicate,
                    "conflict": log.counts.conflict,
                    "rejected": log.counts.rejected,
                }
                for log in self.logs
            ],
            "cuts": self.cuts,
            "cut": None
            if self.cut is None
            else {
                "position": self.cut.position,
                "sizes": self.cut.sizes,
                "balances_digest": self.cut.digest.hex(),
                "recomputed_digest": None
                if self.cut.recomputed_digest is None
                else self.cut.recomputed_digest.hex(),
            },
            "served_positions": self.served_positions,
            "accounts": [
                {
                    "account_id": line.account_id,
                    "currency": line.currency,
                    "requests": line.requests,
                    "input_tokens": line.input_tokens,
                    "cached_tokens": line.cached_tokens,
                    "output_tokens": line.output_tokens,
                    "granted_pico": str(line.granted_pico),
                    "charged_pico": str(line.charged_pico),
                    "available_pico": str(line.available_pico),
                    "suspense_entries": line.suspense_entries,
                }
                for line in self.accounts
            ],
            "engines": [{**line._asdict(), "residual": line.residual} for line in self.engines],
            "seconds": round(self.seconds, 3),
        }

    def as_text(self) -> str:
        """A page for people; the verdict stands last."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _table(
            ("log", "entries", "accepted", "duplicate", "conflict", "rejected", "root"),
            [
                (
                    log.log,
                    str(log.size),
                    str(log.counts.accepted),
                    str(log.counts.duplicate),
                    str(log.counts.conflict),
                    str(log.counts.rejected),
                    log.root.hex(),
                )
                for log in self.logs
            ],
        )
        if self.accounts:
            yield ""
            yield from _table(
                ("account", "requests", "input", "cached", "output", "charged", "available", ""),
                [
                    (
                        line.account_id,
                        str(line.requests),
                        str(line.input_tokens),
                        str(line.cached_tokens),
                        str(line.output_tokens),
                        format_pico(line.charged_pico),
                        format_pico(line.available_pico),
                        line.currency,
                    )
                    for line in self.accounts
                ],
            )
        if self.engines:
            yield ""
            yield from _table(
                ("engine", "generated", "in events", "waste", "residual", "state"),
                [
                    (
                        line.engine_id,
                        str(line.generated),
                        str(line.settled),
                        str(line.waste),
                        str(line.residual),
                        "ended" if line.final else "runs",
                    )
                    for line in self.engines
                ],
            )
        if self.cut is not None:
            yield ""
            yield f"last cut: cuts position {self.cut.position} of {self.cuts}"
            yield f"balances: {self.cut.digest.hex()} says the cut"
            if self.cut.recomputed_digest is not None:
                yield f"          {self.cut.recomputed_digest.hex()} from the logs"
        for note in self.notes:
            yield f"note: {note}"
        yield ""
        yield from (f"DIFFERS: {found}" for found in self.findings)
        if self.findings.dropped:
            yield f"DIFFERS: and {self.findings.dropped} more"
        told = f"{self.entries} entries of {len(self.logs)} logs in {self.seconds:.1f} s"
        if self.first is None:
            yield f"audit: all agrees ({told})"
        else:
            yield f"audit: FAILED, first at {self.first.where} ({told})"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """First column to the left, numbers to the right, the last column as it is."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    for row in [head, *rows]:
        cells = [
            cell.ljust(width) if at in (0, len(head) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
