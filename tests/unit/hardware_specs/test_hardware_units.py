"""Units against pint as oracle, and what is refused."""

import math

import pint
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import ConfigError, UnitError
from hardware_specs.units import DIMENSIONS, UNITS, accepted_units, parse_number, to_si

REGISTRY = pint.UnitRegistry()
for line in ("flops = [operation]", "usd = [money]", "octet = 8 * bit"):
    REGISTRY.define(line)


def _oracle(word: str) -> float:
    """The factor of a unit word according to pint, with bytes, bits, flop and dollars defined privately."""
    text = word.replace("FLOP", "flops").replace("OP", "flops").replace("USD/h", "usd/hour")
    text = text.replace("USD", "usd").replace("kWh", "(kW*hour)")
    if word.endswith(("B", "B/s")) and "bit" not in word:
        text = text.replace("B", "octet")
    base = {
        "bytes": "octet",
        "bytes_per_s": "octet/s",
        "flop_per_s": "flops/s",
        "watt": "W",
        "joule_per_bit": "J/bit",
        "joule_per_flop": "J/flops",
        "second": "s",
        "hertz": "1/s",
        "usd": "usd",
        "usd_per_h": "usd/hour",
        "usd_per_kwh": "usd/(kW*hour)",
        "g_per_kwh": "g/(kW*hour)",
        "nanometre": "nm",
    }[UNITS[word].dimension]
    return float(REGISTRY.Quantity(1.0, text).to(base).magnitude)


@pytest.mark.parametrize("word", [w for w in UNITS if UNITS[w].dimension not in ("count", "ratio")])
def test_factor_of_every_unit_equals_pint(word):
    assert to_si(1, word, UNITS[word].dimension) == pytest.approx(_oracle(word), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "unit", "dimension", "expected"),
    [
        (80, "GB", "bytes", 80e9),
        (80, "GiB", "bytes", 80 * 2**30),
        (8, "Gbit/s", "bytes_per_s", 1e9),
        (8, "GB/s", "bytes_per_s", 8e9),
        ("1.83e9", "Hz", "hertz", 1.83e9),
        (15.3, "pJ/bit", "joule_per_bit", 15.3e-12),
        (100, "us", "second", 1e-4),
        (0.9894, "PFLOP/s", "flop_per_s", 989.4e12),
    ],
)
def test_known_quantities(value, unit, dimension, expected):
    assert to_si(value, unit, dimension) == pytest.approx(expected, rel=1e-15)


def test_microseconds_are_exact():
    assert to_si(100, "us", "second") == 1e-4


@given(st.floats(1e-9, 1e9), st.sampled_from(sorted(UNITS)))
def test_conversion_is_linear_and_positive(value, word):
    dimension = UNITS[word].dimension
    assert to_si(2 * value, word, dimension) == pytest.approx(2 * to_si(value, word, dimension))
    assert to_si(value, word, dimension) > 0


def test_unknown_unit_lists_the_accepted_ones_and_the_nearest():
    with pytest.raises(UnitError) as caught:
        to_si(1, "GBps", "bytes_per_s", file="x.yaml", path="memory.hbm.bandwidth")
    text = str(caught.value)
    assert text.startswith("x.yaml: memory.hbm.bandwidth: unknown unit 'GBps' (did you mean '")
    assert "Gbit/s" in text
    assert "\n" not in text


def test_wrong_dimension_names_both():
    with pytest.raises(UnitError, match=r"'GB' measures bytes, not bytes_per_s \(did you mean '.*B/s'"):
        to_si(1, "GB", "bytes_per_s")


@pytest.mark.parametrize(
    "value", [True, False, None, "many", "1,5", "", [1], math.inf, math.nan, "inf", "0x10"]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="must be"):
        parse_number(value)


@pytest.mark.parametrize(
    ("text", "number"), [("1.83e9", 1.83e9), (" 5 ", 5.0), ("-2.", -2.0), (".5E-3", 5e-4)]
)
def test_text_that_means_a_number(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(("value", "zero"), [(-1, False), (-1, True), (0, False)])
def test_negative_and_zero(value, zero):
    with pytest.raises(ConfigError, match=r"must be (at least|above) 0, but is"):
        to_si(value, "W", "watt", zero=zero)


def test_zero_where_it_makes_sense():
    assert to_si(0, "GB", "bytes", zero=True) == 0.0


def test_every_dimension_has_a_unit():
    assert all(accepted_units(dimension) for dimension in DIMENSIONS)
