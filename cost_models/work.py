"""The narrow waist: physical work in, seconds and joules out. No model graph and no device names here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_specs.kernels import Interval

Floats = float | NDArray[np.float64]
KernelClass = Literal[
    "matmul",
    "matmul_lookup",
    "matmul_bit_plane",
    "sparse",
    "attention_prefill",
    "attention_decode",
    "elementwise",
]
Provenance = Literal["analytic", "calibrated", "measured", "mixed"]


@dataclass(frozen=True)
class Work:
    """Physical work of one operator in one phase. Numeric fields are floats or arrays that broadcast.

    Attributes:
        kernel: class of kernel, which picks the formula.
        profile: name of the device's kernel profile to use, e.g. "gemm_weight_only".
        compute: compute kind whose rate bounds the multiply-adds, e.g. "bf16".
        flop: matrix multiply-add work, 2 per multiply-add.
        vector_flop: element-wise work (softmax exponentials, dequantization, activation quantization).
        read_bytes, write_bytes: traffic of the main memory tier, scales and zero points included.
        rows: m of a matrix product (tokens), new positions of prefill attention, else 1; parallel:
            independent sequences x heads (KV heads in decode attention), else 1; context: positions attended
            to, else 1.
        n_launches: kernels launched.
        weight_bytes: part of the reads that are weights of a matrix product.
        quantize_bytes: traffic of quantizing the activations before the product, beside ``read_bytes``.
        beside_flop: part of ``vector_flop`` that the constants of a product's kernel do not hold, done
            beside it; None for none.
        shape: (n, k) outputs and contraction of a matrix product, None where there is none.
        weights_return: the same weights are read again before others push them off the chip, as in a
            micro-benchmark; never so in a model larger than the on-chip memory.
        window: bound on the positions that attention reaches, None for no bound.
    """

    kernel: KernelClass
    profile: str
    compute: str
    flop: Floats = 0.0
    vector_flop: Floats = 0.0
    read_bytes: Floats = 0.0
    write_bytes: Floats = 0.0
    rows: Floats = 1.0
    parallel: Floats = 1.0
    context: Floats = 1.0
    n_launches: Floats = 1.0
    weight_bytes: Floats = 0.0
    quantize_bytes: Floats = 0.0
    beside_flop: Floats | None = None
    shape: tuple[Floats, Floats] | None = None
    window: float | None = None
    weights_return: bool = False


@dataclass(frozen=True)
class OpCost:
    """What ``Work`` costs on a device; arrays have the broadcast shape of the work.

    ``compute_time_s`` and ``memory_time_s`` are the two roofs (without the launch floor), which say what
    binds. ``energy_j`` is dynamic energy: static power is drawn while a device waits, too, so it is added by
    whoever knows how long the device is on. ``interval`` are ratios of measured to predicted times, by where
    the constants come from: 80 % of kernels lie between ``low_s`` and ``high_s``.
    """

    time_s: Floats
    energy_j: Floats
    compute_time_s: Floats
    memory_time_s: Floats
    provenance: Provenance
    interval: Interval | None = None

    @property
    def low_s(self) -> Floats:
        """Time that nine of ten such kernels exceed; the estimate itself where nothing is known of errors."""
        return self.time_s if self.interval is None else self.time_s * self.interval.low

    @property
    def high_s(self) -> Floats:
        """Time that nine of ten such kernels stay below."""
        return self.time_s if self.interval is None else self.time_s * self.interval.high
