"""The price list that comes inside the genai-prices package, as the data file it was made of."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from genai_prices import types
from genai_prices.data import providers


def as_file() -> bytes:
    """The list in the published form, every price with the digits that the package has."""
    return _json([_provider(provider) for provider in providers]).encode()


def _provider(provider: types.Provider) -> dict[str, Any]:
    return {
        "id": provider.id,
        "name": provider.name,
        "api_pattern": provider.api_pattern,
        "model_match": _clause(provider.model_match),
        "provider_match": _clause(provider.provider_match),
        "fallback_model_providers": provider.fallback_model_providers,
        "models": [_model(model) for model in provider.models],
    }


def _model(model: types.ModelInfo) -> dict[str, Any]:
    prices: Any = model.prices
    return {
        "id": model.id,
        "match": _clause(model.match),
        "prices": [_conditional(one) for one in prices]
        if isinstance(prices, list)
        else _prices(prices),
        "price_variants": [
            {**_conditional(one), "when": one.when} for one in model.price_variants or ()
        ],
    }


def _conditional(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"prices": _prices(one.prices)}
    if isinstance(one.constraint, types.StartDateConstraint):
        found["constraint"] = {"start_date": one.constraint.start_date.isoformat()}
    elif one.constraint is not None:
        found["constraint"] = {
            "start_time": one.constraint.start_time.isoformat(),
            "end_time": one.constraint.end_time.isoformat(),
        }
    return found


def _prices(prices: types.ModelPrice) -> dict[str, Any]:
    return {key: _price(value) for key, value in vars(prices).items() if value is not None}


def _price(value: Any) -> Any:
    if isinstance(value, types.TieredPrices):
        tiers = [{"start": tier.start, "price": tier.price} for tier in value.tiers]
        return {"base": value.base, "tiers": tiers}
    return value


def _clause(clause: Any) -> Any:
    if clause is None:
        return None
    ((name, value),) = vars(clause).items()
    if isinstance(value, list):
        return {name.rstrip("_"): [_clause(part) for part in value]}
    return {name: value}


def _json(item: Any) -> str:
    """JSON with decimals as they are: a float would lose digits."""
    if isinstance(item, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_json(one)}" for key, one in item.items()) + "}"
    if isinstance(item, list):
        return "[" + ",".join(map(_json, item)) + "]"
    return format(item, "f") if isinstance(item, Decimal) else json.dumps(item)
