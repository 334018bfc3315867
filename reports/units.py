"""Numbers as text: the one place where display units and rounding are decided."""

from __future__ import annotations

import math

UNKNOWN = "unknown"
MINUS = "\N{MINUS SIGN}"
_NO_BREAK = "\N{NO-BREAK SPACE}"
_PREFIXES = {
    -15: "f",
    -12: "p",
    -9: "n",
    -6: "µ",
    -3: "m",
    0: "",
    3: "k",
    6: "M",
    9: "G",
    12: "T",
    15: "P",
    18: "E",
}


def fmt_si(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Return ``value`` with an SI prefix and ``digits`` significant digits, e.g. ``4.21 ms``.

    Prefixes are powers of 1000 (1 GB is 1e9 bytes), from femto to exa. None is "unknown".

    Args:
        value: in the SI base unit.
        unit: its symbol ("s", "B", "J", "FLOP/s"); empty for a plain count.
        digits: significant digits, at least 1.

    Raises:
        ValueError: ``value`` is not finite or ``digits`` is below 1.
    """
    if value is None:
        return UNKNOWN
    if digits < 1 or not math.isfinite(value):
        raise ValueError(f"need a finite value and digits >= 1, but got {value!r} and {digits!r}")
    if value == 0:
        return f"0{_NO_BREAK}{unit}".rstrip(_NO_BREAK)
    power = _power_of_1000(value, digits)
    scaled = value / 10.0**power
    text = _trimmed(abs(scaled), digits)
    sign = MINUS if value < 0 else ""
    return f"{sign}{text}{_NO_BREAK}{_PREFIXES[power]}{unit}".rstrip(_NO_BREAK)


def fmt_fixed(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Return ``value`` with a fixed number of decimals (bits, perplexity below a thousand)."""
    if value is None:
        return UNKNOWN
    sign = MINUS if value < 0 else ""
    return f"{sign}{abs(value):,.{digits}f}{_NO_BREAK}{unit}".rstrip(_NO_BREAK)


def fmt_significant(value: float | None, digits: int = 3) -> str:
    """Return a bare number with ``digits`` significant digits; scientific where it is very small or large."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    sign = MINUS if value < 0 else ""
    magnitude = abs(value)
    if 1e-4 <= magnitude < 1e5:
        return sign + _trimmed(magnitude, digits, thousands=True)
    mantissa, exponent = f"{magnitude:.{digits - 1}e}".split("e")
    return f"{sign}{mantissa}e{int(exponent)}"


def fmt_perplexity(value: float | None) -> str:
    """Return a perplexity: two decimals while they mean something, three digits above a thousand."""
    return fmt_fixed(value, 2) if value is None or value < 1000 else fmt_significant(value, 3)


def fmt_percent(frac: float | None, digits: int = 1) -> str:
    """Return a fraction as percent, e.g. 0.873 as ``87.3 %``."""
    return UNKNOWN if frac is None else f"{fmt_fixed(100 * frac, digits)}{_NO_BREAK}%"


def fmt_usd(value: float | None) -> str:
    """Return US dollars: cents above ten cents, three significant digits below."""
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 0.1 else f"${fmt_significant(value, 3)}"


def fmt_change(value: float | None, reference: float | None, digits: int = 1) -> str:
    """Return the relative change from ``reference`` to ``value``, signed, e.g. ``+4.1 %``.

    A change that rounds to nothing is ``±0``; one of more than a factor of ten is given as a factor.
    """
    if value is None or reference is None or reference == 0:
        return UNKNOWN
    ratio = value / reference
    if ratio >= 10:
        return f"×{fmt_significant(ratio, 3)}"
    percent = round(100 * (ratio - 1), digits)
    if percent == 0:
        return f"±0{_NO_BREAK}%"
    return f"{'+' if percent > 0 else MINUS}{abs(percent):.{digits}f}{_NO_BREAK}%"


def fmt_difference(value: float | None, reference: float | None, digits: int = 2) -> str:
    """Return the signed absolute difference, e.g. ``-0.31`` bits with a true minus sign."""
    if value is None or reference is None:
        return UNKNOWN
    difference = round(value - reference, digits)
    if difference == 0:
        return "±0"
    return f"{'+' if difference > 0 else MINUS}{abs(difference):.{digits}f}"


def plural(count: int, noun: str) -> str:
    """Return ``1 layer`` or ``3 layers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def layer_span(first: int, end: int) -> str:
    """Return a half-open range [first, end) of layers as people read it: ``layers 0–11``, ``layer 3``."""
    return f"layer {first}" if end - first == 1 else f"layers {first}–{end - 1}"


def _power_of_1000(value: float, digits: int) -> int:
    """Return the prefix exponent after rounding, so that 999.96 becomes 1 k and not 1000."""
    rounded = float(f"{abs(value):.{digits - 1}e}")
    power = 3 * math.floor(math.log10(rounded) / 3)
    if rounded / 10.0**power >= 1000:  # the logarithm of an exact power may fall short by one ulp
        power += 3
    return min(max(power, min(_PREFIXES)), max(_PREFIXES))


def _trimmed(magnitude: float, digits: int, *, thousands: bool = False) -> str:
    """Return ``digits`` significant digits without an exponent."""
    rounded = float(f"{magnitude:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:{',' if thousands else ''}.{decimals}f}"
