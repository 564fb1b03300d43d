"""The published data file of genai-prices (MIT), read: providers, models, prices, their dates.

Source: github.com/pydantic/genai-prices, prices/data.schema.json and
prices/data_slim.schema.json; read as well is the form with `units` and
`providers` beside each other. Numbers are read as the decimals they are
written as: no float is made of them.

What is not about prices (descriptions, links, how to read usage) is not read.
What is about prices and not known here is an error that names its place, so
that no price is lost in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

from pricing.domain.imports.model_names import Clause, read_clause

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_MODELS: Final = 100_000
MAX_ALTERNATIVES: Final = 100
"""Of a model's prices: each that holds by the hour takes a priority of its card."""

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CLOCK: Final = re.compile(r"([0-9]{2}:[0-5][0-9](?::[0-5][0-9])?)(?:\.0+)?(Z|\+00:00)?")
_PROVIDER_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}")


class PriceFileError(ValueError):
    """The file is not a price list of this form; says where and what is wrong."""


class TierPrice(NamedTuple):
    """From beyond so many input tokens of a request on: another price for all of them."""

    over: int
    price: Decimal


class Price(NamedTuple):
    """US dollars per the key's number of units, with its tiers by input tokens."""

    base: Decimal
    tiers: tuple[TierPrice, ...]


class Hours(NamedTuple):
    """A daily time of UTC, its end not included; over midnight when the end is not later."""

    start: str
    end: str


class Alternative(NamedTuple):
    """Prices by key, and when they hold: from a date on, in daily hours, or always."""

    start_date: str
    hours: Hours | None
    prices: Mapping[str, Price]


class Variant(NamedTuple):
    """Prices by key for requests that say so, instead of those that hold otherwise."""

    when: Mapping[str, str]
    start_date: str
    hours: Hours | None
    prices: Mapping[str, Price]


class Model(NamedTuple):
    """A model. Of its alternatives the last that holds applies, else the first."""

    model_id: str
    clause: Clause
    alternatives: tuple[Alternative, ...]
    variants: tuple[Variant, ...]


class Provider(NamedTuple):
    """A provider, with what finds it and its models by name."""

    provider_id: str
    model_clause: Clause | None
    provider_clause: Clause | None
    fallbacks: tuple[str, ...]
    models: tuple[Model, ...]


