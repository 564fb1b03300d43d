"""A line of JSON as it may be rated: one value a name, or a reason in plain words why not."""

from __future__ import annotations

import json
from typing import Any

from pricing.domain.readers.reading import INCONSISTENT, NOT_READABLE, UsageReadError


def decode(data: bytes) -> object:
    """Decode a line. Errors: UsageReadError, also where an object has a field twice.

    JSON leaves open which of two fields of one name counts (RFC 8259, 4), so two programs may
    read different counts out of one line: neither is charged.
    """
    try:
        return json.loads(data, object_pairs_hook=_object)
    except UsageReadError:
        raise
    except json.JSONDecodeError as error:
        why = f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}"
    except UnicodeDecodeError:
        why = "the text is not UTF-8"
    except RecursionError:
        why = "it is nested too deep"
    except ValueError:
        # All that is left: Python refuses to read integers of thousands of digits.
        why = "a number has thousands of digits"
    raise UsageReadError("", NOT_READABLE, f"not JSON that can be read: {why}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            break
        seen.add(name)
    raise UsageReadError(name[:100], INCONSISTENT, "this field stands twice in one object")
