"""What runs beside an operator: quantizing its input, products with kept outliers, online rotations.

Counts are those of METHODS "analytic cost hooks". Outlier stores: SpQR, arXiv 2306.03078, and SqueezeLLM,
arXiv 2306.07629 (CSR); PB-LLM, arXiv 2310.00034 (bitmap); OWQ, arXiv 2306.02272 (columns); Delta-CoMe,
arXiv 2406.08903 (low rank). Rotations: QuaRot, arXiv 2404.00456.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cost_models.kernels import gather_bytes, hadamard_additions
from cost_models.work import Floats, Work
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.formats.storage import stored_bits
from dse.graph.operator import Attention, Block, Op

Store = Literal["csr", "bitmap", "columns", "low_rank"]
STORES: tuple[Store, ...] = get_args(Store)
TRANSFORMS = ("none", "awq", "smooth", "rotate", "quarot")
"""Names of ``dse evaluate --transform``; all but "quarot" fold into weights and cost nothing online."""

SIXTEEN_BIT_BYTES, INDEX_BYTES, POINTER_BYTES = 2.0, 2.0, 4.0
BITS_PER_BYTE = 8.0
QUANTIZE_OPS_PER_ELEMENT = 3.0
_OUTLIERS = re.compile(r"(?P<store>[a-z_]+):(?P<amount>\d+(\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Outliers:
    """What every quantized weight keeps beside its low-bit matrix.

    Attributes:
        store: "csr" or "bitmap" (single elements), "columns" (whole input channels), "low_rank".
        share_frac: of the elements, or of the columns; rank: of a low-rank residual.
    """

    store: Store
    share_frac: float = 0.0
    rank: int = 0

    def n_columns(self, inputs: int) -> int:
        """Return how many of ``inputs`` columns are kept."""
        return round(self.share_frac * inputs) if self.store == "columns" else 0

    def bytes_beside(self, outputs: Floats, inputs: int) -> Floats:
        """Return the bytes beside a matrix, as ``dse.quantize.outliers`` stores them.

        CSR: a 16-bit value and column per element, 32-bit row pointers; bitmap: a value per element and a bit
        per position; columns: 16-bit values and an index per column; low rank: two 16-bit factors.
        """
        rows = np.asarray(outputs, dtype=np.float64)
        n_kept = np.round(self.share_frac * rows * inputs)
        if self.store == "csr":
            return n_kept * (SIXTEEN_BIT_BYTES + INDEX_BYTES) + (rows + 1) * POINTER_BYTES
        if self.store == "bitmap":
            return n_kept * SIXTEEN_BIT_BYTES + np.ceil(rows * inputs / BITS_PER_BYTE)
        if self.store == "columns":
            return self.n_columns(inputs) * (rows * SIXTEEN_BIT_BYTES + INDEX_BYTES)
        return self.rank * (rows + inputs) * SIXTEEN_BIT_BYTES

    def matrix_bytes(self, fmt: NumberFormat, outputs: int, inputs: int) -> float:
        """Return the bytes of the low-bit matrix, which lacks kept columns."""
        left = inputs - self.n_columns(inputs)
        return stored_bits(fmt, outputs, left) / BITS_PER_BYTE if left else 0.0


@dataclass(frozen=True)
class Extras:
    """What a quantization method adds to every operator, by the names that ``dse evaluate`` takes."""

    transform: str = "none"
    outliers: Outliers | None = None

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ConfigError(
                f"unknown transform '{self.transform}'",
                path="--transform",
                value=self.transform,
                allowed=TRANSFORMS,
            )

    def keeps(self, fmt: NumberFormat) -> Outliers | None:
        """Return what weights of a format keep beside them: nothing where they are not quantized."""
        return None if fmt.is_float else self.outliers


NO_EXTRAS = Extras()


def parse_outliers(text: str) -> Outliers:
    """Return the store of e.g. ``csr:0.5%``, ``bitmap:10%``, ``columns:1%`` or ``low_rank:16``.

    Raises:
        ConfigError: another store, a share that is not in (0 %, 100 %), or a rank that is no whole number.
    """
    match = _OUTLIERS.fullmatch(text.strip().lower())
    store = next((known for known in STORES if match is not None and known == match["store"]), None)
    if match is None or store is None:
        raise ConfigError(
            f"outliers are STORE:SHARE% or low_rank:RANK, but got '{text}'",
            path="--outliers",
            value=text.partition(":")[0],
            allowed=STORES,
        )
    amount, percent = float(match["amount"]), bool(match["percent"])
    if percent == (store == "low_rank") or not (0 < amount < 100 or store == "low_rank"):
        need = "a rank without %" if store == "low_rank" else "a share above 0% and below 100%"
        raise ConfigError(f"{store} needs {need}, but got '{text}'", path="--outliers", value=text)
    if store != "low_rank":
        return Outliers(store, amount / 100.0)
    if amount != int(amount) or amount < 1:
        raise ConfigError(f"a rank is a whole number, but got '{text}'", path="--outliers", value=text)
    return Outliers(store, rank=int(amount))


def quantize_work(
    compute: str, rows: Floats, inputs: Floats, row_bytes: Floats, n_launches: Floats = 1.0
) -> Work:
    """Return the work of the kernel that quantizes x[m, k] before a product: 3 operations an element.

    Args:
        rows, inputs: m, k; row_bytes: of one quantized row.
        n_launches: 1 / n where n products share the quantized input; its work is then shared, too.
    """
    return Work(
        "elementwise",
        "elementwise",
        compute,
        vector_flop=QUANTIZE_OPS_PER_ELEMENT * rows * inputs * n_launches,
        read_bytes=rows * inputs * SIXTEEN_BIT_BYTES * n_launches,
        write_bytes=rows * row_bytes * n_launches,
        n_launches=n_launches,
    )


def outlier_works(
    kept: Outliers, compute: str, rows: Floats, outputs: Floats, inputs: int, n_launches: Floats = 1.0
) -> tuple[Work, ...]:
    """Return the works of the product with what is kept, which is added to y[m, n] in 16 bits.

    A sparse product; or kept columns (a gather of their inputs and a narrow product); or two narrow ones.
    ``n_launches`` is 0 for operators that do not run.
    """
    result = rows * outputs * SIXTEEN_BIT_BYTES
    if kept.store in ("csr", "bitmap"):
        n_kept = kept.share_frac * outputs * inputs
        return (
            Work(
                "sparse",
                "elementwise",
                compute,
                vector_flop=2.0 * n_kept * rows,
                read_bytes=kept.bytes_beside(outputs, inputs) + rows * inputs * SIXTEEN_BIT_BYTES + result,
                write_bytes=result,
                n_launches=n_launches,
            ),
        )
    if kept.store == "columns":
        n_columns = kept.n_columns(inputs)
        if n_columns == 0:
            return ()
        return (
            _gather(compute, rows, n_columns, n_launches),
            _narrow(compute, rows, outputs, n_columns, result, n_launches),
        )
    return (
        _narrow(compute, rows, kept.rank, inputs, 0.0, n_launches),
        _narrow(compute, rows, outputs, kept.rank, result, n_launches),
    )


def rotation_works(
    op: Op, block: Block, compute: str, extras: Extras, rows: Floats, n_launches: Floats = 1.0
) -> tuple[Work, ...]:
    """Return the online rotations before an operator: (vectors per row, width) each, none for most.

    QuaRot turns the input of the down projection, the attention's output across heads, and queries and keys.
    ``rows`` are tokens.
    """
    if extras.transform != "quarot":
        return ()
    return tuple(
        Work(
            "elementwise",
            "elementwise",
            compute,
            vector_flop=rows * n_vectors * float(hadamard_additions(width, hadamard_block(width))),
            read_bytes=rows * n_vectors * width * SIXTEEN_BIT_BYTES,
            write_bytes=rows * n_vectors * width * SIXTEEN_BIT_BYTES,
            n_launches=n_launches,
        )
        for n_vectors, width in _rotated(op, block)
    )


def hadamard_block(width: int) -> int | None:
    """Return the dense factor of a transform, None for powers of two, which need none.

    4 x the odd part where that divides the width, else all of it: Hadamard matrices have orders of 1, 2 and
    multiples of 4, and other widths are turned by a dense matrix.
    """
    if width & (width - 1) == 0:
        return None
    odd = width // (width & -width)
    return 4 * odd if width % (4 * odd) == 0 else width


def _rotated(op: Op, block: Block) -> list[tuple[int, int]]:
    attention = op.attention
    if attention is not None:
        return [] if attention.cross else [(attention.n_heads + attention.n_kv_heads, attention.head_dim)]
    if op.kind != "linear" or op.weight_shape is None:
        return []
    inputs = op.weight_shape[1]
    after = _attention_before(op, block)
    if after is not None:
        return [(inputs // after.n_heads, after.n_heads)]
    hidden, experts = _hidden_size(block), 1 if op.experts is None else op.experts.n_experts
    writes_hidden = op.weight_shape[0] == hidden * experts
    return [(1, inputs)] if writes_hidden and inputs != hidden else []


def _attention_before(op: Op, block: Block) -> Attention | None:
    """Return the attention whose output a linear reads: the first one after it, of its input width."""
    found: Attention | None = None
    for entry in block.ops:
        if entry.attention is not None:
            found = entry.attention
        elif entry.kind == "linear":
            if entry.name == op.name:
                width = 0 if found is None else found.n_heads * (found.value_dim or found.head_dim)
                return found if op.weight_shape is not None and op.weight_shape[1] == width else None
            if found is not None:
                found = None
    return None


def _hidden_size(block: Block) -> int:
    """Return the width of the residual stream: what the block's first linear reads."""
    return next((op.weight_shape[1] for op in block.ops if op.kind == "linear" and op.weight_shape), 0)


