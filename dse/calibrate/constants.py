"""Which constants of a kernel profile a fit may move, their bounds and how far a prior lets them go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dse.calibrate.rows import Array
from hardware_specs.kernels import Depth, KernelProfile, QueryTiles, Returning, SmallBatch, Tiling
from hardware_specs.spec import HardwareSpec

LEAST_ROOF_FRAC = 0.97
MAX_EFF = 1.0 / LEAST_ROOF_FRAC
"""No fitted efficiency lets a prediction fall below 0.97 of the physical roofline."""


@dataclass(frozen=True)
class Constant:
    """One constant: its dotted path in ``KernelProfile``, bounds, and the prior's spread (of its logarithm).

    The spreads are those found between the fits of the calibration devices, rounded up.
    """

    path: str
    low: float
    high: float
    spread: float


_MATMUL = (
    Constant("flop_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("byte_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("activation_eff_frac", 0.05, MAX_EFF, 0.5),
    Constant("floor_s", 5e-8, 1e-2, 1.0),
    Constant("exponent", 0.5, 6.0, 0.5),
    Constant("depth.time_s", 1e-9, 1e-3, 1.0),
    Constant("depth.exponent", 0.5, 10.0, 0.7),
    Constant("tiling.wave_frac", 0.01, 1.0, 1.0),
    Constant("tiling.small_loss", 1.0, 1.6, 0.1),
    Constant("tiling.split_loss", 1e-3, 1.0, 1.0),
)
_RETURNING = (
    Constant("returning.half_bytes", 1e5, 1e9, 1.0),
    Constant("returning.speedup", 1.001, 10.0, 0.5),
)
_QUANTIZE = (Constant("quantize_eff_frac", 0.05, MAX_EFF, 0.7),)
_FEW = (
    Constant("small_batch.flop_eff_frac", 1e-3, MAX_EFF, 1.0),
    Constant("small_batch.byte_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("small_batch.floor_s", 5e-8, 1e-2, 1.0),
)
_PREFILL = (
    Constant("flop_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("byte_eff_frac", 0.05, MAX_EFF, 0.5),
    Constant("floor_s", 5e-8, 1e-2, 0.7),
    Constant("exponent", 0.5, 20.0, 0.5),
    Constant("exp_eff_frac", 0.1, 20.0, 0.5),
    Constant("query_tiles.longest_frac", 0.01, 10.0, 0.5),
    Constant("query_tiles.tile_s", 1e-8, 1e-4, 1.0),
    Constant("query_tiles.width_power", 0.01, 1.0, 1.0),
)
_DECODE = (
    Constant("byte_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("floor_s", 5e-8, 1e-2, 0.7),
    Constant("exponent", 0.5, 10.0, 0.5),
    Constant("context_log_s", 1e-9, 1e-4, 1.0),
    Constant("wave_s", 1e-9, 1e-3, 1.0),
    Constant("wave_frac", 0.01, 1.0, 1.0),
)
_PLAIN = (
    Constant("flop_eff_frac", 0.05, MAX_EFF, 0.5),
    Constant("byte_eff_frac", 0.05, MAX_EFF, 0.3),
    Constant("floor_s", 5e-8, 1e-2, 1.0),
    Constant("exponent", 0.5, 6.0, 0.5),
)

QUANTIZING = ("gemm_fp8", "gemm_fp4")
"""Products whose measured time holds the quantization of the activations; that of W8A8 tables does not."""

FEW_ROWS = ("gemm_weight_only", "gemm_weight_only_int8", "gemm_int8")

NEUTRAL = {
    "activation_eff_frac": 0.8,
    "quantize_eff_frac": 0.7,
    "tiling": Tiling(0.2, 1.05, 0.1),
    "depth": Depth(2e-6, 1.5),
    "returning": Returning(1e7, 2.0),
    "small_batch": SmallBatch(0.05, 0.7, 5e-6),
    "query_tiles": QueryTiles(128, 64, 0.6, 2e-6, 0.2),
    "context_log_s": 1e-6,
    "wave_s": 1.5e-6,
    "wave_frac": 0.3,
}
"""Where a fit starts for terms that the prior lacks."""


def constants_of(spec: HardwareSpec, profile: str, *, weights_return: bool = False) -> tuple[Constant, ...]:
    """Return what may be fitted of a profile on a device; tiles and waves need known cores.

    ``weights_return`` says that the measurements turned over a few copies of small weights.
    """
    if profile == "elementwise" or spec.n_cores is None:
        return _PLAIN
    if profile == "attention_prefill":
        return _PREFILL
    if profile == "attention_decode":
        return _DECODE
    return (
        *_MATMUL,
        *(_RETURNING if weights_return else ()),
        *(_QUANTIZE if profile in QUANTIZING else ()),
        *(_FEW if profile in FEW_ROWS else ()),
    )


def completed(profile: KernelProfile, constants: tuple[Constant, ...]) -> KernelProfile:
    """Return a profile in which every constant has a value, neutral ones where it had none."""
    parts = {constant.path.partition(".")[0] for constant in constants} & NEUTRAL.keys()
    missing: dict[str, Any] = {name: NEUTRAL[name] for name in parts if not getattr(profile, name)}
    return replace(profile, **missing)


def values_of(profile: KernelProfile, constants: tuple[Constant, ...]) -> Array:
    """Return the constants of a completed profile, moved inside their bounds."""
    found: list[float] = []
    for constant in constants:
        part: Any = profile
        for name in constant.path.split("."):
            part = getattr(part, name)
        found.append(min(max(float(part), constant.low * 1.001), constant.high / 1.001))
    return np.array(found)


def with_values(profile: KernelProfile, constants: tuple[Constant, ...], values: Array) -> KernelProfile:
    """Return a profile with other constants."""
    flat: dict[str, Any] = {}
    for constant, value in zip(constants, values.tolist(), strict=True):
        part, _, name = constant.path.partition(".")
        if name:
            flat[part] = replace(flat.get(part, getattr(profile, part)), **{name: value})
        else:
            flat[part] = value
    return replace(profile, **flat)
