"""The compiled rules give what protovalidate gives, on every message of the contract and more.

Messages are drawn around the rules' own numbers and texts, so that most rules are met from both
sides: a length at its limit and one beyond, a word of a list and its neighbour.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc_tools
import protovalidate
import pytest
import structlog.testing
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.message import Message
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

from buf.validate import validate_pb2
from kernel import rulebook, rules
from kernel.errors import FieldViolation
from tollbook.inference.v1 import adapters_pb2, inference_pb2
from tollbook.ledger.v1 import ledger_pb2
from tollbook.pricing.v1 import (
    accounts_pb2,
    card_records_pb2,
    cards_pb2,
    commitment_pb2,
    control_pb2,
    holds_pb2,
    money_pb2,
    pricing_pb2,
    reports_pb2,
    statements_pb2,
)
from tollbook.usage.v1 import usage_pb2

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = (
    adapters_pb2,
    inference_pb2,
    ledger_pb2,
    accounts_pb2,
    card_records_pb2,
    cards_pb2,
    commitment_pb2,
    control_pb2,
    holds_pb2,
    money_pb2,
    pricing_pb2,
    reports_pb2,
    statements_pb2,
    usage_pb2,
)
VALIDATOR = rules.Validator()


def _types_of(file: FileDescriptor) -> Iterator[Any]:
    for kind in file.message_types_by_name.values():
        yield message_factory.GetMessageClass(kind)


def _requests_of(file: FileDescriptor) -> set[str]:
    return {
        method.input_type.full_name
        for service in file.services_by_name.values()
        for method in service.methods
    }


def _compiled_protos() -> FileDescriptor:
    """The test-only descriptors, compiled out of rules.proto beside this file."""
    out = Path(__file__).with_name("rules.proto")
    includes = (out.parent, ROOT / "protos", Path(grpc_tools.__file__).parent / "_proto")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        arguments = ["protoc", *(f"-I{path}" for path in includes)]
        assert protoc.main([*arguments, f"--descriptor_set_out={target}", str(out)]) == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.Default()
    assert wrappers_pb2.DESCRIPTOR.pool is pool  # what rules.proto imports is loaded
    pool.AddSerializedFile(files.file[0].SerializeToString())
    return pool.FindFileByName("rules.proto")


EXTRA = {kind.DESCRIPTOR.name: kind for kind in _types_of(_compiled_protos())}
COMPILED = (
    *("Strings", "Bytes", "Integers", "Floats", "Others"),
    *("Presence", "Lists", "Maps", "Tree"),
)
SLOW = (
    *("Slow", "HoldsSlow", "Email", "Expression", "Wrapped", "Span", "Stamp", "AnyOf"),
    *("OneOfTwo", "ItemsRequired", "NoBound", "BytesPattern", "StrictAlone"),
    "ScalarRulesOfList",
)
SENSELESS = ("WrongType", "WrongPattern", "UniqueMessages")

# --- messages, drawn around their rules --------------------------------------------------------

F = FieldDescriptor
_RANGES = {
    F.TYPE_INT32: (-(2**31), 2**31 - 1),
    F.TYPE_SINT32: (-(2**31), 2**31 - 1),
    F.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    F.TYPE_INT64: (-(2**63), 2**63 - 1),
    F.TYPE_SINT64: (-(2**63), 2**63 - 1),
    F.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    F.TYPE_UINT32: (0, 2**32 - 1),
    F.TYPE_FIXED32: (0, 2**32 - 1),
    F.TYPE_UINT64: (0, 2**64 - 1),
    F.TYPE_FIXED64: (0, 2**64 - 1),
}
# What protovalidate can convert; beyond it, it raises.
_SECONDS = {
    "google.protobuf.Timestamp": (-62135596800, 253402300799),
    "google.protobuf.Duration": (-315576000000, 315576000000),
}
# Longer texts and lists are for the examples below: protovalidate takes milliseconds an item.
_LONGEST = 1_000
_MOST = 20
_DEEPEST = 2


def _hints(found: Any) -> list[Any]:
    """Every value that stands in some rules, however deep."""
    if isinstance(found, Message):
        return [hint for _, value in found.ListFields() for hint in _hints(value)]
    if isinstance(found, str | bytes | int | float):
        return [found]
    return [hint for value in found for hint in _hints(value)]


def _sizes(hints: Sequence[Any], most: int) -> list[int]:
    near = {n + d for n in hints if type(n) is int for d in (-1, 0, 1)}
    return sorted(n for n in near | {0, 1, 2} if 0 <= n <= most)


def _single(number: float) -> float:
    """The nearest number that a float field can hold."""
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        return math.copysign(math.inf, number)


def _values(field: FieldDescriptor, hints: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Values of a field's type, of which the rules may think this or that."""
    match field.type:
        case F.TYPE_BOOL:
            return st.booleans()
        case F.TYPE_ENUM:
            assert field.enum_type is not None
            numbers = [*field.enum_type.values_by_number, *(n for n in hints if type(n) is int)]
            return st.sampled_from([*numbers, -1, 77, 2**31 - 1])
        case F.TYPE_FLOAT | F.TYPE_DOUBLE:
            near = [n for n in hints if type(n) is float]
            steps = [math.nextafter(n, side) for n in near for side in (math.inf, -math.inf)]
            some = [*near, *steps, 0.0, -0.0, 1.0, math.inf, -math.inf, math.nan]
            floats = st.sampled_from(some) | st.floats()
            return floats.map(_single) if field.type == F.TYPE_FLOAT else floats
        case F.TYPE_STRING | F.TYPE_BYTES:
            texts = [hint for hint in hints if type(hint) is str]
            patterns = [text for text in texts if text.startswith("^")]
            sized = st.builds(
                lambda char, size: char * size,
                st.sampled_from("aZ0é\n🂡"),
                st.sampled_from(_sizes(hints, _LONGEST)),
            )
            joined = st.lists(st.sampled_from([*texts, "a", "b", "Z9", "\n"]), max_size=4).map(
                "".join
            )
            strings = st.one_of(
                sized, joined, st.text(max_size=6), *(st.from_regex(p) for p in patterns[:1])
            )
            if field.type == F.TYPE_STRING:
                return strings.filter(_is_utf8)
            blobs = [hint for hint in hints if type(hint) is bytes]
            return st.sampled_from([*blobs, b"", b"\xff"]) | strings.filter(_is_utf8).map(
                str.encode
            )
        case _:
            low, high = _RANGES[field.type]
            near_int = [n + d for n in hints if type(n) is int for d in (-1, 0, 1)]
            edges = [*near_int, low, high, 0, 1]
            return st.sampled_from([n for n in edges if low <= n <= high])


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


