"""The rules beside the fields (buf.validate), compiled once a message type into plain functions.

Owns: reading the rules out of a descriptor's options, and walking a message with what was made
of them. What each rule means is kernel/rulebook.py's. A rule that stands in neither (CEL,
well-known formats, rules newer than this module) makes its message type go through protovalidate
as a whole: a thousand times slower, never unchecked. Knows no service and no wire.

Gives what protovalidate 1.2 gives, in its order, but for two bounds, because this runs on an
event loop and on the bytes of callers whom nobody knows yet:

- a list longer than its max_items, or a map larger than its max_pairs, is one violation, and
  what stands in it is not looked at;
- no more than MAX_VIOLATIONS are told, the first ones.

And two more where protovalidate errs: it forgets enum.defined_only of the items of a list and
the values of a map, which is checked here; and it raises where it converts a value that no rule
reads and cannot (a Timestamp beyond the year 9999, under a field that has a rule), where here
nothing is converted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, cast

import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from buf.validate import validate_pb2
from kernel import rulebook
from kernel.errors import FieldViolation

log = structlog.get_logger()

MAX_VIOLATIONS: Final = 100

# One part of a message's check: appends what it finds broken.
_Part = Callable[[Any, list[FieldViolation]], None]
_Tests = Sequence[rulebook.Test]

_REQUIRED: Final = "value is required"
_REQUIRED_ONEOF: Final = "exactly one field is required in oneof"

# A scalar's rules have in FieldRules the name of its type: TYPE_SINT32, sint32.
_KINDS: Final[dict[int, str]] = {
    getattr(FieldDescriptor, f"TYPE_{kind.upper()}"): kind for kind in rulebook.SCALARS
}


class Validator:
    """The compiled rules of the message types met so far."""

    def __init__(self) -> None:
        # Whole ones only, so that a thread never meets a type half compiled. Keyed by the
        # descriptor itself: two pools may hold the same name.
        self._compiled: dict[Descriptor, Sequence[_Part]] = {}

    def violations(self, message: Message) -> list[FieldViolation]:
        """Give what a message breaks of its rules, at most MAX_VIOLATIONS; empty when valid.

        Errors: protovalidate's CompilationError, when the rules themselves make no sense.
        """
        kind = cast(Descriptor, message.DESCRIPTOR)
        parts = self._compiled.get(kind)
        if parts is None:
            made: dict[Descriptor, list[_Part]] = {}
            parts = self._compile(kind, made)
            self._compiled.update(made)
        found = _broken(parts, message)
        return found[:MAX_VIOLATIONS] if found else found

    def _compile(self, kind: Descriptor, made: dict[Descriptor, list[_Part]]) -> Sequence[_Part]:
        """Give the parts of a type, and of all within it; `made` ends the recursion of a cycle.

        The list of a type that contains itself is still being filled when it is given inside.
        """
        known = self._compiled.get(kind, made.get(kind))
        if known is not None:
            return known
        parts = made[kind] = []
        try:
            own = _oneofs(kind)
            for field in kind.fields:
                own += _field(field, lambda inner: self._compile(inner, made))
            parts += own
        except rulebook.UnknownRuleError as unknown:
            log.warning(
                "a rule that only protovalidate knows: it checks this type, slowly",
                message_type=kind.full_name,
                rule=str(unknown),
            )
            parts.append(_by_protovalidate)
        return parts


def _broken(parts: Sequence[_Part], message: Any) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    for part in parts:
        part(message, found)
    return found


# --- reading the options --------------------------------------------------------------------


def _given(rules: Any, *known: str) -> dict[str, Any]:
    """Give the rules that are set, by name, in order of field number.

    Errors: UnknownRuleError for one that is not `known`, where any is named.
    """
    if len(UnknownFieldSet(rules)) > 0:
        raise rulebook.UnknownRuleError(f"a newer field of {rules.DESCRIPTOR.full_name}")
    given: dict[str, Any] = {}
    for field, value in rules.ListFields():
        if field.is_extension or (known and field.name not in known):
            raise rulebook.UnknownRuleError(field.full_name)
        given[field.name] = value
    return given


def _oneofs(kind: Descriptor) -> list[_Part]:
    """Give the parts that check a type's oneofs."""
    if kind.GetOptions().HasExtension(validate_pb2.message):
        raise rulebook.UnknownRuleError("buf.validate.message")
    parts: list[_Part] = []
    for oneof in kind.oneofs:
        options = oneof.GetOptions()
        if options.HasExtension(validate_pb2.oneof) and _given(
            options.Extensions[validate_pb2.oneof], "required"
        ).get("required"):
            parts.append(_required_oneof(oneof))
    return parts


