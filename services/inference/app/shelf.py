"""What is served right now: names to ask for, and whose each is. Changes while it is read.

Both doors, the gate and whoever loads adapters hold the same shelf, so that a name is there
for all of them or for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference.engine import Target
from kernel import errors
from tollbook.usage.v1 import usage_pb2 as usage


@dataclass(frozen=True, slots=True)
class Served:
    """A name to ask for, and what serves it.

    `account_id` and `project_id`: whose alone it is; empty is everybody's.
    """

    target: Target
    provenance: usage.Provenance
    account_id: str = ""
    project_id: str = ""

    def is_for(self, account_id: str, project_id: str) -> bool:
        """True when this caller may know of it."""
        return self.account_id in ("", account_id) and self.project_id in ("", project_id)


class Shelf:
    """Everything runs on one event loop. Bounded by who puts things on it."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = dict(served)

    def put(self, served: Served) -> None:
        """Serve it from now on, under its target's name."""
        self._served[served.target.served_name] = served

    def remove(self, name: str) -> None:
        """Serve it no more."""
        self._served.pop(name, None)

    def all(self) -> dict[str, Served]:
        """Everything, in order of name; for who runs the house."""
        return dict(sorted(self._served.items()))

    def visible(self, account_id: str, project_id: str) -> dict[str, Served]:
        """What a caller may know of, in order of name."""
        return {
            name: served
            for name, served in self.all().items()
            if served.is_for(account_id, project_id)
        }

    def find(self, name: str, account_id: str, project_id: str) -> Served:
        """What a caller asks for. Another's is not told from what is not there.

        Errors: NotFound, with the names that the caller may ask for.
        """
        served = self._served.get(name)
        if served is None or not served.is_for(account_id, project_id):
            names = ", ".join(self.visible(account_id, project_id))
            raise errors.NotFound(
                f"no model {name!r}; served are {names}",
                reason="UNKNOWN_MODEL",
                metadata={"model": name[:256]},
            )
        return served