@st.composite
def _messages(draw: st.DrawFn, kind: Any, depth: int = 0) -> Any:
    """A message of a type; each field is set or not, and where it is, near its rules."""
    message = kind()
    if kind.DESCRIPTOR.full_name in _SECONDS:
        message.seconds = draw(st.integers(*_SECONDS[kind.DESCRIPTOR.full_name]))
        return message
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None and depth >= _DEEPEST:
            continue
        if draw(st.integers(0, 3)) == 0:
            continue
        found = field.GetOptions().Extensions[validate_pb2.field]
        _fill(draw, message, field, _hints(found), depth)
    return message


def _fill(
    draw: st.DrawFn, message: Any, field: FieldDescriptor, hints: Sequence[Any], depth: int
) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
        pairs = getattr(message, field.name)
        for _ in range(draw(st.sampled_from(_sizes(hints, 4)))):
            name = draw(_values(key, hints))
            if value.message_type is None:
                pairs[name] = draw(_values(value, hints))
            else:
                within = message_factory.GetMessageClass(value.message_type)
                pairs[name].CopyFrom(draw(_messages(within, depth + 1)))
    elif field.is_repeated:
        size = draw(st.sampled_from(_sizes(hints, _MOST if inner is None else 4)))
        if inner is None:
            getattr(message, field.name).extend([draw(_values(field, hints)) for _ in range(size)])
        else:
            within = message_factory.GetMessageClass(inner)
            for _ in range(size):
                getattr(message, field.name).append(draw(_messages(within, depth + 1)))
    elif inner is not None:
        within = message_factory.GetMessageClass(inner)
        getattr(message, field.name).CopyFrom(draw(_messages(within, depth + 1)))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, draw(_values(field, hints)))


UNDEFINED = "value must be one of the defined enum values"

# --- what protovalidate says -------------------------------------------------------------------


def _element(element: Any) -> str:
    match element.WhichOneof("subscript"):
        case None:
            return str(element.field_name)
        case "bool_key":
            return f"{element.field_name}[{'true' if element.bool_key else 'false'}]"
        case "string_key":
            return f"{element.field_name}[{element.string_key!r}]"
        case other:
            return f"{element.field_name}[{getattr(element, other)}]"


def _by_protovalidate(message: Any) -> list[FieldViolation]:
    """All of protovalidate's violations, but for those within a list or map that is too large."""
    found = [
        FieldViolation(".".join(map(_element, v.proto.field.elements)), v.proto.message)
        for v in protovalidate.collect_violations(message)
    ]
    oversize = tuple(
        f"{v.field}["
        for v in found
        if v.description.startswith(("must contain no more than", "map must be at most"))
    )
    return [v for v in found if not v.field.startswith(oversize or ("\0",))]