def _field(
    field: FieldDescriptor, compile_type: Callable[[Descriptor], Sequence[_Part]]
) -> list[_Part]:
    """Give the parts that check a field and what stands in it, in protovalidate's order."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return []
    inner = field.message_type
    if not field.is_repeated:
        return [
            *_whole(field, rules, _value_tests(field, rules)),
            *([_message(field.name, compile_type(inner))] if inner else []),
        ]
    if inner is not None and inner.GetOptions().map_entry:
        return _map(field, rules, inner, compile_type)
    return _list(field, rules, inner, compile_type)


def _list(
    field: FieldDescriptor,
    rules: Any,
    inner: Descriptor | None,
    compile_type: Callable[[Descriptor], Sequence[_Part]],
) -> list[_Part]:
    _given(rules, "repeated", "required", "ignore")
    own = _given(rules.repeated)
    own.pop("items", None)
    if inner is not None and own.get("unique"):
        raise rulebook.UnknownRuleError("repeated.unique of messages")
    most = own.get("max_items", sys.maxsize)
    parts = _whole(field, rules, rulebook.tests_of("repeated", own))
    if items := _element_tests(field, rules.repeated.items):
        parts.append(_items(field.name, items, most))
    if inner is not None and rules.repeated.items.ignore != validate_pb2.IGNORE_ALWAYS:
        parts.append(_messages(field.name, compile_type(inner), most))
    return parts


def _map(
    field: FieldDescriptor,
    rules: Any,
    entry: Descriptor,
    compile_type: Callable[[Descriptor], Sequence[_Part]],
) -> list[_Part]:
    _given(rules, "map", "required", "ignore")
    own = _given(rules.map)
    own.pop("keys", None)
    own.pop("values", None)
    most = own.get("max_pairs", sys.maxsize)
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    parts = _whole(field, rules, rulebook.tests_of("map", own))
    keys = _element_tests(key, rules.map.keys)
    values = _element_tests(value, rules.map.values)
    if keys or values:
        parts.append(_pairs(field.name, keys, values, most))
    if value.message_type is not None:
        parts.append(_map_messages(field.name, compile_type(value.message_type), most))
    return parts


def _value_tests(field: FieldDescriptor, rules: Any) -> list[rulebook.Test]:
    """Give the tests of one value of a field's type; none for a message."""
    kind = _KINDS.get(field.type)
    given = _given(rules, "required", "ignore", *([kind] if kind else []))
    if kind is None or kind not in given:
        return []
    own = _given(given[kind])
    # Told after the others, though its number is lower.
    only_defined = own.pop("defined_only", False)
    tests = rulebook.tests_of(kind, own)
    if only_defined and field.enum_type is not None:
        tests.append(rulebook.defined_only(tuple(field.enum_type.values_by_number)))
    return tests


def _element_tests(field: FieldDescriptor, rules: Any) -> list[rulebook.Test]:
    """Give the tests of an item of a list, or of a key or a value of a map."""
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return []
    if rules.required:
        raise rulebook.UnknownRuleError("required of an element, which is always there")
    tests = _value_tests(field, rules)
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return [rulebook.unless_zero(test) for test in tests]
    return tests


# --- walking a message ----------------------------------------------------------------------


