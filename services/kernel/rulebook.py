"""The standard rules of one value (buf.validate), each a test and the text that tells of it.

Owns: what each rule means and its text, for strings, bytes, numbers, booleans, enums, and the
sizes of lists and maps; the same as the CEL expressions in protos/buf/validate/validate.proto.
Knows no message and no field: kernel/rules.py puts the tests together.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import re2

Broken = Callable[[Any], bool]


class Test(NamedTuple):
    """One rule over one value: whether the value breaks it, and what to say then."""

    broken: Broken
    text: str


class UnknownRuleError(Exception):
    """A rule that is not in this book; the message names it."""


def shown(value: Any) -> str:
    """Write a rule's value into a text, as CEL's `format` does for %s."""
    match value:
        case bool():
            return str(value).lower()
        case float() if math.isnan(value):
            return "NaN"
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case float():
            return f"{value:g}"
        case bytes():
            return re.sub("\ufffd+", "\ufffd", value.decode("utf-8", "replace"))
        case str() | int():
            return str(value)
        case _:
            return "[" + ", ".join(map(shown, value)) + "]"


def _differs(one: Any) -> Broken:
    return lambda value: bool(value != one)


def _outside(some: Collection[Any]) -> Broken:
    known = frozenset(some)
    return lambda value: value not in known


def _inside(some: Collection[Any]) -> Broken:
    known = frozenset(some)
    return lambda value: value in known


def _other_size(size: int) -> Broken:
    return lambda value: len(value) != size


def _smaller(size: int) -> Broken:
    return lambda value: len(value) < size


def _larger(size: int) -> Broken:
    return lambda value: len(value) > size


def _more_bytes(size: int) -> Broken:
    # A character is one to four bytes: most texts are judged without being encoded.
    return lambda value: len(value) > size or (4 * len(value) > size and len(value.encode()) > size)


def _mismatch(pattern: str) -> Broken:
    try:
        search = re2.compile(pattern).search
        one = re2.Set.SearchSet()
        one.Add(pattern)
        one.Compile()
    except re2.error as error:
        raise UnknownRuleError(f"the pattern `{pattern}`: {error}") from error
    # A set answers five times as fast as a search, but may also say no for want of memory
    # (so its documentation), so only its yes is final.
    matches = one.Match
    return lambda value: matches(value) is None and search(value) is None


_Rule = tuple[Callable[[Any], Broken], str]

_CONST: Final[_Rule] = (_differs, "must equal {}")
_IN: Final[_Rule] = (_outside, "must be in list {}")
_NOT_IN: Final[_Rule] = (_inside, "must not be in list {}")

_ORDINAL: Final[dict[str, _Rule]] = {"const": _CONST, "in": _IN, "not_in": _NOT_IN}
_FLOAT: Final[dict[str, _Rule]] = {
    **_ORDINAL,
    "finite": (lambda on: lambda value: on and not math.isfinite(value), "must be finite"),
}
_STRING: Final[dict[str, _Rule]] = {
    "const": (_differs, "must equal `{}`"),
    "len": (_other_size, "must be {} characters"),
    "min_len": (_smaller, "must be at least {} characters"),
    "max_len": (_larger, "must be at most {} characters"),
    "len_bytes": (lambda n: lambda value: len(value.encode()) != n, "must be {} bytes"),
    "min_bytes": (lambda n: lambda value: len(value.encode()) < n, "must be at least {} bytes"),
    "max_bytes": (_more_bytes, "must be at most {} bytes"),
    "pattern": (_mismatch, "does not match regex pattern `{}`"),
    "prefix": (lambda s: lambda value: not value.startswith(s), "does not have prefix `{}`"),
    "suffix": (lambda s: lambda value: not value.endswith(s), "does not have suffix `{}`"),
    "contains": (lambda s: lambda value: s not in value, "does not contain substring `{}`"),
    "not_contains": (lambda s: lambda value: s in value, "contains substring `{}`"),
    "in": _IN,
    "not_in": _NOT_IN,
}
_BYTES: Final[dict[str, _Rule]] = {
    "len": (_other_size, "must be {} bytes"),
    "min_len": (_smaller, "must be at least {} bytes"),
    "max_len": (_larger, "must be at most {} bytes"),
    "in": _IN,
    "not_in": _NOT_IN,
}
_LIST: Final[dict[str, _Rule]] = {
    "min_items": (_smaller, "must contain at least {} item(s)"),
    "max_items": (_larger, "must contain no more than {} item(s)"),
    "unique": (
        lambda on: lambda value: on and len(set(value)) != len(value),
        "repeated value must contain unique items",
    ),
}
_MAP: Final[dict[str, _Rule]] = {
    "min_pairs": (_smaller, "map must be at least {} entries"),
    "max_pairs": (_larger, "map must be at most {} entries"),
}
_INTEGERS: Final = (
    *("int32", "int64", "uint32", "uint64", "sint32", "sint64"),
    *("fixed32", "fixed64", "sfixed32", "sfixed64"),
)
_RULES: Final[dict[str, dict[str, _Rule]]] = {
    "string": _STRING,
    "bytes": _BYTES,
    "bool": {"const": _CONST},
    "enum": _ORDINAL,
    "float": _FLOAT,
    "double": _FLOAT,
    **dict.fromkeys(_INTEGERS, _ORDINAL),
    "repeated": _LIST,
    "map": _MAP,
}
SCALARS: Final = tuple(kind for kind in _RULES if kind not in ("repeated", "map"))

_ABOVE: Final = {
    "gt": (operator.gt, "greater than"),
    "gte": (operator.ge, "greater than or equal to"),
}
_BELOW: Final = {
    "lt": (operator.lt, "less than"),
    "lte": (operator.le, "less than or equal to"),
}
_BOUNDS: Final = (*_ABOVE, *_BELOW)


def _range(bounds: Mapping[str, Any]) -> Test:
    """Join a number's one or two bounds into one rule; NaN lies in no range.

    A lower bound above the upper one means what lies outside of the two.
    """
    if any(isinstance(bound, float) and math.isnan(bound) for bound in bounds.values()):
        raise UnknownRuleError("NaN as a bound")
    low = [(*_ABOVE[name], bound) for name, bound in bounds.items() if name in _ABOVE]
    high = [(*_BELOW[name], bound) for name, bound in bounds.items() if name in _BELOW]
    words = [f"{words} {shown(bound)}" for _, words, bound in (*low, *high)]
    # Each is asked in the positive and negated, so that NaN, of which nothing is true, breaks it.
    if not (low and high):
        ((within, _, bound),) = low or high
        return Test(lambda value: not within(value, bound), f"must be {words[0]}")
    ((above, _, least),) = low
    ((below, _, most),) = high
    if least <= most:
        return Test(
            lambda value: not (above(value, least) and below(value, most)),
            f"must be {' and '.join(words)}",
        )
    return Test(
        lambda value: not (above(value, least) or below(value, most)),
        f"must be {' or '.join(words)}",
    )


def tests_of(kind: str, rules: Mapping[str, Any]) -> list[Test]:
    """Give the tests of a kind of value, in the order in which protovalidate makes them.

    `kind` is a name of FieldRules' types ("string", "sint32", "repeated"), `rules` what is set
    in its rules, by name, in order of field number. Errors: UnknownRuleError.
    """
    tests: list[Test] = []
    bounds = {name: rules[name] for name in rules if name in _BOUNDS}
    for name, wanted in rules.items():
        if name in bounds:
            # Told once, where the first of the two stands: nothing stands between them.
            if name == next(iter(bounds)):
                tests.append(_range(bounds))
        elif name in _RULES[kind]:
            make, text = _RULES[kind][name]
            tests.append(Test(make(wanted), text.format(shown(wanted))))
        elif name != "example":
            raise UnknownRuleError(f"{kind}.{name}")
    return tests


def defined_only(numbers: Collection[int]) -> Test:
    """Give the test that an enum's value is one of its numbers."""
    return Test(_outside(numbers), "value must be one of the defined enum values")


def unless_zero(test: Test) -> Test:
    """Give the test that lets an empty or zero value pass."""
    broken = test.broken
    return Test(lambda value: bool(value) and broken(value), test.text)
