"""A price file as rate cards: one card a provider, one version of it for each date prices change.

A model stands in its card as PROVIDER/MODEL, so that two providers' models of
one name stay apart. The same file gives the same text, byte for byte.

- A key of the file becomes a line by the dimensions it names. Of the lines
  that match a leaf the more special one wins; `priority` orders what is not
  comparable (modality below kind below hours), as the file's own rules do.
- A tier by input tokens becomes tiers by context_length, mode whole_request,
  boundary gt: beyond its start all tokens cost the tier's price.
- Daily hours become a time window; the model's other hours keep its other price.
- A start date begins a version of the whole card. A price without a date
  holds from 1970 on: the file does not say since when.

What the file leaves unpriced (the output of an embedding model) has no line:
it waits in suspense and is never free by an oversight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from pricing.domain.imports.model_names import ModelNames, NamedModel, NamedProvider
from pricing.domain.imports.price_file import Hours, Model, Price, Provider, Variant

CARD_PREFIX: Final = "genai-prices/"
NO_DATE: Final = "1970-01-01"
_PICO: Final = 10**12
_TOKENS: Final = 1_000_000
_PER: Final = (1, 1000, 1_000_000)
"""Numbers of units that a card's price may be for."""
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/+-]*")
_NOT_PLAIN: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_LINE_ID_OTHER: Final = re.compile(r"[^A-Za-z0-9._:/@+-]")
_MAX_ID_CHARS: Final = 96

_MODALITY_BIT: Final = 1
_KIND_BIT: Final = 2
_HOURS_BIT: Final = 8


class Key(NamedTuple):
    """What a key of the file prices: unit, number of units, dimensions of the leaf."""

    unit: str
    per: int
    match: tuple[tuple[str, str], ...]

    @property
    def priority(self) -> int:
        """Orders keys that could match one leaf and name as many dimensions."""
        named = dict(self.match)
        return (_MODALITY_BIT if "modality" in named else 0) + (
            _KIND_BIT if "token_kind" in named else 0
        )


def _token_keys() -> Iterator[tuple[str, Key]]:
    """Keys of tokens: direction, what the cache or the tokens did, how long, and modality."""
    parts: list[tuple[str, str, dict[str, str], str]] = [
        ("input", "", {"direction": "in"}, ""),
        ("cache", "read", {"direction": "in", "cache_use": "read"}, ""),
        ("cache", "write", {"direction": "in", "cache_use": "write"}, ""),
        ("cache", "write", {"direction": "in", "cache_use": "write", "cache_ttl": "5m"}, "_5m"),
        ("cache", "write", {"direction": "in", "cache_use": "write", "cache_ttl": "1h"}, "_1h"),
        ("input", "tool", {"direction": "in", "token_kind": "tool"}, ""),
        ("output", "", {"direction": "out"}, ""),
        ("output", "reasoning", {"direction": "out", "token_kind": "reasoning"}, ""),
        ("output", "citation", {"direction": "out", "token_kind": "citation"}, ""),
    ]
    for first, last, dimensions, ttl in parts:
        for modality in ("", "text", "audio", "image", "video"):
            name = "_".join(part for part in (first, modality, last) if part) + ttl + "_mtok"
            named = dimensions | ({"modality": modality} if modality else {})
            yield name, Key("token", _TOKENS, tuple(sorted(named.items())))


KEYS: Final[dict[str, Key]] = {
    **dict(_token_keys()),
    "requests_kcount": Key("request", 1000, ()),
    "web_searches_kcount": Key("tool_call", 1000, (("attribute", "web_search"),)),
    "social_searches_kcount": Key("tool_call", 1000, (("attribute", "social_search"),)),
    "storage_searches_kcount": Key("tool_call", 1000, (("attribute", "storage_search"),)),
    "code_executions_kcount": Key("tool_call", 1000, (("attribute", "code_execution"),)),
    "rerank_searches_kcount": Key("rerank", 1000, ()),
    "input_document_kpages": Key("page", 1000, ()),
    "input_annotated_document_kpages": Key("page", 1000, (("attribute", "annotated"),)),
    "audio_hours": Key("audio_ms", 3_600_000, ()),
    "input_audio_hours": Key("audio_ms", 3_600_000, (("direction", "in"),)),
    "output_audio_hours": Key("audio_ms", 3_600_000, (("direction", "out"),)),
}
"""Every key of the file that a line can stand for. The rest is listed by name."""

_TIER_WORDS: Final = {"batch": "batch", "flex": "flex", "priority": "priority", "fast": "fast"}


class Rounded(NamedTuple):
    """A price that is no whole number of pico-units for one unit, and what it became."""

    model: str
    key: str
    stated: str
    used: str