def _whole(field: FieldDescriptor, rules: Any, tests: _Tests) -> list[_Part]:
    """Give the part that checks a field as a whole; none when nothing is asked of it."""
    name, get, required = field.name, attrgetter(field.name), rules.required
    if not tests and not required:
        return []

    # Set or not set is what counts: a value of zero that was set is checked.
    def with_presence(message: Any, found: list[FieldViolation]) -> None:
        if message.HasField(name):
            value = get(message)
            for broken, text in tests:
                if broken(value):
                    found.append(FieldViolation(name, text))
        elif required:
            found.append(FieldViolation(name, _REQUIRED))

    zero_is_checked = not required and rules.ignore != validate_pb2.IGNORE_IF_ZERO_VALUE

    def without_presence(message: Any, found: list[FieldViolation]) -> None:
        value = get(message)
        if value or zero_is_checked:
            for broken, text in tests:
                if broken(value):
                    found.append(FieldViolation(name, text))
        elif required:
            found.append(FieldViolation(name, _REQUIRED))

    return [with_presence if field.has_presence else without_presence]


def _required_oneof(oneof: OneofDescriptor) -> _Part:
    name = oneof.name

    def part(message: Any, found: list[FieldViolation]) -> None:
        if message.WhichOneof(name) is None:
            found.append(FieldViolation(name, _REQUIRED_ONEOF))

    return part


def _items(name: str, tests: _Tests, most: int) -> _Part:
    get = attrgetter(name)

    def part(message: Any, found: list[FieldViolation]) -> None:
        values = get(message)
        if len(values) > most:
            return
        for index, value in enumerate(values):
            for broken, text in tests:
                if broken(value):
                    found.append(FieldViolation(f"{name}[{index}]", text))
            if len(found) >= MAX_VIOLATIONS:
                return

    return part


def _pairs(name: str, keys: _Tests, values: _Tests, most: int) -> _Part:
    get = attrgetter(name)

    def part(message: Any, found: list[FieldViolation]) -> None:
        pairs = get(message)
        if len(pairs) > most:
            return
        for key, value in pairs.items():
            texts = [text for broken, text in values if broken(value)]
            texts += [text for broken, text in keys if broken(key)]
            found += [FieldViolation(_subscripted(name, key), text) for text in texts]
            if len(found) >= MAX_VIOLATIONS:
                return

    return part


def _message(name: str, parts: Sequence[_Part]) -> _Part:
    get = attrgetter(name)

    def part(message: Any, found: list[FieldViolation]) -> None:
        if parts and message.HasField(name):
            inner = _broken(parts, get(message))
            if inner:
                found += _within(name, inner)

    return part


def _messages(name: str, parts: Sequence[_Part], most: int) -> _Part:
    get = attrgetter(name)

    def part(message: Any, found: list[FieldViolation]) -> None:
        values = get(message)
        if not parts or len(values) > most:
            return
        for index, value in enumerate(values):
            inner = _broken(parts, value)
            if inner:
                found += _within(f"{name}[{index}]", inner)
                if len(found) >= MAX_VIOLATIONS:
                    return

    return part


def _map_messages(name: str, parts: Sequence[_Part], most: int) -> _Part:
    get = attrgetter(name)

    def part(message: Any, found: list[FieldViolation]) -> None:
        pairs = get(message)
        if not parts or len(pairs) > most:
            return
        for key, value in pairs.items():
            inner = _broken(parts, value)
            if inner:
                found += _within(_subscripted(name, key), inner)
                if len(found) >= MAX_VIOLATIONS:
                    return

    return part


def _within(path: str, inner: Iterable[FieldViolation]) -> Iterable[FieldViolation]:
    """Put the path of a message before what is broken in it."""
    for broken in inner:
        # A violation of a whole message has no path of its own.
        inside = f"{path}.{broken.field}" if broken.field else path
        yield FieldViolation(inside, broken.description)


def _subscripted(name: str, key: Any) -> str:
    return f"{name}[{str(key).lower() if isinstance(key, bool) else repr(key)}]"


# --- what is left to protovalidate ----------------------------------------------------------


def _by_protovalidate(message: Any, found: list[FieldViolation]) -> None:
    # It takes a second to import, and no type of this project needs it.
    import protovalidate

    for violation in protovalidate.collect_violations(message):
        path = ".".join(_element(element) for element in violation.proto.field.elements)
        found.append(FieldViolation(path, violation.proto.message))


def _element(element: Any) -> str:
    subscript = element.WhichOneof("subscript")
    if subscript is None:
        return str(element.field_name)
    return _subscripted(element.field_name, getattr(element, subscript))
