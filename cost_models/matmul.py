"""Matrix products: the smooth roofline with tiles, contraction latency, and kernels for few rows."""

from __future__ import annotations

import numpy as np

from cost_models.roofline import KernelTimes, smooth_max, vector_rate_flop_per_s
from cost_models.tiles import padded_elements
from cost_models.work import Floats, Work
from hardware_specs.kernels import Depth, KernelProfile, Returning, SmallBatch
from hardware_specs.spec import HardwareSpec

WEIGHT_ONLY_PROFILES = ("gemm_weight_only", "gemm_weight_only_int8")

DEPTH_UNIT = 1024.0
DEPTH_POWER = 0.2
"""Latency grows with this power of the contraction: free fits of six kernels lay between 0.1 and 0.65, and
fixing it costs none of them half a point of median error."""

EXPANDING_SLOWDOWN = 1.05
"""A weight-only kernel's arithmetic against the dense kernel's: median of the time ratios of TensorRT-LLM
W4A16 (1.10, 1.10, 1.06, 1.03) and W8A16 (1.05, 1.05, 1.03, 1.00) to bf16 on A100 above 256 rows."""

WIDE_BYTES = 2.0
"""Bytes of an element that a weight is expanded to."""


def matmul_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return ``t0 + |(|flop_s, byte_s|_p, depth_s)|_q + quantize_s``, at most the time for few rows.

    flop_s counts whole tiles (``padded_elements``), byte_s weights and activations at efficiencies of their
    own, depth_s is latency along the contraction; a kernel that quantizes its activations first pays for
    their traffic once more, and what the vector units do beside the product (``work.beside_flop``) hides
    behind it in part. Terms without constants in the profile are left out. A product that shares a launch
    with others (q/k/v) has a part of one, of its latency and of the quantization of their input.
    """
    times = _tiled_times(work, spec, profile, rate, bandwidth)
    time_s = times.time_s
    if profile.name in WEIGHT_ONLY_PROFILES and profile.provenance == "analytic":
        time_s = np.maximum(time_s, _least_expanding_s(work, spec, profile, rate))
    if profile.small_batch is not None:
        time_s = np.minimum(time_s, _few_rows_s(work, profile, profile.small_batch, rate, bandwidth))
    if profile.dense_fallback:
        time_s = np.minimum(time_s, expanded_dense_s(work, spec, rate, bandwidth))
    if work.beside_flop is not None:
        beside_s = work.beside_flop / (vector_rate_flop_per_s(spec) or rate)
        time_s = smooth_max(time_s, beside_s, max(1.0, profile.exponent))
    if profile.quantize_eff_frac is not None:
        quantize_s = work.quantize_bytes / (bandwidth * profile.quantize_eff_frac)
        time_s = time_s + work.n_launches * quantize_s
    return KernelTimes(time_s, times.compute_time_s, times.memory_time_s)


def _tiled_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    compute_s = tiled_flop(work, spec, profile) / (rate * profile.flop_eff_frac)
    memory_s = traffic_s(work, profile, bandwidth)
    busy_s = smooth_max(compute_s, memory_s, profile.exponent)
    if profile.depth is not None and work.shape is not None:
        latency_s = work.n_launches * depth_s(work.shape[1], profile.depth)
        busy_s = smooth_max(busy_s, latency_s, profile.depth.exponent)
    return KernelTimes(busy_s + profile.floor_s * work.n_launches, compute_s, memory_s)


def _least_expanding_s(work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float) -> Floats:
    """Return what a kernel that also expands its weights needs at least: the dense kernel's arithmetic.

    Constants of another device may say otherwise, and a search would see low-bit weights speed up a long
    prefill. Constants fitted to the device itself are not bounded.
    """
    dense = spec.kernel("gemm")
    dense_s = tiled_flop(work, spec, dense) / (rate * dense.flop_eff_frac)
    return EXPANDING_SLOWDOWN * dense_s + profile.floor_s * work.n_launches


def tiled_flop(work: Work, spec: HardwareSpec, profile: KernelProfile) -> Floats:
    """Return the multiply-add work of whole tiles, or the bare work where tiles are unknown."""
    if profile.tiling is None or work.shape is None or spec.n_cores is None:
        return work.flop
    outputs, depth = work.shape
    return 2.0 * depth * padded_elements(work.rows, outputs, spec.n_cores, profile.tiling)


def traffic_s(work: Work, profile: KernelProfile, bandwidth: float) -> Floats:
    """Return the time of the main memory's traffic; activations may have an efficiency of their own."""
    others = work.read_bytes + work.write_bytes - work.weight_bytes
    weights = work.weight_bytes
    if work.weights_return and profile.returning is not None:
        weights = off_chip_bytes(weights, profile.returning)
    if profile.activation_eff_frac is None:
        return (weights + others) / (bandwidth * profile.byte_eff_frac)
    return (weights / profile.byte_eff_frac + others / profile.activation_eff_frac) / bandwidth


def off_chip_bytes(weights: Floats, returning: Returning) -> Floats:
    """Return the main memory traffic that takes as long as weights of which a part is still on the chip.

    That part falls with size as ``1 / (1 + (bytes / half)^2)``, a smooth cache; the result grows with size.
    """
    share = 1.0 / (1.0 + (weights / returning.half_bytes) ** 2)
    return weights * (1.0 - share * (1.0 - 1.0 / returning.speedup))


def depth_s(depth: Floats, constants: Depth) -> Floats:
    """Return the latency along a contraction: ``time * (depth / 1024)^0.2``."""
    return constants.time_s * (np.asarray(depth, dtype=np.float64) / DEPTH_UNIT) ** DEPTH_POWER


def _few_rows_s(work: Work, profile: KernelProfile, few: SmallBatch, rate: float, bandwidth: float) -> Floats:
    compute_s = work.flop / (rate * few.flop_eff_frac)
    memory_s = (work.read_bytes + work.write_bytes) / (bandwidth * few.byte_eff_frac)
    return few.floor_s * work.n_launches + smooth_max(compute_s, memory_s, profile.exponent)


def expanded_dense_s(work: Work, spec: HardwareSpec, rate: float, bandwidth: float) -> Floats:
    """Return the time to expand the weights to 16 bits (read, write, read again) and multiply those."""
    if work.shape is None:
        return np.full(np.shape(work.flop), np.inf)
    outputs, depth = work.shape
    wide = WIDE_BYTES * np.asarray(outputs, dtype=np.float64) * depth
    dense = Work(
        work.kernel,
        "gemm",
        work.compute,
        work.flop,
        read_bytes=work.read_bytes - work.weight_bytes + wide,
        write_bytes=work.write_bytes,
        rows=work.rows,
        n_launches=work.n_launches,
        weight_bytes=wide,
        shape=work.shape,
    )
    expanding_s = (work.weight_bytes + wide) / bandwidth
    return _tiled_times(dense, spec, spec.kernel("gemm"), rate, bandwidth).time_s + expanding_s
