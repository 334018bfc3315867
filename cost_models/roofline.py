"""The smooth roofline with a launch floor, which every class of kernel is built from.

``t = floor + ((flop_s / flop_eff)^p + (byte_s / byte_eff)^p)^(1/p)``: the roofline of Williams et al. (CACM
2009) with its hard maximum replaced by a p-norm, because arithmetic and transfers overlap only partly. The
hard maximum is p -> inf, no overlap at all is p = 1; p < 1 is what kernels show that also expand weights on
the arithmetic units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cost_models.work import Floats
from hardware_specs.kernels import KernelProfile
from hardware_specs.spec import HardwareSpec

LEAST_S = float(np.finfo(np.float64).tiny)
"""What a time is divided by at least, so that 0 / 0 is 0."""


@dataclass(frozen=True)
class KernelTimes:
    """Time of a kernel and its two roofs (both without the floor), which say what binds."""

    time_s: Floats
    compute_time_s: Floats
    memory_time_s: Floats


def smooth_max(first: Floats, second: Floats, exponent: float) -> Floats:
    """Return the p-norm of two non-negative amounts, 0 where both are 0.

    Between the maximum and 2^(1/p) times it. Scaled by the maximum, so that no power under- or overflows.
    """
    high = np.maximum(first, second)
    ratio = np.minimum(first, second) / np.maximum(high, LEAST_S)
    return high * (1.0 + ratio**exponent) ** (1.0 / exponent)


def vector_rate_flop_per_s(spec: HardwareSpec) -> float | None:
    """Return the rate of element-wise arithmetic: that of native fp32, None where it is not published."""
    fp32 = next((path for path in spec.compute if path.kind == "fp32" and path.support == "native"), None)
    return None if fp32 is None else fp32.dense_flop_per_s


def roof_times_s(
    flop: Floats,
    moved_bytes: Floats,
    rate_flop_per_s: float,
    bandwidth_bytes_per_s: float,
    flop_eff_frac: float = 1.0,
    byte_eff_frac: float = 1.0,
) -> tuple[Floats, Floats]:
    """Return the arithmetic time and the transfer time in seconds, each at its efficiency."""
    return flop / (rate_flop_per_s * flop_eff_frac), moved_bytes / (bandwidth_bytes_per_s * byte_eff_frac)


def roofline(
    flop: Floats,
    moved_bytes: Floats,
    rate_flop_per_s: float,
    bandwidth_bytes_per_s: float,
    profile: KernelProfile,
    n_launches: Floats = 1.0,
) -> KernelTimes:
    """Return the times of kernels that together do ``flop`` and move ``moved_bytes``.

    Non-decreasing in the work, non-increasing in rate and bandwidth; no work costs ``n_launches`` floors.
    """
    compute_s, memory_s = roof_times_s(
        flop,
        moved_bytes,
        rate_flop_per_s,
        bandwidth_bytes_per_s,
        profile.flop_eff_frac,
        profile.byte_eff_frac,
    )
    busy_s = smooth_max(compute_s, memory_s, profile.exponent)
    return KernelTimes(busy_s + profile.floor_s * n_launches, compute_s, memory_s)
