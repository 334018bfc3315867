"""Numbers of devices as text; what nobody published is a dash."""

from __future__ import annotations

from dse.cli.output import si

UNKNOWN = "-"


def known_si(value: float | None, unit: str) -> str:
    """Return a number with an SI prefix, a dash where it is not known."""
    return UNKNOWN if value is None else si(value, unit)


def plain(value: float | None, unit: str) -> str:
    """Return a number without a prefix, a dash where it is not known."""
    return UNKNOWN if value is None else f"{value:.3g} {unit}"


def per_watt(value: float | None) -> str:
    """Return operations per second and watt."""
    return plain(None if value is None else value / 1e12, "TOPS/W")


def size(value: float | None) -> str:
    """Return a capacity in binary units, as memory is sold."""
    if value is None:
        return UNKNOWN
    for factor, prefix in ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}B"
    return f"{value / 2**10:.4g} KiB"
