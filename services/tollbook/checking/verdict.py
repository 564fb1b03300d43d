"""What a check of the ledger's database came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from audit.findings import Finding, Findings


@dataclass
class Verdict:
    """What was found."""

    findings: Findings = field(default_factory=Findings)
    sizes: dict[str, int] = field(default_factory=dict)
    roots: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not len(self.findings)

    def found(
        self, log: str, what: str, position: int | None = None, end: int | None = None
    ) -> None:
        """Say what differs, where."""
        self.findings.add(Finding(log, what, position, end))
