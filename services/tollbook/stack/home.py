"""The folder of a stack's state, $TOLLBOOK_HOME: who the stack is and where each thing lies.

Owns the folder's layout, the stack's identity and its secrets. Reads and writes nothing else.

    stack.id        twelve hex digits; marks every process of the stack
    stack.json      what runs (state.py)          orders.json     what shall run (state.py)
    secrets.json    passwords, mode 0600          keys/           signer's and verifiers' keys
    logs/           one file a part               kafka/ postgres/ spool/ signer/   data
    tiles/          the published logs            witness/        a witness of its own: key, memory
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tollbook.stack.errors import Unusable
from tollbook.stack.files import write_once

DEFAULT_HOME = ".tollbook"


@dataclass(frozen=True)
class Secrets:
    """Passwords of the embedded database's roles. Made once a home; never logged."""

    admin: str
    ledger: str
    pricing: str


@dataclass(frozen=True)
class Home:
    """One stack's folder. Two stacks on one machine have two of them."""

    root: Path
    stack_id: str

    @classmethod
    def open(cls, root: Path | str | None = None) -> Home:
        """Opens a home, made when absent: `root`, else $TOLLBOOK_HOME, else ./.tollbook.

        Raises Unusable when it cannot be made or written to.
        """
        chosen = root or os.environ.get("TOLLBOOK_HOME") or DEFAULT_HOME
        path = Path(chosen).expanduser().absolute()
        try:
            # Root's database runs as another user, who has to pass through, not to look around.
            path.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
            stack_id = write_once(path / "stack.id", secrets.token_hex(6)).strip()
            (path / "logs").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unusable(
                f"{path} cannot hold the stack's state ({error.strerror}); "
                "set TOLLBOOK_HOME to a folder you may write to"
            ) from error
        return cls(path, stack_id)

    @property
    def state_file(self) -> Path:
        """What runs, written by the supervisor alone."""
        return self.root / "stack.json"

    @property
    def orders_file(self) -> Path:
        """What shall run, written by whoever holds the control lock."""
        return self.root / "orders.json"

    @property
    def control_lock(self) -> Path:
        """Held while a command changes what shall run."""
        return self.root / "control.lock"

    @property
    def logs(self) -> Path:
        """One file a part."""
        return self.root / "logs"

    def log_file(self, part: str) -> Path:
        """Where a part's output goes."""
        return self.logs / f"{part}.log"

    def folder(self, name: str) -> Path:
        """A part's own folder in the home, made when absent."""
        path = self.root / name
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def secrets(self) -> Secrets:
        """The passwords, made at the first call."""
        fresh = Secrets(*(secrets.token_hex(16) for _ in range(3)))
        kept = write_once(self.root / "secrets.json", json.dumps(fresh.__dict__))
        return Secrets(**json.loads(kept))
