"""Reading a usage object field by field: counts, words, parts; everything else is refused.

A JSON null is a field that is not there, as the providers use it. A count is
a JSON integer: not a float, not a text, not true.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final

from pricing.domain.events import MAX_QUANTITY
from pricing.domain.readers.reading import (
    INCONSISTENT,
    MISSING_FIELD,
    NOT_READABLE,
    OUT_OF_RANGE,
    UNKNOWN_FIELD,
    UsageReadError,
)

Object = Mapping[str, Any]
_NOTHING: Final[Object] = {}


def as_object(data: object, path: str) -> Object:
    """A JSON object. Errors: UsageReadError."""
    if not isinstance(data, dict):
        raise UsageReadError(path, NOT_READABLE, f"an object is needed, not {_shown(data)}")
    return data


def known(data: Object, names: Set[str], path: str, dialect: str) -> None:
    """Refuse a field that the dialect does not have. Errors: UsageReadError."""
    if data.keys() <= names:
        return
    name = sorted(str(name) for name in data.keys() - names)[0]
    raise UsageReadError(
        path + name[:100],
        UNKNOWN_FIELD,
        f"the {dialect} dialect has no such field; it has {', '.join(sorted(names))}",
    )


def count(data: Object, name: str, path: str = "") -> int:
    """A count; 0 when the field is not there. Errors: UsageReadError."""
    value = data.get(name)
    if value is None:
        return 0
    # Not isinstance: to Python, true is an int.
    if type(value) is not int:
        raise UsageReadError(
            path + name, NOT_READABLE, f"a whole number is needed, not {_shown(value)}"
        )
    if value < 0:
        raise UsageReadError(path + name, OUT_OF_RANGE, f"{_shown(value)} is less than 0")
    if value > MAX_QUANTITY:
        raise UsageReadError(
            path + name, OUT_OF_RANGE, f"{_shown(value)} is more than {MAX_QUANTITY}"
        )
    return value


def needed_count(data: Object, name: str, path: str = "") -> int:
    """A count that the dialect always has. Errors: UsageReadError."""
    if data.get(name) is None:
        raise UsageReadError(path + name, MISSING_FIELD, "this field is missing")
    return count(data, name, path)


def part(data: Object, name: str, names: Set[str], path: str, dialect: str) -> Object:
    """An object inside the object, with known fields; empty when it is not there.

    Errors: UsageReadError.
    """
    value = data.get(name)
    if value is None:
        return _NOTHING
    found = as_object(value, path + name)
    known(found, names, f"{path}{name}.", dialect)
    return found


def word(data: Object, name: str, path: str = "") -> str:
    """A text; empty when the field is not there. Errors: UsageReadError."""
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 256:
        raise UsageReadError(
            path + name,
            NOT_READABLE,
            f"a text of at most 256 characters is needed, not {_shown(value)}",
        )
    return value


def translated(data: Object, name: str, words: Mapping[str, str], dialect: str) -> str:
    """A word in our words; empty when the field is not there.

    Errors: UsageReadError for a word that is not among `words`: a tier that
    nobody knows must not be charged as the standard one.
    """
    said = word(data, name)
    if not said:
        return ""
    ours = words.get(said)
    if ours is None:
        raise UsageReadError(
            name,
            NOT_READABLE,
            f"the {dialect} dialect has no {said[:60]!r} here; it has {', '.join(sorted(words))}",
        )
    return ours


def check_total(total: int, expected: int, field: str, what: str) -> None:
    """Compare the object's own total with the sum of its parts. Errors: UsageReadError."""
    if total != expected:
        raise UsageReadError(field, INCONSISTENT, f"{total} is not {what}, which is {expected}")


def check_own_total(usage: Object, name: str, total: int, what: str) -> None:
    """Compare a total that an object may state with ours. Errors: UsageReadError."""
    if usage.get(name) is not None:
        check_total(count(usage, name), total, name, what)


def one_of(found: Object, one: str, other: str) -> str:
    """Which of two names an object uses. Errors: UsageReadError when both."""
    if found.get(other) is None:
        return one
    if found.get(one) is not None:
        raise UsageReadError(other, INCONSISTENT, f"stands beside {one}; one of them is needed")
    return other


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        # Python refuses to write out integers of thousands of digits.
        return "a number of over 30 digits"
    return repr(value)[:60]
