"""Fields of a request that this version's contract does not have: refused, not passed over.

protobuf takes them in and says nothing, so a caller of a newer contract would be charged for an
answer that it did not ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from kernel import errors


def refuse_unread(request: Message) -> None:
    """Errors: InvalidArgument that names the message within, and the field by its number."""
    # Nearly no request has any: one copy is quicker than to look into each message.
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() == request.ByteSize():
        return
    place, number = next(_unread(request, ""))
    raise errors.InvalidArgument.of_field(
        place,
        f"{place or 'the request'} has a field {number} that this version does not know: what it"
        " asks for would not be done, so leave it out",
    )


def _unread(message: Message, place: str) -> Iterator[tuple[str, int]]:
    """(path of a message, number of a field that it should not have), in order of the contract."""
    unread = UnknownFieldSet(message)
    for index in range(len(unread)):
        yield place, unread[index].field_number
    prefix = f"{place}." if place else ""
    for described, value in message.ListFields():
        if described.message_type is None:
            continue
        values: Any = value
        if isinstance(values, Message):
            yield from _unread(values, prefix + described.name)
        elif described.message_type.GetOptions().map_entry:
            for key in sorted(values):
                if isinstance(values[key], Message):
                    yield from _unread(values[key], f"{prefix}{described.name}[{key!r}]")
        else:
            for index, item in enumerate(values):
                yield from _unread(item, f"{prefix}{described.name}[{index}]")
