"""What a field of OpenAI's takes in several forms, such as a text or a list: read by the form sent.

A form is told by its JSON type alone, before anything in it is read. So what is wrong inside is
told of the form that was meant, and a value of no form that the field takes is told all of them.
Pydantic puts the form's tag into an error's place; `field_of` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, Discriminator
from pydantic_core import ErrorDetails

# Tags of forms: names that no field of a body has.
TEXT: Final = "<text>"
LIST: Final = "<list>"
OBJECT: Final = "<object>"
TEXTS: Final = "<texts>"
NUMBERS: Final = "<numbers>"
LISTS: Final = "<lists>"
_TAGS: Final = frozenset({TEXT, LIST, OBJECT, TEXTS, NUMBERS, LISTS})

_UNKNOWN: Final = "extra_forbidden"


def by_form(forms: str) -> Discriminator:
    """Tells TEXT, LIST and OBJECT apart; `forms` names in words those that the field takes."""
    return _told(_form, forms)


def by_items(forms: str) -> Discriminator:
    """As `by_form`, and lists by their first item: TEXTS, NUMBERS, LISTS. An empty one is TEXTS."""
    return _told(_form_of_items, forms)


def _told(form: Callable[[object], str | None], forms: str) -> Discriminator:
    return Discriminator(
        form, custom_error_type="no_such_form", custom_error_message=f"Input should be {forms}"
    )


def _form(value: object) -> str | None:
    match value:
        case str():
            return TEXT
        case list():
            return LIST
        case dict() | BaseModel():
            return OBJECT
    return None


def _form_of_items(value: object) -> str | None:
    match value:
        case [list(), *_]:
            return LISTS
        case [int() | float(), *_]:
            return NUMBERS
        case list():
            return TEXTS
    return _form(value)


def field_of(problem: ErrorDetails) -> str:
    """The field that an error is about, as a path: `messages.0.content`; empty: the whole body."""
    place = problem["loc"]
    # A field that nobody knows has whatever name the caller gave it, a tag's perhaps.
    last = place[-1:] if is_unknown(problem) else ()
    path = [part for part in place[: len(place) - len(last)] if part not in _TAGS]
    return ".".join(str(part) for part in (*path, *last))


def is_unknown(problem: ErrorDetails) -> bool:
    """Whether the error is that there is no such field."""
    return problem["type"] == _UNKNOWN