def read_price_file(data: bytes) -> tuple[Provider, ...]:
    """Read a data file, slim or full. Errors: PriceFileError."""
    try:
        top = json.loads(data, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PriceFileError(f"not JSON: {str(error)[:200]}") from None
    providers = top.get("providers") if isinstance(top, dict) else top
    if not isinstance(providers, list) or not providers:
        raise PriceFileError("not a price list: a list of providers is needed")
    found = tuple(_provider(item, f"providers[{at}]") for at, item in enumerate(providers))
    ids = [provider.provider_id for provider in found]
    if len(set(ids)) != len(ids):
        raise PriceFileError("two providers have the same id")
    if sum(len(provider.models) for provider in found) > MAX_MODELS:
        raise PriceFileError(f"more than {MAX_MODELS} models")
    return found


def _no_constant(text: str) -> Decimal:
    raise ValueError(f"{text} is no number")


def _object(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise PriceFileError(f"{where}: an object is needed")
    return item


def _text(item: Any, where: str) -> str:
    if not isinstance(item, str) or not item or len(item) > 300 or not item.isprintable():
        raise PriceFileError(f"{where}: a printable text is needed")
    return item


def _provider(item: Any, where: str) -> Provider:
    data = _object(item, where)
    provider_id = _text(data.get("id"), f"{where}.id")
    if not _PROVIDER_ID.fullmatch(provider_id):
        raise PriceFileError(f"{where}.id: {provider_id!r} is not 1-41 of a-z 0-9 . _ -")
    models = data.get("models")
    if not isinstance(models, list):
        raise PriceFileError(f"{where}.models: a list is needed")
    fallbacks = data.get("fallback_model_providers") or []
    if not isinstance(fallbacks, list):
        raise PriceFileError(f"{where}.fallback_model_providers: a list is needed")
    found = Provider(
        provider_id,
        _clause(data.get("model_match"), f"{where}.model_match"),
        _clause(data.get("provider_match"), f"{where}.provider_match"),
        tuple(_text(name, f"{where}.fallback_model_providers") for name in fallbacks),
        tuple(_model(model, f"{where}.models[{at}]") for at, model in enumerate(models)),
    )
    ids = [model.model_id for model in found.models]
    if len(set(ids)) != len(ids):
        raise PriceFileError(f"{where}: two models have the same id")
    return found


def _clause(item: Any, where: str) -> Clause | None:
    if item is None:
        return None
    try:
        return read_clause(item)
    except ValueError as error:
        raise PriceFileError(f"{where}: {error}") from None


def _model(item: Any, where: str) -> Model:
    data = _object(item, where)
    model_id = _text(data.get("id"), f"{where}.id")
    where = f"{where} ({model_id})"
    clause = _clause(data.get("match"), f"{where}.match")
    if clause is None:
        raise PriceFileError(f"{where}.match is missing")
    prices = data.get("prices")
    if isinstance(prices, list):
        if not 1 <= len(prices) <= MAX_ALTERNATIVES:
            raise PriceFileError(f"{where}.prices: 1 to {MAX_ALTERNATIVES} are read")
        alternatives = tuple(
            _alternative(one, f"{where}.prices[{at}]") for at, one in enumerate(prices)
        )
    else:
        alternatives = (Alternative("", None, _prices(prices, f"{where}.prices")),)
    variants = data.get("price_variants") or []
    if not isinstance(variants, list):
        raise PriceFileError(f"{where}.price_variants: a list is needed")
    return Model(
        model_id,
        clause,
        alternatives,
        tuple(_variant(one, f"{where}.price_variants[{at}]") for at, one in enumerate(variants)),
    )


def _alternative(item: Any, where: str) -> Alternative:
    data = _object(item, where)
    start_date, hours = _constraint(data, where)
    return Alternative(start_date, hours, _prices(data.get("prices"), f"{where}.prices"))


def _variant(item: Any, where: str) -> Variant:
    data = _object(item, where)
    when = _object(data.get("when"), f"{where}.when")
    start_date, hours = _constraint(data, where)
    return Variant(
        {_text(name, where): _text(word, where) for name, word in when.items()},
        start_date,
        hours,
        _prices(data.get("prices"), f"{where}.prices"),
    )


def _constraint(data: Mapping[str, Any], where: str) -> tuple[str, Hours | None]:
    item = data.get("constraint")
    if item is None:
        return "", None
    where = f"{where}.constraint"
    constraint = _object(item, where)
    names = set(constraint) - {"type"}
    if names == {"start_date"}:
        date = constraint["start_date"]
        try:
            if not isinstance(date, str) or not _DATE.fullmatch(date):
                raise ValueError
            datetime.fromisoformat(date).replace(tzinfo=UTC)
        except ValueError:
            raise PriceFileError(f"{where}: {date!r} is no date") from None
        return date, None
    if names == {"start_time", "end_time"}:
        return "", Hours(
            _clock(constraint["start_time"], where), _clock(constraint["end_time"], where)
        )
    raise PriceFileError(
        f"{where}: neither a start date nor hours: {', '.join(sorted(names))[:80]}"
    )


def _clock(text: Any, where: str) -> str:
    found = _CLOCK.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[1][:2] > "23":
        raise PriceFileError(f"{where}: {str(text)[:40]!r} is no time of day of UTC, to the second")
    return found[1]


def _prices(item: Any, where: str) -> dict[str, Price]:
    data = _object(item, where)
    return {
        _text(key, where): _price(value, f"{where}.{key}")
        for key, value in data.items()
        if value is not None
    }


def _price(item: Any, where: str) -> Price:
    if not isinstance(item, dict):
        return Price(_decimal(item, where), ())
    tiers = item.get("tiers")
    if not isinstance(tiers, list) or set(item) != {"base", "tiers"}:
        raise PriceFileError(f"{where}: a price is a number, or base and tiers")
    steps = []
    for at, tier in enumerate(tiers):
        data = _object(tier, f"{where}.tiers[{at}]")
        start = data.get("start")
        if type(start) is not int or start < 0 or set(data) != {"start", "price"}:
            raise PriceFileError(f"{where}.tiers[{at}]: a start and a price are needed")
        steps.append(TierPrice(start, _decimal(data["price"], f"{where}.tiers[{at}].price")))
    return Price(_decimal(item["base"], f"{where}.base"), tuple(sorted(steps)))


def _decimal(item: Any, where: str) -> Decimal:
    if isinstance(item, str):
        # The full file of some versions writes decimals as texts.
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,30})?", item):
            raise PriceFileError(f"{where}: {item[:40]!r} is no price")
        item = Decimal(item)
    if type(item) is int:
        item = Decimal(item)
    if not isinstance(item, Decimal) or not item.is_finite() or not 0 <= item <= 10**12:
        raise PriceFileError(f"{where}: a price is a number of 0 or more")
    return item
