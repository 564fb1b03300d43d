"""A statement for people: what it says, that it is always the same, and that no text gets out."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kernel.errors import InvalidArgument
from pricing.domain.billing import Credit, Line, LineKey
from pricing.domain.period_ends import End
from pricing.domain.statement import Entries, Statement
from tollbook.statements import focus, page, paper
from tollbook.statements.reading import read


def stated(rule: str = "line", lines: int = 1) -> bytes:
    made = tuple(
        (LineKey("2026-01", "standard", 1, bytes(32), f"out-{at}", rule, "usage"), Line(7, 10**10))
        for at in range(lines)
    )
    late = LineKey("2025-12", "standard", 1, bytes(32), "", "commitment", "commitment")
    return Statement(
        "acme",
        "USD",
        End(9, "2026-01", 0),
        (Entries("usage-3", 4, 12),),
        5 * 10**12,
        (Credit(3, "grant", "granted:acme", 10**12),),
        (*made, (late, Line(0, -3 * 10**9))),
        lines * 10**10,
        -3 * 10**9,
        lines * 10**10,
    ).document()


def test_a_page_says_all_of_a_statement_and_escapes_every_text() -> None:
    text = page.html(read(stated("<script>alert(1)</script>"), 11))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert ["Invoiced", "0.01"] in cells
    assert ["Rounding", "0.003"] in cells
    assert ["Credit at the end", "5.99"] in cells
    assert ["2025-12", "commitment, standard@1", "", "", "0", "-0.003"] in cells
    assert "Entries [4, 12) of log usage-3." in text


def test_a_pdf_is_the_same_bytes_each_time_and_another_for_another_statement() -> None:
    one = paper.pdf(read(stated(), 11))
    assert one.startswith(b"%PDF-")
    assert one == paper.pdf(read(stated(), 11))
    assert one != paper.pdf(read(stated("other"), 11))
    # Many lines are on many pages, none is left out.
    assert paper.pdf(read(stated(lines=300), 11)).count(b"/Type /Page\n") > 3


@pytest.mark.parametrize(
    "wrong", [b"", b"[]", b'{"format":"other"}', b'{"format":"tollbook-statement-v1"}']
)
def test_what_is_no_statement_is_refused(wrong: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read(wrong, 0)


def test_the_canonical_form_is_canonical() -> None:
    document = stated()
    made: dict[str, Any] = json.loads(document)
    assert json.dumps(made, sort_keys=True, separators=(",", ":")).encode() == document
    assert all(
        not isinstance(value, (int, float)) for line in made["lines"] for value in line.values()
    )


def focus_rows(document: bytes) -> list[dict[str, str]]:
    made = focus.rows(document, 11, {"standard/1/out-0": "token"}, "Example Inc.")
    return list(csv.DictReader(io.StringIO(focus.to_csv(made).decode())))


def test_focus_rows_come_to_the_invoice_in_csv_and_in_parquet() -> None:
    document = stated(lines=3)
    rows = focus_rows(document)
    said = json.loads(document)
    assert len(rows) == 5
    assert sum(Decimal(row["BilledCost"]) for row in rows) * 10**12 == int(said["invoiced_pico"])
    table = pq.read_table(
        io.BytesIO(focus.to_parquet(focus.rows(document, 11, {}, "Example Inc.")))
    )
    assert table.column_names == list(rows[0])
    assert pc.sum(table["BilledCost"]).as_py() * 10**12 == int(said["invoiced_pico"])
    assert str(table.schema.field("BilledCost").type) == "decimal128(38, 12)"


def test_a_focus_row_says_what_a_line_says_and_whose_month_it_corrects() -> None:
    own, *_, late, rounding = focus_rows(stated(lines=2))
    assert {name: own[name] for name in own if own[name] and not name.startswith("x_")} == {
        "BilledCost": "0.01",
        "BillingAccountId": "acme",
        "BillingAccountName": "acme",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2026-02-01T00:00:00Z",
        "BillingPeriodStart": "2026-01-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "Usage: line out-0 of card standard@1",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-02-01T00:00:00Z",
        "ChargePeriodStart": "2026-01-01T00:00:00Z",
        "ConsumedQuantity": "7",
        "ConsumedUnit": "token",
        "ContractedCost": "0.01",
        "EffectiveCost": "0.01",
        "InvoiceId": "acme-2026-01",
        "InvoiceIssuerName": "Example Inc.",
        "ListCost": "0.01",
        "PricingCategory": "Standard",
        "PricingQuantity": "7",
        "PricingUnit": "token",
        "ProviderName": "Example Inc.",
        "PublisherName": "Example Inc.",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "LLM inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "standard/out-0",
        "SkuMeter": "token",
        "SkuPriceId": "standard@1/out-0",
    }
    assert (late["ChargeCategory"], late["ChargeClass"]) == ("Adjustment", "Correction")
    assert (late["ChargePeriodStart"], late["BilledCost"]) == ("2025-12-01T00:00:00Z", "-0.003")
    assert (rounding["BilledCost"], rounding["ChargeClass"]) == ("0.003", "")
    assert own["x_StatementPosition"] == "11"


def test_text_of_a_rule_stays_in_its_cell() -> None:
    rule = '=HYPERLINK("http://x"),\n"rest"'
    rows = focus_rows(stated(rule))
    assert [row["x_Rule"] for row in rows] == [rule, "commitment", ""]
