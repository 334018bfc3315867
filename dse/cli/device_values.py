"""What ``dse devices`` lists: the order of devices and their JSON documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dse.errors import ConfigError
from hardware_specs.derived import (
    bandwidth_bytes_per_s,
    best_rate,
    capacity_bytes,
    efficiency_flop_per_s_per_w,
    ridge_flop_per_byte,
)
from hardware_specs.sanity import check, rate_16_bit
from hardware_specs.spec import HardwareSpec

_NUMBERS: dict[str, Callable[[HardwareSpec], float | None]] = {
    "year": lambda spec: spec.year,
    "peak": rate_16_bit,
    "best": lambda spec: (best_rate(spec) or ("", None))[1],
    "memory": capacity_bytes,
    "bandwidth": bandwidth_bytes_per_s,
    "ridge": ridge_flop_per_byte,
    "tdp": lambda spec: spec.power.tdp_w,
    "efficiency": efficiency_flop_per_s_per_w,
    "price": lambda spec: spec.price_usd_per_h,
}
_TEXTS: dict[str, Callable[[HardwareSpec], str]] = {
    "name": lambda spec: spec.name,
    "class": lambda spec: spec.device_class,
}


def ordered(specs: list[HardwareSpec], key: str) -> list[HardwareSpec]:
    """Return devices sorted by a quantity, the largest first and the unknown last; texts alphabetically.

    Raises:
        ConfigError: no such quantity.
    """
    if key in _TEXTS:
        return sorted(specs, key=lambda spec: (_TEXTS[key](spec), spec.name))
    if key not in _NUMBERS:
        raise ConfigError(f"cannot sort by '{key}'", value=key, allowed=[*_TEXTS, *_NUMBERS])

    def place(spec: HardwareSpec) -> tuple[bool, float, str]:
        value = _NUMBERS[key](spec)
        return (value is None, -(value or 0.0), spec.name)

    return sorted(specs, key=place)


def summary(spec: HardwareSpec) -> dict[str, Any]:
    """Return one row of the list as JSON."""
    best = best_rate(spec)
    return {
        "name": spec.name,
        "class": spec.device_class,
        "availability": spec.availability,
        "year": spec.year,
        "peak_16bit_flop_per_s": rate_16_bit(spec),
        "best_kind": None if best is None else best[0],
        "best_flop_per_s": None if best is None else best[1],
        "memory_bytes": capacity_bytes(spec),
        "memory_bandwidth_bytes_per_s": bandwidth_bytes_per_s(spec),
        "ridge_flop_per_byte": ridge_flop_per_byte(spec),
        "tdp_w": spec.power.tdp_w,
        "price_usd_per_h": spec.price_usd_per_h,
        "price_date": spec.price_date or None,
        "missing": spec.missing,
    }


def document(spec: HardwareSpec) -> dict[str, Any]:
    """Return everything about a device as JSON, with what it does with each pair of operand kinds."""
    from dse.evaluate.operand_pairs import operand_pairs

    return asdict(spec) | {
        "operand_pairs": [asdict(row) for row in operand_pairs(spec)],
        "odd": [asdict(found) for found in check(spec)],
    }