class Import(NamedTuple):
    """What a file became: cards by file name, the names of models, and what to know of it."""

    cards: Mapping[str, str]
    names: ModelNames
    models: int
    lines: int
    rounded: tuple[Rounded, ...]
    not_expressed: tuple[tuple[str, str], ...]
    """(PROVIDER/MODEL, what of it). Empty: everything stands in the cards."""
    without_output: tuple[str, ...]
    """Models whose output the file does not price."""


class _Notes:
    def __init__(self) -> None:
        self.rounded: dict[tuple[str, str, str], Rounded] = {}
        self.not_expressed: dict[tuple[str, str], None] = {}
        self.without_output: dict[str, None] = {}
        self.lines = 0


def import_prices(providers: Iterable[Provider]) -> Import:
    """Turn a price file into cards."""
    notes = _Notes()
    cards: dict[str, str] = {}
    names: list[NamedProvider] = []
    models = 0
    for provider in providers:
        models += len(provider.models)
        names.append(
            NamedProvider(
                provider.provider_id,
                provider.model_clause,
                provider.provider_clause,
                provider.fallbacks,
                tuple(NamedModel(model.model_id, model.clause) for model in provider.models),
            )
        )
        dates = sorted({NO_DATE} | {date for model in provider.models for date in _dates(model)})
        for number, date in enumerate(dates, start=1):
            text = _card(provider, date, notes)
            if text:
                cards[f"{provider.provider_id}.{number:02d}.yaml"] = text
    return Import(
        cards,
        ModelNames(names),
        models,
        notes.lines,
        tuple(notes.rounded.values()),
        tuple(notes.not_expressed),
        tuple(notes.without_output),
    )


def _dates(model: Model) -> Iterator[str]:
    dates = [one.start_date for one in model.alternatives]
    dates += [one.start_date for one in model.variants]
    yield from (date for date in dates if date)


class _Shelf(NamedTuple):
    """Prices of a model on a date: those that hold, and in which hours or tier."""

    hours: Hours | None
    tier: str
    prices: Mapping[str, Price]
    rank: int = 0
    """Of hours: the higher goes before the lower, should they overlap."""


def _card(provider: Provider, date: str, notes: _Notes) -> str:
    lines: list[str] = []
    windows: dict[str, Hours] = {}
    ids: set[str] = set()
    for model in provider.models:
        name = f"{provider.provider_id}/{model.model_id}"
        shelves = _shelves(model, date, name, notes)
        if not any("output_mtok" in shelf.prices for shelf in shelves):
            notes.without_output[name] = None
        for shelf in _completed(shelves):
            window = ""
            if shelf.hours is not None:
                window = _window_name(shelf.hours)
                windows[window] = shelf.hours
            for key, price in shelf.prices.items():
                if key not in KEYS:
                    notes.not_expressed[name, f"{key}: no unit for it"] = None
                    continue
                line_id = _line_id(name, key, window, shelf.tier, ids)
                lines.append(_line(line_id, name, key, price, window, shelf, notes))
    if not lines:
        return ""
    notes.lines += len(lines)
    head = [
        f"# Public prices of {provider.provider_id}, as genai-prices (MIT) lists them.",
        f"card: {CARD_PREFIX}{provider.provider_id}",
        "currency: USD",
        f"effective_from: {date}T00:00:00Z",
    ]
    if windows:
        head.append("time_windows:")
        head += [
            f'  {window}: {{from: "{hours.start}", to: "{hours.end}"}}'
            for window, hours in sorted(windows.items())
        ]
    return "\n".join([*head, "lines:", *lines]) + "\n"


def _shelves(model: Model, date: str, name: str, notes: _Notes) -> list[_Shelf]:
    """What holds on a date: prices of daily hours first, then those of all other hours."""
    found: list[_Shelf] = []
    for rank, one in reversed(list(enumerate(model.alternatives, start=1))):
        if one.start_date and one.start_date > date:
            continue
        found.append(_Shelf(one.hours, "", one.prices, rank if one.hours else 0))
        if one.hours is None:
            break
    else:
        # In no hours and from no date on: the file says that the first holds.
        found.append(_Shelf(None, "", model.alternatives[0].prices))
    standard = found[-1].prices
    for variant in model.variants:
        if variant.start_date and variant.start_date > date:
            continue
        if not variant.prices and _is_standard(variant):
            continue
        tier = _tier(variant)
        if not tier or variant.hours is not None:
            what = ", ".join(f"{key}={word}" for key, word in sorted(variant.when.items()))
            notes.not_expressed[name, f"prices when {what}"] = None
        elif not any(shelf.tier == tier for shelf in found):
            # Prices that a variant leaves out are the standard ones.
            found.append(_Shelf(None, tier, {**standard, **variant.prices}))
    return found


