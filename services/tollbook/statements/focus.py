"""A statement as rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification: CSV and Parquet.

One row for each line of the statement and one for what rounding adds, so the
sum of `BilledCost` is the invoice, to the last pico-unit. Columns and their
words are those of focus.finops.org/focus-specification/v1-2: all that are
mandatory, and those of the others that the ledger knows. Where it knows one
price alone, list, contracted and effective cost are that price's. What is ours
stands in columns that begin with `x_`, as the specification asks.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from kernel.money import format_pico
from tollbook.statements.reading import fields

Row = dict[str, "str | Decimal | datetime | None"]

_MONEY: Final = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
_COUNTS: Final = ("ConsumedQuantity", "PricingQuantity")
_INSTANTS: Final = (
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
)
COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "x_CardHash",
    "x_Rule",
    "x_StatementHash",
    "x_StatementPosition",
)
_DIGITS: Final = 38
_PICO_DIGITS: Final = 12
UNKNOWN_UNIT: Final = "Units"

Units = Mapping[str, str]
"""The unit of a line, by `CARD/VERSION/LINE`."""


def rows(document: bytes, closed_position: int, units: Units, issuer: str) -> list[Row]:
    """The rows of a statement's canonical JSON; `closed_position` is that of its control record.

    Errors: InvalidArgument when it is no statement that this version knows.
    """
    with fields(document) as made:
        billing = _bounds(made["period"])
        common: Row = {
            "BillingAccountId": made["account_id"],
            "BillingAccountName": made["account_id"],
            "BillingCurrency": made["currency"],
            "BillingPeriodStart": billing[0],
            "BillingPeriodEnd": billing[1],
            "InvoiceId": f"{made['account_id']}-{made['period']}",
            "InvoiceIssuerName": issuer,
            "ProviderName": issuer,
            "PublisherName": issuer,
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": "LLM inference",
            "ServiceSubcategory": "Generative AI",
            "x_StatementHash": hashlib.sha256(document).hexdigest(),
            "x_StatementPosition": str(closed_position),
        }
        found = [_row(common, line, made["period"], units) for line in made["lines"]]
        if rounding_pico := int(made["rounding_pico"]):
            found.append(_rounding(common, billing, rounding_pico))
        return found


def months(document: bytes) -> list[str]:
    """The months that lines of a statement's canonical JSON are of."""
    with fields(document) as made:
        return sorted({line["month"] for line in made["lines"]})


def _row(common: Row, line: dict[str, str], period: str, units: Units) -> Row:
    start, end = _bounds(line["month"])
    card = f"{line['card_id']}@{line['card_version']}"
    is_usage = line["kind"] == "usage"
    unit = units.get(f"{line['card_id']}/{line['card_version']}/{line['line_id']}", UNKNOWN_UNIT)
    quantity = Decimal(line["units"]) if is_usage else None
    what = f"line {line['line_id']} of card {card}" if line["line_id"] else f"card {card}"
    return _whole(
        common,
        {
            **_costs(int(line["amount_pico"])),
            "ChargeCategory": "Usage" if is_usage else "Adjustment",
            # Of a month that was invoiced before: what came to it since.
            "ChargeClass": "Correction" if line["month"] != period else None,
            "ChargeDescription": f"{line['kind'].capitalize()}: {what}",
            "ChargeFrequency": "Usage-Based" if is_usage else "One-Time",
            "ChargePeriodStart": start,
            "ChargePeriodEnd": end,
            "ConsumedQuantity": quantity,
            "ConsumedUnit": unit if is_usage else None,
            "PricingCategory": "Standard" if is_usage else None,
            "PricingQuantity": quantity,
            "PricingUnit": unit if is_usage else None,
            "SkuId": f"{line['card_id']}/{line['line_id']}" if line["line_id"] else None,
            "SkuMeter": unit if is_usage else None,
            "SkuPriceId": f"{card}/{line['line_id']}" if line["line_id"] else None,
            "x_CardHash": line["card_hash"],
            "x_Rule": line["rule"],
        },
    )


def _rounding(common: Row, billing: tuple[datetime, datetime], pico: int) -> Row:
    return _whole(
        common,
        {
            **_costs(pico),
            "ChargeCategory": "Adjustment",
            "ChargeDescription": "Rounding: the invoice to the currency's smallest unit",
            "ChargeFrequency": "One-Time",
            "ChargePeriodStart": billing[0],
            "ChargePeriodEnd": billing[1],
        },
    )


def _whole(common: Row, own: Row) -> Row:
    """A row with every column, in order; None where it says nothing."""
    said = {**common, **own}
    return {name: said.get(name) for name in COLUMNS}


def _costs(pico: int) -> Row:
    return dict.fromkeys(_MONEY, Decimal(format_pico(pico)))


def _bounds(month: str) -> tuple[datetime, datetime]:
    """A month's first instant and the first after it, by UTC."""
    year, number = int(month[:4]), int(month[5:])
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return datetime(year, number, 1, tzinfo=UTC), following


def to_csv(found: Sequence[Row]) -> bytes:
    """Rows as CSV (RFC 4180, UTF-8): exact decimals, instants as the specification writes them."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in found:
        writer.writerow([_text(value) for value in row.values()])
    return out.getvalue().encode()


def _text(value: str | Decimal | datetime | None) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return format(value, "f") if isinstance(value, Decimal) else value or ""


def to_parquet(found: Sequence[Row]) -> bytes:
    """Rows as Parquet: money and counts are decimals of 38 digits, 12 of them after the point."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        **dict.fromkeys(COLUMNS, pa.string()),
        **dict.fromkeys((*_MONEY, *_COUNTS), pa.decimal128(_DIGITS, _PICO_DIGITS)),
        **dict.fromkeys(_INSTANTS, pa.timestamp("us", "UTC")),
    }
    table = pa.Table.from_pylist(list(found), schema=pa.schema(list(kinds.items())))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()
