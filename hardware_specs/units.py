"""Units of spec files: a number and a unit word become one float in SI base units.

Decimal and binary prefixes are different words (GB is 1e9 bytes, GiB is 2^30), and so are bits and bytes
(Gbit/s is an eighth of GB/s). Nothing is guessed: a unit that is not in the table is an error.
"""

from __future__ import annotations

import math
import re
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
    "usd_per_h",
    "nanometre",
    "count",
    "ratio",
]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_RATE = {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def _table() -> dict[str, tuple[Dimension, float]]:
    units: dict[str, tuple[Dimension, float]] = {}
    for prefix, factor in {**_DECIMAL, **_BINARY}.items():
        units[f"{prefix}B"] = ("bytes", factor)
        units[f"{prefix}B/s"] = ("bytes_per_s", factor)
    for prefix, factor in _DECIMAL.items():
        units[f"{prefix}bit/s"] = ("bytes_per_s", factor / 8.0)
    for prefix, factor in _RATE.items():
        units[f"{prefix}FLOP/s"] = units[f"{prefix}OP/s"] = ("flop_per_s", factor)
    for prefix, factor in _SMALL.items():
        units[f"{prefix}J/bit"] = ("joule_per_bit", factor)
        units[f"{prefix}J/FLOP"] = units[f"{prefix}J/OP"] = ("joule_per_flop", factor)
    units |= {f"{prefix}s": ("second", _SMALL[prefix]) for prefix in ("", "m", "u", "n")}
    units |= {f"{prefix}W": ("watt", factor) for prefix, factor in (("m", 1e-3), ("", 1.0), ("k", 1e3))}
    units |= {f"{prefix}Hz": ("hertz", _DECIMAL[prefix]) for prefix in ("", "k", "M", "G")}
    units |= {
        "USD/h": ("usd_per_h", 1.0),
        "nm": ("nanometre", 1.0),
        "count": ("count", 1.0),
        "ratio": ("ratio", 1.0),
    }
    return units


UNITS = _table()
"""Unit word -> (dimension, factor to the SI base unit of the dimension)."""

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
# What YAML 1.1 leaves a string although people mean a number: an exponent without a sign.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def accepted_units(dimension: Dimension) -> list[str]:
    """Return the unit words of a dimension, sorted."""
    return sorted(word for word, (kind, _) in UNITS.items() if kind == dimension)


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
    allowed = accepted_units(dimension)
    if unit not in UNITS:
        raise UnitError(f"unknown unit '{unit}'", file=file, path=path, value=unit, allowed=allowed)
    kind, factor = UNITS[unit]
    if kind != dimension:
        raise UnitError(
            f"unit '{unit}' measures {kind}, not {dimension}{nearest_hint(unit, allowed)}",
            file=file,
            path=path,
            value=unit,
        )
    number = parse_number(value, file=file, path=path)
    if number < 0 or (number == 0 and not zero):
        bound = "at least 0" if zero else "above 0"
        raise ConfigError(f"must be {bound}, but is {value}", file=file, path=path, value=value)
    return number * factor
