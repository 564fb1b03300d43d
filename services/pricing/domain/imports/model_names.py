"""Which model of which provider a name in a response means, by clauses such as `starts_with`.

A price list knows a model under one id; services answer with many names of
it. The list says which by clauses; their order is the list's, and the first
that holds wins. Comparison ignores upper and lower case; a regular expression
is looked for in the name in lower case. A list from elsewhere cannot make a
regular expression run for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from typing import Any, Final, NamedTuple

import re2

FORMAT: Final = 1
MAX_NAME_CHARS: Final = 256
_MAX_DEPTH: Final = 8
_MAX_REMEMBERED: Final = 10_000
_WORDS: Final = ("starts_with", "ends_with", "contains", "equals", "regex")
_COMPACT_DATE: Final = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Clause(NamedTuple):
    """One test of a name: `kind` is one of the words above, or `or` / `and` of others."""

    kind: str
    text: str
    parts: tuple[Clause, ...]

    def holds(self, name: str) -> bool:
        """Tell whether a name, in lower case, passes."""
        match self.kind:
            case "starts_with":
                return name.startswith(self.text)
            case "ends_with":
                return name.endswith(self.text)
            case "contains":
                return self.text in name
            case "equals":
                return name == self.text
            case "regex":
                return _compiled(self.text).search(name) is not None
            case "or":
                return any(part.holds(name) for part in self.parts)
            case _:
                return all(part.holds(name) for part in self.parts)

    def data(self) -> dict[str, Any]:
        """The clause as a price list writes it."""
        if self.kind in ("or", "and"):
            return {self.kind: [part.data() for part in self.parts]}
        return {self.kind: self.text}


_QUIET: Final = re2.Options()
_QUIET.log_errors = False
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_OPEN_REPEAT: Final = re.compile(r"[*+]|\{[0-9]*,\}")
_MAX_OPEN_REPEATS: Final = 2


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    """A pattern, ready to search. Errors: ValueError.

    RE2 has no look-ahead. A pattern with one runs by Python's own engine, and
    then only if nothing in it can be tried in very many ways.
    """
    try:
        return re2.compile(pattern, options=_QUIET)
    except re2.error as error:
        if _REPEATED_GROUP.search(pattern) or len(_OPEN_REPEAT.findall(pattern)) > (
            _MAX_OPEN_REPEATS
        ):
            raise ValueError(f"{pattern[:80]!r} is no regular expression: {error}") from None
    try:
        return re.compile(pattern)
    except (re.error, RecursionError) as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression: {error}") from None


def read_clause(item: Any, depth: int = 0) -> Clause:
    """Read a clause. Errors: ValueError that says what is wrong."""
    if not isinstance(item, dict) or len(item) != 1 or depth > _MAX_DEPTH:
        raise ValueError("a clause is an object with one of " + ", ".join((*_WORDS, "or", "and")))
    kind, value = next(iter(item.items()))
    if kind in ("or", "and"):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{kind!r} is a list of clauses")
        return Clause(kind, "", tuple(read_clause(part, depth + 1) for part in value))
    if kind not in _WORDS or not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
        raise ValueError(f"there is no clause {str(item)[:80]}")
    if kind != "regex":
        return Clause(kind, value.lower(), ())
    _compiled(value)
    return Clause(kind, value, ())


class NamedModel(NamedTuple):
    """A model's id and the test of its names."""

    model_id: str
    clause: Clause


class NamedProvider(NamedTuple):
    """A provider's id, the tests that find it, where else it looks, and its models in order."""

    provider_id: str
    model_clause: Clause | None
    provider_clause: Clause | None
    fallbacks: tuple[str, ...]
    models: tuple[NamedModel, ...]


class ModelNames:
    """Names looked up. Answers are remembered, up to a limit, and only ever a memory."""

    def __init__(self, providers: Iterable[NamedProvider]) -> None:
        self._providers = {provider.provider_id: provider for provider in providers}
        self._found: dict[tuple[str, str], str] = {}
        self._full_names = {
            f"{provider.provider_id}/{model.model_id}"
            for provider in self._providers.values()
            for model in provider.models
        }

    def card_model(self, provider: str, name: str) -> str:
        """PROVIDER/MODEL as cards have it, or empty: no provider or no model of this name.

        An empty provider: the name may be a PROVIDER/MODEL, else it is the first
        provider's whose models are called like this.
        """
        if not provider and name in self._full_names:
            # Also where the list has no price for it: then no other model's will do.
            return name
        asked = (provider, name)
        found = self._found.get(asked)
        if found is None:
            found = self._look_up(provider.lower(), name.lower())
            if len(self._found) < _MAX_REMEMBERED:
                self._found[asked] = found
        return found

    def _look_up(self, provider: str, name: str) -> str:
        home = self._provider(provider, name)
        if home is None:
            return ""
        # Some answer with the date of a model written together: try it as the list has it.
        for spelling in dict.fromkeys((name, _spaced_date(name))):
            for model_id in _models(home, spelling):
                return f"{home.provider_id}/{model_id}"
            for other in home.fallbacks:
                if other in self._providers:
                    for model_id in _models(self._providers[other], spelling):
                        return f"{other}/{model_id}"
        return ""

    def _provider(self, provider: str, name: str) -> NamedProvider | None:
        if provider:
            if provider in self._providers:
                return self._providers[provider]
            for one in self._providers.values():
                if one.provider_clause is not None and one.provider_clause.holds(provider):
                    return one
            return None
        for one in self._providers.values():
            if one.model_clause is not None and one.model_clause.holds(name):
                return one
        return None

    def document(self) -> str:
        """All of it as JSON, the same text for the same names."""
        providers = [
            {
                "id": one.provider_id,
                "model_match": one.model_clause.data() if one.model_clause else None,
                "provider_match": one.provider_clause.data() if one.provider_clause else None,
                "fallback": list(one.fallbacks),
                "models": [[model.model_id, model.clause.data()] for model in one.models],
            }
            for one in self._providers.values()
        ]
        return json.dumps({"format": FORMAT, "providers": providers}, indent=1) + "\n"


def read_document(text: str) -> ModelNames:
    """Read what `document` wrote. Errors: ValueError."""
    try:
        data: Mapping[str, Any] = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not known here")
        return ModelNames(
            NamedProvider(
                str(item["id"]),
                read_clause(item["model_match"]) if item["model_match"] else None,
                read_clause(item["provider_match"]) if item["provider_match"] else None,
                tuple(str(other) for other in item["fallback"]),
                tuple(
                    NamedModel(str(model_id), read_clause(clause))
                    for model_id, clause in item["models"]
                ),
            )
            for item in data["providers"]
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a list of model names: {error!r}"[:200]) from None


def _models(provider: NamedProvider, name: str) -> Iterable[str]:
    return (model.model_id for model in provider.models if model.clause.holds(name))


def _spaced_date(name: str) -> str:
    """`-20251211` as `-2025-12-11`, where it is a date."""

    def spaced(found: re.Match[str]) -> str:
        try:
            return found[1] + date(int(found[2]), int(found[3]), int(found[4])).isoformat()
        except ValueError:
            return found[0]

    return _COMPACT_DATE.sub(spaced, name)
