"""Attention kernels: causal pairs and the exponential unit in prefill, split-KV overheads in decode.

The forms were chosen on measured kernel tables (aiconfigurator-core 0.12, Apache-2.0); `dse bench fidelity`
prints how far they are off. Two overheads of decode are family medians where a device has no fit.
"""

from __future__ import annotations

import numpy as np

from cost_models.roofline import KernelTimes, roof_times_s, smooth_max
from cost_models.work import Floats, Work
from hardware_specs.kernels import KernelProfile, QueryTiles
from hardware_specs.spec import HardwareSpec

EXPONENTIALS_PER_CORE_CYCLE = 16.0
"""Special-function results of one GPU core (SM or CU) per clock cycle; fitted efficiencies are near 1."""

FLOP_PER_EXPONENTIAL = 4.0 * 128.0
"""Multiply-add work of a pair at the head width that the width's power is relative to."""

DECODE_LOG_S = 0.85e-6
"""Seconds per doubling of the context beyond 64 (split-KV reduction): median of the fits of A100 1.64, H100
1.21, L40S 0.39 and RTX PRO 6000 0.48 microseconds."""

DECODE_WAVE_S = 1.9e-6
"""Seconds per (sequence x KV head) per core: median of the fits of 3.46, 2.44, 0.72 and 1.37 microseconds."""

GPU_CLASSES = ("datacenter_gpu", "desktop_gpu", "edge_gpu")


def causal_pairs(query: Floats, context: Floats, window: float | None = None, tile: Floats = 1.0) -> Floats:
    """Return how many (query, key) pairs one head of one sequence computes under a causal mask.

    Args:
        query, context: new positions q and all positions c >= q; the first c - q are a cached prefix.
        window: each position attends to this many at most (itself included); None for no bound.
        tile: query rows that a kernel handles together. Whole tiles are computed: rows are padded to it and
            the diagonal tile is full.

    Returns:
        For tile 1 and no window q (c - q) + q (q + 1) / 2. Each row tile attends to the prefix and to all
        tiles up to its own, at most ``window`` + ``tile`` - 1 keys.
    """
    n_tiles = np.ceil(np.asarray(query, dtype=np.float64) / tile)
    prefix = np.asarray(context, dtype=np.float64) - query
    unbounded = _triangle(n_tiles, prefix, tile)
    if window is None:
        return unbounded
    reach = float(window) + tile - 1
    n_growing = np.clip(np.floor((reach - prefix) / tile), 0, n_tiles)
    return _triangle(n_growing, prefix, tile) + (n_tiles - n_growing) * tile * reach


def _triangle(n_tiles: Floats, prefix: Floats, tile: Floats) -> Floats:
    """Return the sum over t = 1..n of tile * (prefix + t * tile)."""
    return tile * (n_tiles * prefix + tile * n_tiles * (n_tiles + 1) / 2)


def exponential_rate_per_s(spec: HardwareSpec) -> float | None:
    """Return exponentials per second of a GPU, None where cores or clock are unknown or it is no GPU."""
    if spec.device_class not in GPU_CLASSES or spec.n_cores is None or spec.clock_hz is None:
        return None
    return EXPONENTIALS_PER_CORE_CYCLE * spec.n_cores * spec.clock_hz


def prefill_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return ``t0 + |(flop_s + exp_s) over all cores, the longest tile|_p + byte_s``.

    The exponentials do not overlap with the matrix products. ``work.vector_flop`` are the exponentials, one
    per pair and head; where no exponential rate is known their time is left out. Kernels with query tiles
    compute whole tiles, each with a fixed time, and where there are few of them the longest one decides.
    Bytes add to the rest instead of hiding behind it, as in the fitted form.
    """
    moved = work.read_bytes + work.write_bytes
    compute_s, memory_s = roof_times_s(
        work.flop, moved, rate, bandwidth, profile.flop_eff_frac, profile.byte_eff_frac
    )
    tiles = profile.query_tiles
    if tiles is not None and tiles.width_power > 0:
        compute_s = compute_s * (work.flop / (FLOP_PER_EXPONENTIAL * work.vector_flop)) ** tiles.width_power
    exponentials_per_s = exponential_rate_per_s(spec)
    if exponentials_per_s is not None:
        compute_s = compute_s + work.vector_flop / (profile.exp_eff_frac * exponentials_per_s)
    busy_s = compute_s
    if tiles is not None and spec.n_cores is not None:
        compute_s, busy_s = _tiled_prefill(compute_s, work, tiles, spec.n_cores, profile.exponent)
    time_s = profile.floor_s * work.n_launches + busy_s + memory_s
    return KernelTimes(time_s, compute_s, memory_s)


def _tiled_prefill(
    compute_s: Floats, work: Work, tiles: QueryTiles, n_cores: int, exponent: float
) -> tuple[Floats, Floats]:
    """Return the time of whole tiles spread evenly over the cores, and joined with the longest tile's."""
    query = np.asarray(work.rows, dtype=np.float64)
    tile = np.minimum(tiles.rows, np.ceil(query / tiles.least_rows) * tiles.least_rows)
    pairs = causal_pairs(query, work.context, work.window)
    padded = causal_pairs(query, work.context, work.window, tile)
    even_s = compute_s * padded / pairs
    reach = np.ceil(query / tile) * tile + work.context - query
    if work.window is not None:
        reach = np.minimum(reach, work.window + tile - 1)
    longest_s = even_s * n_cores * tile * reach / (padded * work.parallel)
    busy_s = smooth_max(even_s, tiles.longest_frac * longest_s, exponent)
    return even_s, busy_s + tiles.tile_s * np.ceil(query / tile) * work.parallel / n_cores


def decode_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Return ``t0 + log * log2(1 + context / 64) + |roofline, wave * waves|_p``.

    Waves are thread blocks (sequences x KV heads) over cores, of which the last, partly filled one counts
    with ``wave_frac``. The two overheads are those of GPU kernels that split the context over cores, by the
    profile's own fit or else the family's; elsewhere they are left out.
    """
    moved = work.read_bytes + work.write_bytes
    compute_s, memory_s = roof_times_s(
        work.flop, moved, rate, bandwidth, profile.flop_eff_frac, profile.byte_eff_frac
    )
    overhead_s: Floats = profile.floor_s
    busy_s = smooth_max(compute_s, memory_s, profile.exponent)
    if spec.device_class in GPU_CLASSES and spec.n_cores is not None:
        log_s = DECODE_LOG_S if profile.context_log_s is None else profile.context_log_s
        wave_s = DECODE_WAVE_S if profile.wave_s is None else profile.wave_s
        overhead_s = overhead_s + log_s * np.log2(1.0 + np.asarray(work.context) / 64.0)
        waves = np.asarray(work.parallel, dtype=np.float64) / spec.n_cores
        if profile.wave_frac > 0:
            waves = waves ** (1.0 - profile.wave_frac) * np.ceil(waves) ** profile.wave_frac
        busy_s = smooth_max(np.maximum(compute_s, memory_s), wave_s * waves, profile.exponent)
    return KernelTimes(overhead_s * work.n_launches + busy_s, compute_s, memory_s)
