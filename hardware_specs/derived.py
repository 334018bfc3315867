"""Quantities that follow from a spec; None where what they follow from was never published."""

from __future__ import annotations

from hardware_specs.sanity import native_rates, rate_16_bit
from hardware_specs.spec import HardwareSpec


def best_rate(spec: HardwareSpec) -> tuple[str, float] | None:
    """Return the kind with the highest published dense rate, and that rate; of equal ones the narrowest."""
    rates = list(native_rates(spec).items())
    return max(reversed(rates), key=lambda entry: entry[1], default=None)


def capacity_bytes(spec: HardwareSpec) -> float | None:
    """Return the capacity of the main memory, None where it is not known."""
    main = spec.known_main_memory
    return None if main is None else main.capacity_bytes


def bandwidth_bytes_per_s(spec: HardwareSpec) -> float | None:
    """Return the bandwidth of the main memory, None where it is not known."""
    main = spec.known_main_memory
    return None if main is None else main.bandwidth_bytes_per_s


def ridge_flop_per_byte(spec: HardwareSpec) -> float | None:
    """Return the 16-bit rate over the main bandwidth: below this intensity memory binds."""
    rate, bandwidth = rate_16_bit(spec), bandwidth_bytes_per_s(spec)
    return None if rate is None or bandwidth is None else rate / bandwidth


def efficiency_flop_per_s_per_w(spec: HardwareSpec) -> float | None:
    """Return the best dense rate over the TDP."""
    best = best_rate(spec)
    return None if best is None or spec.power.tdp_w is None else best[1] / spec.power.tdp_w


def dollars_per_pflop(spec: HardwareSpec) -> float | None:
    """Return the price of a 16-bit PFLOP/s for an hour, in dollars."""
    rate = rate_16_bit(spec)
    return None if rate is None or spec.price_usd_per_h is None else spec.price_usd_per_h / rate * 1e15
