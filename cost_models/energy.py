"""Energy of work: per bit moved, per operation, and static power over time.

``E = static * t + e_bit * bits + e_flop * flop (+ e_link * link bits)`` with effective constants of the whole
board. A sum of component energies without static power was a fifth of what was measured on H100 and B200, so
the constants in spec files are effective ones where measurements exist.
"""

from __future__ import annotations

import numpy as np

from cost_models.work import Floats, Work
from hardware_specs.spec import HardwareSpec, Link

BITS_PER_BYTE = 8.0


def memory_j_per_bit(spec: HardwareSpec) -> float | None:
    """Return the energy of one bit from main memory: the effective value, else the component's, else None."""
    if spec.power.main_memory_j_per_bit is not None:
        return spec.power.main_memory_j_per_bit
    return spec.main_memory.energy_j_per_bit


def flop_energy_j(spec: HardwareSpec, kind: str) -> float | None:
    """Return joules per operation of a compute kind, None where nothing is known.

    An emulated kind costs what the kind does that it runs as. Kinds of at most 16 bits without a figure of
    their own are charged as the 16-bit kind: fp16 and bf16 differ by less than these constants are known, and
    for narrower kinds it is an upper bound, so that a missing figure never makes a precision look cheap.
    """
    known = spec.power.energy_j_per_flop
    if kind in known:
        return known[kind]
    entry = next((path for path in spec.compute if path.kind == kind), None)
    if entry is not None and entry.support == "emulated" and entry.compute_as not in (None, kind):
        return flop_energy_j(spec, str(entry.compute_as))
    if kind in ("fp32", "tf32"):
        return None
    return known.get("bf16", known.get("fp16"))


def energy_gaps(spec: HardwareSpec, kind: str) -> tuple[str, ...]:
    """Return which parts of the energy of work in ``kind`` are unknown: of "static", "memory", "compute"."""
    parts = {
        "static": spec.power.static_w,
        "memory": memory_j_per_bit(spec),
        "compute": flop_energy_j(spec, kind),
    }
    return tuple(name for name, value in parts.items() if value is None)


def dynamic_energy_j(work: Work, spec: HardwareSpec, time_s: Floats) -> Floats:
    """Return the energy on top of static power, in joules.

    Unknown parts count 0 (``energy_gaps`` names them). Board power saturates at its limit: the dynamic part
    is at most (TDP - static) * t. The time is not stretched instead, because the kernel efficiencies are
    fitted to measured times, which already hold whatever throttling there was.
    """
    per_bit = memory_j_per_bit(spec) or 0.0
    per_flop = flop_energy_j(spec, work.compute) or 0.0
    moved = np.asarray(work.read_bytes, dtype=np.float64) + work.write_bytes
    energy_j: Floats = moved * BITS_PER_BYTE * per_bit + (work.flop + work.vector_flop) * per_flop
    if spec.power.tdp_w is None:
        return energy_j
    headroom_w = max(0.0, spec.power.tdp_w - (spec.power.static_w or 0.0))
    return np.minimum(energy_j, headroom_w * time_s)


JOULES_PER_KWH = 3.6e6


def co2e_g(energy_j: Floats, intensity_g_per_kwh: float) -> Floats:
    """Return grams of CO2 equivalent of an energy at a grid's intensity in g/kWh."""
    return energy_j / JOULES_PER_KWH * intensity_g_per_kwh


def link_energy_j(moved_bytes: Floats, link: Link) -> Floats:
    """Return the energy of a transfer in joules, 0 where the link's energy is unknown."""
    return moved_bytes * (BITS_PER_BYTE * (link.energy_j_per_bit or 0.0))
