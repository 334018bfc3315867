"""Exact storage: what a tensor of a format takes, scales and zero points included (METHODS section 0).

bits = elements * b + scales * b_scale + zero points * b_zero (+ one 32-bit scale per tensor for NVFP4; + what
a second level of scales stores; a table counts all its entries as scales). A group size that does not divide
the row leaves a shorter last group, which has a scale of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dse.formats.grammar import DOUBLE_BLOCK, NVFP4_TENSOR_SCALE_BITS, SCALE_ROWS
from dse.formats.precision import NumberFormat


@dataclass(frozen=True)
class StoredMatrix:
    """A parameter tensor as it is stored; a vector (norm, bias) has one row."""

    fmt: NumberFormat
    rows: int
    columns: int

    @property
    def n_elements(self) -> int:
        """Parameters."""
        return self.rows * self.columns

    @property
    def bits(self) -> int:
        """Stored bits with all metadata."""
        return stored_bits(self.fmt, self.rows, self.columns)


@dataclass(frozen=True)
class EffectiveBits:
    """Average stored bits of one parameter: of the linears alone, and of all parameters of the model."""

    linear: float
    whole_model: float


def scales_per_row(fmt: NumberFormat, columns: int) -> int:
    """Return how many scales one vector of ``columns`` elements stores; 0 if it shares the tensor's."""
    if fmt.is_float or fmt.granularity in ("tensor", "column") or fmt.block_rows:
        return 0
    if fmt.table_entries:
        return fmt.table_entries
    return math.ceil(columns / fmt.group_size) if fmt.group_size else 1


def tensor_bits(fmt: NumberFormat) -> int:
    """Return the bits that a tensor stores once: its only scale and zero point, or NVFP4's second level."""
    if fmt.kind == "nvfp4":
        return NVFP4_TENSOR_SCALE_BITS
    if fmt.granularity != "tensor":
        return 0
    return max(fmt.table_entries, 1) * fmt.scale_bits + fmt.zero_bits


def scale_shape(fmt: NumberFormat, rows: int, columns: int) -> tuple[int, int]:
    """Return the shape of a matrix's scales: (1, 1) per tensor, (rows, n), (1, columns) or 2-D blocks."""
    if fmt.granularity == "column":
        return 1, columns
    if fmt.block_rows:
        return math.ceil(rows / fmt.block_rows), math.ceil(columns / (fmt.group_size or columns))
    per_row = scales_per_row(fmt, columns)
    return (rows, per_row) if per_row else (1, max(fmt.table_entries, 1))


def second_level(fmt: NumberFormat, rows: int, columns: int) -> tuple[int, int]:
    """Return (numbers, bits of each) of the second level of scales; (0, 0) without one.

    "int8_row" is a float16 per row (VS-Quant, arXiv 2102.04503); "double" a float32 per 256 scales and their
    float32 mean (QLoRA, arXiv 2305.14314, which leaves the mean out of its count); "rows16" two float16, for
    scales and for zero points, per 16 rows of each group (SpQR, arXiv 2306.03078).
    """
    if fmt.scale_codec == "int8_row":
        return rows, 16
    if fmt.scale_codec == "double":
        return math.ceil(rows * scales_per_row(fmt, columns) / DOUBLE_BLOCK) + 1, 32
    if fmt.scale_codec == "rows16":
        return 4 * math.ceil(rows / SCALE_ROWS) * scales_per_row(fmt, columns), 16
    return 0, 0


def row_bits(fmt: NumberFormat, columns: int) -> int:
    """Return the bits of one vector of ``columns`` elements with its own scales, without the tensor's."""
    return columns * fmt.bits + scales_per_row(fmt, columns) * (fmt.scale_bits + fmt.zero_bits)


def stored_bits(fmt: NumberFormat, rows: int, columns: int) -> int:
    """Return the bits of a matrix, metadata included; rows are outputs, columns the contraction axis.

    Raises:
        ValueError: a size is not positive.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a matrix has at least one row and column, but got {rows} x {columns}")
    n_second, second_bits = second_level(fmt, rows, columns)
    bits = rows * row_bits(fmt, columns) + tensor_bits(fmt) + n_second * second_bits
    if fmt.granularity == "column" or fmt.block_rows:
        bits += math.prod(scale_shape(fmt, rows, columns)) * (fmt.scale_bits + fmt.zero_bits)
    return bits


def stored_bytes(fmt: NumberFormat, rows: int, columns: int) -> int:
    """Return the bytes of a matrix packed into one bit stream: ceil(bits / 8)."""
    return (stored_bits(fmt, rows, columns) + 7) // 8


def bits_per_element(fmt: NumberFormat, rows: int, columns: int) -> float:
    """Return the effective bits per element of one matrix."""
    return stored_bits(fmt, rows, columns) / (rows * columns)


def activation_bits_per_element(fmt: NumberFormat, channels: int) -> float:
    """Return the bits per element of activation vectors of ``channels`` elements.

    What a whole tensor stores once is left out: it vanishes over the tokens.
    """
    return row_bits(fmt, channels) / channels


def kv_bits_per_token(fmt: NumberFormat, n_kv_heads: int, head_dim: int) -> int:
    """Return the bits of the K and V vectors of one token in one layer, scales per token and head."""
    return 2 * n_kv_heads * row_bits(fmt, head_dim)


def effective_bits(matrices: Iterable[StoredMatrix]) -> float:
    """Return the average stored bits per parameter of a set of tensors.

    Raises:
        ValueError: the set is empty.
    """
    entries = list(matrices)
    n_elements = sum(entry.n_elements for entry in entries)
    if n_elements == 0:
        raise ValueError("effective bits of no parameters are undefined")
    return sum(entry.bits for entry in entries) / n_elements


def model_effective_bits(linears: Iterable[StoredMatrix], others: Iterable[StoredMatrix]) -> EffectiveBits:
    """Return effective bits of the linears of the blocks, and of the whole model.

    Args:
        linears: quantized and unquantized linears of all blocks.
        others: embeddings, output head (once, if tied), norms, biases, in the formats they are kept in.
    """
    linear_entries = list(linears)
    return EffectiveBits(effective_bits(linear_entries), effective_bits([*linear_entries, *others]))