def _gather(compute: str, rows: Floats, width: int, n_launches: Floats) -> Work:
    """Return the work of picking channels in another order: every element and its 16-bit index."""
    return Work(
        "elementwise",
        "elementwise",
        compute,
        read_bytes=gather_bytes(rows, width, SIXTEEN_BIT_BYTES),
        write_bytes=rows * width * SIXTEEN_BIT_BYTES,
        n_launches=n_launches,
    )


def _narrow(
    compute: str, rows: Floats, outputs: Floats, inputs: int, added_bytes: Floats, n_launches: Floats
) -> Work:
    """Return the work of a narrow 16-bit product; ``added_bytes`` are read where it adds to a result."""
    weights = SIXTEEN_BIT_BYTES * np.asarray(outputs, dtype=np.float64) * inputs
    return Work(
        "matmul",
        "gemm",
        compute,
        flop=2.0 * rows * outputs * inputs,
        read_bytes=weights + rows * inputs * SIXTEEN_BIT_BYTES + added_bytes,
        write_bytes=rows * outputs * SIXTEEN_BIT_BYTES,
        rows=rows,
        n_launches=n_launches,
        weight_bytes=weights,
        shape=(outputs, float(inputs)),
    )


def scaled_sums_per_output(weights: NumberFormat, activations: NumberFormat, inputs: int) -> float:
    """Return the vector operations for each output of a product whose array adds up bare integers or fp8.

    Scales of groups along the contraction multiply partial sums (2 operations for each group; Atom, MixLLM,
    DeepSeek-V3's promotion every 128 inputs); zero points of activations subtract a precomputed row sum.
    """
    sizes = [fmt.group_size for fmt in (weights, activations) if fmt.group_size]
    groups = math.ceil(inputs / min(sizes)) if sizes else 0
    return 2.0 * groups + (2.0 if activations.grid == "asym" else 0.0)
