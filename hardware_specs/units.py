"""Units of spec files: a number and a unit word become one float in SI base units.

Decimal and binary prefixes are different words (GB is 1e9 bytes, GiB is 2^30), and so are bits and bytes
(Gbit/s is an eighth of GB/s). Nothing is guessed: a unit that is not in the table is an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from dse.errors import ConfigError, UnitError, nearest_hint

Dimension = Literal[
    "bytes",
    "bytes_per_s",
    "flop_per_s",
    "watt",
    "joule_per_bit",
    "joule_per_flop",
    "second",
    "hertz",
    "usd",
    "usd_per_h",
    "usd_per_kwh",
    "g_per_kwh",
    "nanometre",
    "count",
    "ratio",
]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"": 1.0, "m": 1e3, "u": 1e6, "n": 1e9, "p": 1e12}  # divisors: 100 us is then exactly 1e-4 s
_RATE = {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@dataclass(frozen=True)
class Unit:
    """A unit word: its number times ``factor`` over ``divisor`` is in the SI base unit of the dimension."""

    dimension: Dimension
    factor: float = 1.0
    divisor: float = 1.0


def _table() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for prefix, factor in {**_DECIMAL, **_BINARY}.items():
        units[f"{prefix}B"] = Unit("bytes", factor)
        units[f"{prefix}B/s"] = Unit("bytes_per_s", factor)
    for prefix, factor in _DECIMAL.items():
        units[f"{prefix}bit/s"] = Unit("bytes_per_s", factor, 8.0)
    for prefix, factor in _RATE.items():
        units[f"{prefix}FLOP/s"] = units[f"{prefix}OP/s"] = Unit("flop_per_s", factor)
    for prefix, divisor in _SMALL.items():
        units[f"{prefix}J/bit"] = Unit("joule_per_bit", 1.0, divisor)
        units[f"{prefix}J/FLOP"] = units[f"{prefix}J/OP"] = Unit("joule_per_flop", 1.0, divisor)
    units |= {f"{prefix}s": Unit("second", 1.0, _SMALL[prefix]) for prefix in ("", "m", "u", "n")}
    units |= {f"{prefix}Hz": Unit("hertz", _DECIMAL[prefix]) for prefix in ("", "k", "M", "G")}
    units |= {
        "mW": Unit("watt", 1.0, 1e3),
        "W": Unit("watt"),
        "kW": Unit("watt", 1e3),
        "USD": Unit("usd"),
        "USD/h": Unit("usd_per_h"),
        "USD/kWh": Unit("usd_per_kwh"),
        "g/kWh": Unit("g_per_kwh"),
        "year": Unit("second", 365.25 * 86400.0),
        "nm": Unit("nanometre"),
        "count": Unit("count"),
        "ratio": Unit("ratio"),
    }
    return units


UNITS = _table()

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
# What YAML 1.1 leaves a string although people mean a number: an exponent without a sign.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def accepted_units(dimension: Dimension) -> list[str]:
    """Return the unit words of a dimension, sorted."""
    return sorted(word for word, unit in UNITS.items() if unit.dimension == dimension)


def parse_number(value: object, *, file: str | None = None, path: str | None = None) -> float:
    """Return a finite float from a YAML scalar; PyYAML reads ``1.83e9`` as text, which is coerced here.

    Raises:
        ConfigError: booleans, other text, infinities and NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"must be a number, but is {value!r}", file=file, path=path, value=value)
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ConfigError(f"must be a number, but is '{value}'", file=file, path=path, value=value)
    number = float(value)
    if not math.isfinite(number):
        raise ConfigError(f"must be finite, but is {value}", file=file, path=path, value=value)
    return number


def to_si(
    value: object,
    unit: str,
    dimension: Dimension,
    *,
    zero: bool = False,
    file: str | None = None,
    path: str | None = None,
) -> float:
    """Return a quantity of a spec file in the SI base unit of its dimension.

    Args:
        value: the number as YAML gives it.
        unit: the unit word, e.g. "GB/s".
        dimension: what the place in the file holds.
        zero: whether 0 is a value that makes sense there; negative values never do.
        file, path: where it stands, for the message.

    Raises:
        UnitError: unknown unit word, or one of another dimension.
        ConfigError: not a number, negative, or 0 where it makes no sense.
    """
    known = UNITS.get(unit)
    if known is None:
        allowed = accepted_units(dimension)
        raise UnitError(f"unknown unit '{unit}'", file=file, path=path, value=unit, allowed=allowed)
    if known.dimension != dimension:
        hint = nearest_hint(unit, accepted_units(dimension))
        raise UnitError(
            f"unit '{unit}' measures {known.dimension}, not {dimension}{hint}",
            file=file,
            path=path,
            value=unit,
        )
    number = parse_number(value, file=file, path=path)
    if number < 0 or (number == 0 and not zero):
        bound = "at least 0" if zero else "above 0"
        raise ConfigError(f"must be {bound}, but is {value}", file=file, path=path, value=value)
    return number * known.factor / known.divisor
