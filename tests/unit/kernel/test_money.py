"""Money is exact: checked against fractions, and nothing is ever rounded on the way in."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import money
from kernel.money import MoneyError

DIGITS = st.text("0123456789", min_size=1, max_size=14)
DECIMALS = st.builds(
    lambda sign, whole, fraction: f"{sign}{whole}" + (f".{fraction}" if fraction else ""),
    st.sampled_from(["", "-"]),
    DIGITS,
    st.text("0123456789", max_size=16),
)
AMOUNTS = st.integers(-money.MAX_AMOUNT_PICO, money.MAX_AMOUNT_PICO)


@given(DECIMALS, st.sampled_from([1, 1000, 1_000_000]))
def test_a_price_is_the_exact_fraction_or_refused(text: str, divisor: int) -> None:
    exact = Fraction(text) * money.PICO / divisor
    if exact.denominator == 1:
        assert money.parse_ratio(text, divisor) == exact
    else:
        with pytest.raises(MoneyError, match="whole number of pico-units"):
            money.parse_ratio(text, divisor)


@given(AMOUNTS)
def test_an_amount_is_read_back_as_it_was_written(amount_pico: int) -> None:
    text = money.format_pico(amount_pico)
    assert money.parse_amount(text) == amount_pico
    assert Fraction(text) * money.PICO == amount_pico
    assert "." not in text or not text.endswith("0")


@pytest.mark.parametrize(
    ("text", "divisor", "pico"),
    [
        ("0", 1, 0),
        ("-0", 1, 0),
        ("2.50", 1, 2_500_000_000_000),
        ("0.15", 1_000_000, 150_000),
        ("0.000000000001", 1, 1),
        ("0.0375", 1_000_000, 37_500),
        ("170141183460469231731687303.715884105727", 1, 2**127 - 1),
        ("-170141183460469231731687303.715884105727", 1, -(2**127 - 1)),
    ],
)
def test_amounts_known_by_hand(text: str, divisor: int, pico: int) -> None:
    assert money.parse_ratio(text, divisor) == pico


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "+1",
        ".5",
        "1.",
        "1e3",
        "1E3",
        "1,5",
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "0x10",
        "inf",
        "nan",
        "NaN",
        "-Infinity",
        "--1",
        "1.5.5",
        "$1",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "\N{FULLWIDTH DIGIT ONE}.5",
        "1" * 28,
        "9" * 5000,
        "0." + "0" * 31,
    ],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(MoneyError, match="not a decimal"):
        money.parse_amount(text)


def test_what_cannot_be_exact_or_is_too_large_is_refused() -> None:
    with pytest.raises(MoneyError, match="whole number of pico-units"):
        money.parse_amount("0.0000000000001")
    with pytest.raises(MoneyError, match="whole number of pico-units"):
        money.parse_ratio("0.0000001", 1_000_000)
    with pytest.raises(MoneyError, match="largest"):
        money.parse_amount("170141183460469231731687303.715884105728")


@given(st.integers(-(2**140), 2**140))
def test_an_amount_fits_128_bits_or_is_refused(amount_pico: int) -> None:
    if abs(amount_pico) <= 2**127 - 1:
        assert money.check_amount(amount_pico) == amount_pico
    else:
        with pytest.raises(MoneyError, match="128 bits"):
            money.check_amount(amount_pico)
