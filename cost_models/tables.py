"""Products with weights that are numbers of levels in a table, and sparse products beside a dense one.

Two ways to use a table (METHODS "analytic cost hooks"): expand every weight through it on the way into the
product (SqueezeLLM, arXiv 2306.07629; Any-Precision LLM, arXiv 2402.10517), or make a table of partial sums
of the activations and look those up instead of multiplying (LUT-GEMM, arXiv 2206.09557), which one-bit
weights allow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cost_models.matmul import expanded_dense_s, matmul_times
from cost_models.roofline import KernelTimes, roofline, smooth_max, vector_rate_flop_per_s
from cost_models.work import Floats, Work
from hardware_specs.kernels import KernelProfile
from hardware_specs.spec import HardwareSpec

LOOKUPS_PER_CORE_CYCLE = 32.0
"""Table entries that one core reads in a clock cycle: 32 banks of shared memory on an SM or CU (CUDA C++
programming guide, "Shared memory"), 32 bytes of one shuffle on a CPU with AVX2 (T-MAC, arXiv 2407.00088)."""

LOOKUP_CLASSES = ("datacenter_gpu", "desktop_gpu", "edge_gpu", "cpu")

ROWS_PER_LOOKUP = 128.0
"""Rows of activations that share an expanded weight: those of a tile."""

SUM_GROUP = 8
"""Inputs whose partial sums one table holds (LUT-GEMM's choice): 2^8 entries for every 8 inputs and row."""

SPARSE_BYTE_FRAC = 0.4
"""Share of the bandwidth that a product with compressed sparse rows reaches: 0.3 to 0.5 (METHODS)."""


def lookups_per_s(spec: HardwareSpec) -> float | None:
    """Return table look-ups per second, None where cores or clock are unknown or programs cannot do any."""
    if spec.device_class not in LOOKUP_CLASSES or spec.n_cores is None or spec.clock_hz is None:
        return None
    return LOOKUPS_PER_CORE_CYCLE * spec.n_cores * spec.clock_hz


def lookup_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return the time of a product whose kernel expands weights through a table.

    The kernel that expands on the fly needs a look-up for every weight and tile of rows, beside the work of
    the plain weight-only kernel. Where it is faster, the weights are expanded once and multiplied as 16-bit
    numbers. Without a known look-up rate (``lookups_per_s``) the weight-only kernel stands alone.
    """
    times = matmul_times(work, spec, profile, rate, bandwidth)
    per_s = lookups_per_s(spec)
    if per_s is None or work.shape is None:
        return times
    weights = np.asarray(work.shape[0], dtype=np.float64) * work.shape[1]
    tiles = np.maximum(1.0, np.ceil(np.asarray(work.rows, dtype=np.float64) / ROWS_PER_LOOKUP))
    fused_s = np.maximum(times.time_s, profile.floor_s * work.n_launches + weights * tiles / per_s)
    once_s = expanded_dense_s(work, spec, rate, bandwidth) + weights / per_s
    return KernelTimes(np.minimum(fused_s, once_s), times.compute_time_s, times.memory_time_s)


def bit_plane_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return the time of a product with one-bit weights: the faster of partial sums and expansion.

    Partial sums: ``m ceil(k / 8) (2^8 + n)`` steps at the look-up rate, or the traffic at the weight-only
    kernel's efficiency.
    """
    expanded = lookup_times(work, spec, profile, rate, bandwidth)
    per_s = lookups_per_s(spec)
    if per_s is None or work.shape is None:
        return expanded
    outputs, inputs = work.shape
    steps_s = sum_table_steps(work.rows, outputs, inputs) / per_s
    moved_s = (work.read_bytes + work.write_bytes) / (bandwidth * profile.byte_eff_frac)
    summed_s = profile.floor_s * work.n_launches + smooth_max(steps_s, moved_s, max(1.0, profile.exponent))
    return KernelTimes(
        np.minimum(expanded.time_s, summed_s),
        np.minimum(expanded.compute_time_s, steps_s),
        expanded.memory_time_s,
    )


def sum_table_steps(rows: Floats, outputs: Floats, inputs: Floats, bits: int = 1) -> Floats:
    """Return table entries made and read: ``m ceil(k / g) (2^g + bits n)`` with g = ``SUM_GROUP``."""
    groups = np.ceil(np.asarray(inputs, dtype=np.float64) / SUM_GROUP)
    return rows * groups * (2.0**SUM_GROUP + bits * np.asarray(outputs, dtype=np.float64))


def sparse_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return the time of a compressed sparse product, on the vector units at a share of the bandwidth."""
    slower = replace(profile, byte_eff_frac=profile.byte_eff_frac * SPARSE_BYTE_FRAC)
    moved = work.read_bytes + work.write_bytes
    vector_rate = vector_rate_flop_per_s(spec) or rate
    return roofline(work.vector_flop, moved, vector_rate, bandwidth, slower, work.n_launches)
