"""Optional constants of kernel profiles and collectives: each group belongs to one refinement of a formula.

They are fitted numbers without units of their own unless a name says otherwise; ``cost_models`` gives the
formulas they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FitProvenance = Literal["analytic", "calibrated"]


@dataclass(frozen=True)
class Tiling:
    """How a matrix kernel cuts its result into tiles (``cost_models.tiles``).

    Attributes:
        wave_frac: how much of the last, partly filled wave of tiles is paid for, 0 (none) to 1 (all).
        small_loss: arithmetic of a 64 x 64 tile against a 128 x 128 one, at least 1 for each halving.
        split_loss: what cutting the contraction into four parts adds, as a share.
    """

    wave_frac: float
    small_loss: float
    split_loss: float


@dataclass(frozen=True)
class Depth:
    """Latency along the contraction axis, which small products cannot hide.

    Attributes:
        time_s: at a contraction of 1024; it grows with the fifth root.
        exponent: of the p-norm that joins it with the roofline (1 adds, large overlaps).
    """

    time_s: float
    exponent: float


@dataclass(frozen=True)
class SmallBatch:
    """The kernel that a library picks for few rows (matrix times vector, on the vector units)."""

    flop_eff_frac: float
    byte_eff_frac: float
    floor_s: float


@dataclass(frozen=True)
class Returning:
    """What a kernel gains when the same weights come back before others have pushed them off the chip.

    So it is in a micro-benchmark that turns over a few copies of a small matrix, and never in a step of a
    model that is larger than the on-chip memory.

    Attributes:
        half_bytes: size of the weights half of whose traffic is served on the chip.
        speedup: on-chip over main memory bandwidth.
    """

    half_bytes: float
    speedup: float


@dataclass(frozen=True)
class QueryTiles:
    """How a prefill attention kernel cuts the queries.

    Attributes:
        rows: query rows of a full tile; ``least_rows`` is what a shorter query is padded to.
        longest_frac: share of the longest tile's time that the others cannot hide.
        tile_s: fixed time of a tile on a core (loading its queries, writing its result).
        width_power: arithmetic takes (head width / 128) to this power longer than in proportion.
    """

    rows: int
    least_rows: int
    longest_frac: float
    tile_s: float = 0.0
    width_power: float = 0.0


@dataclass(frozen=True)
class Interval:
    """Ratios of measured to predicted time: a tenth of them is below ``low``, a tenth above ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class CollectiveProfile:
    """All-reduce of one library over one kind of link (``cost_models.collectives``).

    Attributes:
        start_s, hop_s: fixed time, and time for each further device.
        eff_frac: share of the link's bandwidth that large messages reach.
        half_bytes: below about this message size the efficiency is half of that.
    """

    name: str
    start_s: float
    hop_s: float
    eff_frac: float
    half_bytes: float
    provenance: FitProvenance
    source: str
    interval: Interval | None = None


@dataclass(frozen=True)
class KernelProfile:
    """How well one class of kernels does on one device: constants of the smooth roofline.

    ``t = floor_s + ((flop_time/flop_eff_frac)^p + (byte_time/byte_eff_frac)^p)^(1/p)``, p = ``exponent``.
    ``provenance`` is "calibrated" for constants fitted to measurements of this device and "analytic" for
    family defaults. Efficiencies are fitted constants: those of kernels whose operands stay in a cache
    exceed 1. What is None or neutral leaves its term out.

    Attributes:
        context_log_s, wave_s: decode attention on GPUs: per doubling of the context beyond 64, and per thread
            block and core. ``wave_frac``: how much of a partly filled wave of blocks is paid for.
        activation_eff_frac: share of the bandwidth for activations, where it is not that of the weights.
        tiling, depth: of matrix products on devices whose cores are known.
        returning: what weights gain that come back before they have left the chip (micro-benchmarks).
        quantize_eff_frac: share of the bandwidth of the kernel that quantizes activations before a product.
        small_batch: the kernel for few rows.
        dense_fallback: whether the runtime expands the weights to 16 bits and multiplies those where that is
            faster than the kernel itself.
        exp_eff_frac: share of 16 exponentials per core and cycle; query_tiles: of prefill attention.
        interval: of measured over predicted times.
    """

    name: str
    flop_eff_frac: float
    byte_eff_frac: float
    floor_s: float
    exponent: float
    provenance: FitProvenance
    source: str
    context_log_s: float | None = None
    wave_s: float | None = None
    wave_frac: float = 0.0
    activation_eff_frac: float | None = None
    tiling: Tiling | None = None
    depth: Depth | None = None
    returning: Returning | None = None
    quantize_eff_frac: float | None = None
    small_batch: SmallBatch | None = None
    dense_fallback: bool = False
    exp_eff_frac: float = 1.0
    query_tiles: QueryTiles | None = None
    interval: Interval | None = None


KERNEL_NAMES = (
    "gemm",  # matrix product in a native 16-bit kind
    "gemm_fp8",  # fp8 weights and activations, activations quantized on the fly
    "gemm_int8",  # int8 weights and activations
    "gemm_fp4",  # 4-bit floating-point weights and activations (nvfp4, mxfp4)
    "gemm_weight_only",  # low-bit weights expanded to the 16-bit activation kind inside the kernel
    "gemm_weight_only_int8",  # the same with 8-bit weights, whose kernels are other ones
    "attention_prefill",
    "attention_decode",
    "elementwise",
)