def _forgotten(message: Any, prefix: str = "") -> Iterator[FieldViolation]:
    """What protovalidate forgets: enum.defined_only of the items of a list, at whatever depth."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if not field.is_repeated:
            if field.message_type is not None:
                yield from _forgotten(value, f"{path}.")
            continue
        own = field.GetOptions().Extensions[validate_pb2.field].repeated
        if own.HasField("max_items") and len(value) > own.max_items:
            continue
        if field.message_type is not None:
            if not field.message_type.GetOptions().map_entry:
                for index, one in enumerate(value):
                    yield from _forgotten(one, f"{path}[{index}].")
        elif field.enum_type is not None and own.items.enum.defined_only:
            for index, number in enumerate(value):
                if number not in field.enum_type.values_by_number:
                    yield FieldViolation(f"{path}[{index}]", UNDEFINED)


def _assert_equal(message: Any) -> None:
    expected, forgotten = _by_protovalidate(message), list(_forgotten(message))
    found = VALIDATOR.violations(message)
    rest = [one for one in found if one not in forgotten]
    assert rest == expected[: len(rest)]
    assert [one for one in found if one in forgotten] == forgotten[: len(found) - len(rest)]
    assert len(found) == min(len(expected) + len(forgotten), rules.MAX_VIOLATIONS)


_FILES = [module.DESCRIPTOR for module in CONTRACT]
_OF_CONTRACT = [kind for file in _FILES for kind in _types_of(file)]
_REQUESTS = set.union(*map(_requests_of, _FILES))


def test_the_contract_is_here_whole() -> None:
    assert len(_REQUESTS) >= 20
    assert {kind.DESCRIPTOR.full_name for kind in _OF_CONTRACT} >= _REQUESTS


@pytest.mark.parametrize("kind", _OF_CONTRACT, ids=lambda kind: kind.DESCRIPTOR.name)
def test_equal_on_every_message_of_the_contract(kind: Any) -> None:
    @settings(max_examples=30 if kind.DESCRIPTOR.full_name in _REQUESTS else 5)
    @given(_messages(kind))
    def equal(message: Any) -> None:
        _assert_equal(message)

    _assert_equal(kind())
    equal()


@pytest.mark.parametrize("name", COMPILED)
def test_equal_on_every_other_rule(name: str) -> None:
    @settings(max_examples=50)
    @given(_messages(EXTRA[name]))
    def equal(message: Any) -> None:
        _assert_equal(message)

    _assert_equal(EXTRA[name]())
    equal()


_NUMBERS = sorted(("float", "double", *(k for k in rulebook.SCALARS if "int" in k or "fix" in k)))


@settings(max_examples=40)
@given(
    kind=st.sampled_from(_NUMBERS),
    below=st.sampled_from(["lt", "lte", ""]),
    above=st.sampled_from(["gt", "gte", ""]),
    bounds=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_equal_on_any_range(kind: str, below: str, above: str, bounds: tuple[int, int]) -> None:
    """Every kind of number, every pair of bounds, in order, equal or crossed."""
    file = descriptor_pb2.FileDescriptorProto(
        name="range.proto", syntax="proto3", dependency=["buf/validate/validate.proto"]
    )
    one = file.message_type.add(name="Range").field.add(name="it", number=1, label=1)
    one.type = getattr(F, f"TYPE_{kind.upper()}")
    own = getattr(one.options.Extensions[validate_pb2.field], kind)
    for bound, number in zip((below, above), bounds, strict=True):
        if bound:
            setattr(own, bound, number)
    pool = descriptor_pool.DescriptorPool()
    for needed in (*validate_pb2.DESCRIPTOR.dependencies, validate_pb2.DESCRIPTOR):
        pool.AddSerializedFile(needed.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    kind_of_message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Range"))
    for number in range(6):
        _assert_equal(kind_of_message(it=number))
    if kind in ("float", "double"):
        _assert_equal(kind_of_message(it=math.nan))


# --- what is compiled, and what is not ------------------------------------------------------------


def test_no_message_of_the_contract_is_slow() -> None:
    """A rule that only protovalidate knows would cost the event loop milliseconds a request."""
    fresh = rules.Validator()
    with structlog.testing.capture_logs() as logs:
        for kind in [*_OF_CONTRACT, *(EXTRA[name] for name in COMPILED)]:
            fresh.violations(kind())
    assert logs == []


def _outcome(check: Callable[[Any], Sequence[Any]], message: Any) -> Any:
    try:
        return check(message)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", SLOW)
def test_a_rule_unknown_here_leaves_its_type_to_protovalidate(name: str) -> None:
    fresh = rules.Validator()
    with structlog.testing.capture_logs() as logs:
        fresh.violations(EXTRA[name]())
    slow = "Slow" if name == "HoldsSlow" else name
    assert [entry["message_type"] for entry in logs] == [f"tollbook.test.rules.v1.{slow}"]

    @settings(max_examples=10)
    @given(_messages(EXTRA[name]))
    def equal(message: Any) -> None:
        assert _outcome(fresh.violations, message) == _outcome(_by_protovalidate, message)

    with structlog.testing.capture_logs() as logs:
        equal()
    assert logs == []  # told once


def test_slow_ones_are_checked_wherever_they_stand() -> None:
    slow = EXTRA["Slow"]
    message = EXTRA["HoldsSlow"](one=slow(a="x", b="x"), many=[slow(a="y"), slow()])
    message.named["k"].a = ""
    assert VALIDATOR.violations(message) == _by_protovalidate(message)
    assert {broken.field for broken in VALIDATOR.violations(message)} == {
        *("name", "one", "many[1]", "many[1].a", "named['k']", "named['k'].a")
    }


@pytest.mark.parametrize("name", SENSELESS)
def test_rules_that_make_no_sense_raise_what_protovalidate_raises(name: str) -> None:
    message = EXTRA[name]()
    if name == "UniqueMessages":
        message.it.add()
    elif name != "WrongType":
        message.it += "ab"
    raised = _outcome(protovalidate.collect_violations, message)
    assert isinstance(raised, type)
    assert issubclass(raised, Exception)
    assert _outcome(rules.Validator().violations, message) == raised


# --- where the two differ ------------------------------------------------------------------------


def test_what_stands_in_a_list_that_is_too_long_is_not_looked_at() -> None:
    bad = inference_pb2.ChatMessage(role="nobody")
    chat = inference_pb2.ChatPrompt(messages=[bad] * 4097)
    assert VALIDATOR.violations(chat) == [
        FieldViolation("messages", "must contain no more than 4096 item(s)")
    ]
    maps = EXTRA["Maps"](sized={"a": 1}, both={"": "", "1": "", "2": "", "3": ""})
    for key in "abc":
        maps.messages[key].len = b"broken"
    assert VALIDATOR.violations(maps) == [
        FieldViolation("both", "map must be at most 3 entries"),
        FieldViolation("messages", "map must be at most 2 entries"),
    ]
    assert len(protovalidate.collect_violations(maps)) > 2


def test_the_first_violations_are_told_and_no_more() -> None:
    good, bad = (inference_pb2.ChatMessage(role=role) for role in ("user", "nobody"))
    prompt = inference_pb2.ChatPrompt(messages=[good, *[bad] * 4095])
    spec = inference_pb2.GenerationSpec(model="m", chat=prompt)
    found = VALIDATOR.violations(inference_pb2.GenerateRequest(spec=spec))
    assert [broken.field for broken in found] == [
        f"spec.chat.messages[{index}].role" for index in range(1, rules.MAX_VIOLATIONS + 1)
    ]
    stops = EXTRA["Lists"](colours=[0] * 300, sized=["a"], blobs=[b"a", b"b"], bytes=[{}])
    _assert_equal(stops)
    assert len(VALIDATOR.violations(stops)) == rules.MAX_VIOLATIONS


def test_elements_that_are_no_value_of_their_enum_are_told() -> None:
    message = EXTRA["DefinedItems"](items=[0, 1, 2], values={"a": 5, "b": 9})
    assert VALIDATOR.violations(message) == [
        FieldViolation("items[2]", UNDEFINED),
        FieldViolation("values['b']", UNDEFINED),
    ]
    assert protovalidate.collect_violations(message) == []


def test_a_time_that_python_cannot_hold_does_not_raise() -> None:
    reading = usage_pb2.EngineReading(engine_id="e")
    reading.reading_time.seconds = 253402300800
    with pytest.raises(OverflowError):
        protovalidate.collect_violations(reading)
    assert VALIDATOR.violations(reading) == []


# --- values too large to draw --------------------------------------------------------------------


@pytest.mark.parametrize("char", ["a", "é", "€", "🂡"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_equal_at_the_limit_of_a_long_text(char: str, more: int) -> None:
    text = char * (4194304 // len(char.encode())) + "a" * (4194304 % len(char.encode()) + more)
    text = text if more >= 0 else text[:-1]
    _assert_equal(inference_pb2.ChatMessage(role="user", content=text))


@pytest.mark.parametrize("size", [1048576, 1048577])
def test_equal_at_the_limit_of_a_long_payload(size: int) -> None:
    _assert_equal(ledger_pb2.AppendRequest(log="l", idempotency_key="k", payload=b"x" * size))


def test_a_pattern_ends_where_re2_ends_it() -> None:
    """Python's `$` would let a last newline pass."""
    broken = [FieldViolation("currency", "does not match regex pattern `^[A-Z]{3}$`")]
    amount = money_pb2.Amount(currency="EUR\n", amount_pico="0")
    assert VALIDATOR.violations(amount) == broken == _by_protovalidate(amount)