def _tier(variant: Variant) -> str:
    """The service tier that a variant is for; empty when it is for something else."""
    if len(variant.when) != 1:
        return ""
    word = next(iter(variant.when.values()))
    return _TIER_WORDS.get(word, "")


def _is_standard(variant: Variant) -> bool:
    """Whether a variant says that a tier is the standard one."""
    return dict(variant.when) == {"service_tier": "default"}


def _completed(shelves: list[_Shelf]) -> list[_Shelf]:
    """Give the prices of daily hours every key that the others have.

    Else a cached token in those hours would find the other hours' cache price
    beside its own hours' input price. A key that hours leave out is priced by
    the nearest that they have, as the file's own rules do.
    """
    keys = list(dict.fromkeys(key for shelf in shelves for key in shelf.prices if not shelf.tier))
    done: list[_Shelf] = []
    for shelf in shelves:
        if shelf.hours is None and len(shelves) > 1 and not shelf.tier:
            done.append(shelf)
            continue
        prices = dict(shelf.prices)
        for key in keys:
            if shelf.hours is not None and key not in prices and key in KEYS:
                nearest = _nearest(KEYS[key], shelf.prices)
                if nearest is not None:
                    prices[key] = nearest
        done.append(shelf._replace(prices=prices))
    return done


def _nearest(wanted: Key, prices: Mapping[str, Price]) -> Price | None:
    """The price of the most special key that covers a key."""
    covering = [
        (len(KEYS[key].match), price)
        for key, price in prices.items()
        if key in KEYS
        and KEYS[key].unit == wanted.unit
        and set(KEYS[key].match) <= set(wanted.match)
    ]
    return max(covering, key=lambda found: found[0])[1] if covering else None


def _window_name(hours: Hours) -> str:
    return f"utc-{hours.start.replace(':', '')}-{hours.end.replace(':', '')}"


def _line_id(name: str, key: str, window: str, tier: str, taken: set[str]) -> str:
    """A line's id: the model and the key, in the characters that ids have."""
    model = _LINE_ID_OTHER.sub("-", name.partition("/")[2]).lstrip("._:/@+-")[:_MAX_ID_CHARS]
    what = key.removesuffix("_mtok").replace("_", "-")
    base = ".".join(part for part in (model, what, window, tier) if part)
    line_id, number = base, 1
    while line_id in taken:
        number += 1
        line_id = f"{base}.{number}"
    taken.add(line_id)
    return line_id


def _line(
    line_id: str, name: str, key: str, price: Price, window: str, shelf: _Shelf, notes: _Notes
) -> str:
    known = KEYS[key]
    match = {"model": name, **dict(known.match)}
    if window:
        match["time_window"] = window
    if shelf.tier:
        match["service_tier"] = shelf.tier
    priority = known.priority + _HOURS_BIT * shelf.rank
    words = ", ".join(f"{dimension}: {_quoted(word)}" for dimension, word in match.items())
    per = known.per if known.per in _PER else 1
    parts = [f"id: {_quoted(line_id)}"]
    if known.unit != "token":
        parts.append(f"unit: {known.unit}")
    parts.append(f"match: {{{words}}}")
    if per != 1:
        parts.append(f"per: {per}")
    parts.append(f'price: "{_shown(price.base, per, name, key, notes)}"')
    if price.tiers:
        steps = ", ".join(
            f'{{over: {step.over}, price: "{_shown(step.price, per, name, key, notes)}"}}'
            for step in price.tiers
        )
        parts.append(
            f"tiers: {{by: context_length, mode: whole_request, boundary: gt, steps: [{steps}]}}"
        )
    if priority:
        parts.append(f"priority: {priority}")
    return f"  - {{{', '.join(parts)}}}"


def _shown(price: Decimal, per: int, name: str, key: str, notes: _Notes) -> str:
    """A price of the file as the card writes it, per `per` units.

    A card's price is a whole number of pico-units for one unit. One that is
    not is rounded to the nearest, half to even, and noted by name.
    """
    pico_of_one = Fraction(price) * _PICO / KEYS[key].per
    whole_pico = round(pico_of_one)
    used = _decimal(whole_pico * per)
    if whole_pico != pico_of_one:
        stated = f"{price:f} per {KEYS[key].per}"
        notes.rounded[name, key, stated] = Rounded(name, key, stated, f"{used} per {per}")
    return used


def _decimal(amount_pico: int) -> str:
    whole, fraction = divmod(amount_pico, _PICO)
    digits = f"{fraction:012d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _quoted(word: str) -> str:
    """A word as YAML reads it back: plain where that is safe, else in quotes."""
    return word if _PLAIN.fullmatch(word) and word.lower() not in _NOT_PLAIN else json.dumps(word)
