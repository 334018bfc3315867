"""Numbers as text. Oracles: hand-written cases, and reading the text back with ``float``."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import units
from reports.units import fmt_change, fmt_fixed, fmt_percent, fmt_perplexity, fmt_si, fmt_significant, fmt_usd

POWERS = {
    "f": -15,
    "p": -12,
    "n": -9,
    "µ": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}


def plain(text: str) -> str:
    """Text with plain spaces and signs."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00421, "s", "4.21 ms"),
        (1.34e9, "B", "1.34 GB"),
        (12.34e12, "FLOP/s", "12.3 TFLOP/s"),
        (3.4e-4, "J", "340 µJ"),
        (1.0, "s", "1.00 s"),
        (1000.0, "B", "1.00 kB"),
        (999.96, "B", "1.00 kB"),
        (999.4, "B", "999 B"),
        (134_515_008, "", "135 M"),
        (0, "J", "0 J"),
        (0, "", "0"),
        (-0.25, "s", "-250 ms"),
        (2e21, "FLOP", "2000 EFLOP"),
        (None, "s", "unknown"),
    ],
)
def test_fmt_si(value: float | None, unit: str, text: str) -> None:
    assert plain(fmt_si(value, unit)) == text


@given(st.floats(min_value=1e-14, max_value=1e20), st.integers(min_value=1, max_value=6))
def test_fmt_si_reads_back_within_half_a_digit(value: float, digits: int) -> None:
    number, _, rest = fmt_si(value, "s", digits).partition("\N{NO-BREAK SPACE}")
    prefix = rest.removesuffix("s")
    assert float(number) * 10.0 ** POWERS[prefix] == pytest.approx(
        value, rel=0.5 * 10.0 ** (1 - digits) * 1.001
    )
    if 1e-14 < value < 9e20 and prefix not in {"f", "E"}:
        assert 1 <= float(number) < 1000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fmt_si_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        fmt_si(value, "s")


def test_fmt_si_knows_exact_powers() -> None:
    for prefix, power in POWERS.items():
        assert plain(fmt_si(10.0**power, "s")) == f"1.00 {prefix}s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt_fixed(4.2512), "4.25"),
        (fmt_fixed(-4.2512, 1, "bits"), "-4.3 bits"),
        (fmt_significant(0.00012345), "0.000123"),
        (fmt_significant(1.2345e-5), "1.23e-5"),
        (fmt_significant(98765.4), "98,800"),
        (fmt_significant(1.5e7, 2), "1.5e7"),
        (fmt_significant(0.0), "0"),
        (fmt_perplexity(17.346), "17.35"),
        (fmt_perplexity(123456.0), "1.23e5"),
        (fmt_percent(0.8734), "87.3 %"),
        (fmt_usd(1234.5), "$1,234.50"),
        (fmt_usd(0.0421), "$0.0421"),
        (fmt_change(1.041, 1.0), "+4.1 %"),
        (fmt_change(0.959, 1.0), "-4.1 %"),
        (fmt_change(1.0001, 1.0), "±0 %"),
        (fmt_change(25.0, 1.0), "×25.0"),
        (fmt_change(None, 1.0), "unknown"),
        (fmt_change(1.0, 0.0), "unknown"),
        (units.fmt_difference(4.2, 4.5), "-0.30"),
        (units.fmt_difference(4.5, 4.5), "±0"),
        (units.layer_span(0, 12), "layers 0–11"),
        (units.layer_span(3, 4), "layer 3"),
        (units.plural(1, "device"), "1 device"),
        (units.plural(2, "device"), "2 devices"),
    ],
)
def test_other_formats(text: str, expected: str) -> None:
    assert plain(text) == expected


@pytest.mark.parametrize("write", [fmt_fixed, fmt_significant, fmt_perplexity, fmt_percent, fmt_usd, fmt_si])
def test_unknown_stays_unknown(write: object) -> None:
    assert callable(write)
    assert write(None) == "unknown"
