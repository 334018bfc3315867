"""Scopes of a scale that are no cut of the last axis: columns and two-dimensional blocks.

Such a tensor is rearranged so that each scope becomes one row, and everything else stays the same. Rows and
columns that a block lacks at the edges are filled with zeros, which no min-max scale sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from dse.formats.precision import NumberFormat

Back = Callable[[Tensor], Tensor]


def needs_layout(fmt: NumberFormat) -> bool:
    """Whether the scales of a format are not along the last axis."""
    return fmt.granularity == "column" or fmt.block_rows is not None


def rearranged(matrix: Tensor, fmt: NumberFormat) -> tuple[Tensor, NumberFormat, Back]:
    """Return (scopes as rows, the format that has a scale per row, how to bring elements back).

    Args:
        matrix: (R, C).
        fmt: a format that ``needs_layout``.
    """
    inner = replace(fmt, granularity="row", group_size=None, block_rows=None)
    if fmt.block_rows is None:
        return matrix.t().contiguous(), inner, _transposed
    rows, columns = matrix.shape
    height, width = fmt.block_rows, fmt.group_size or columns
    down, across = -(-rows // height), -(-columns // width)
    padded = pad(matrix, (0, across * width - columns, 0, down * height - rows))
    blocks = padded.view(down, height, across, width).transpose(1, 2).reshape(down * across, height * width)

    def back(values: Tensor) -> Tensor:
        whole = values.view(down, across, height, width).transpose(1, 2)
        return whole.reshape(down * height, across * width)[:rows, :columns].contiguous()

    return blocks, inner, back


def _transposed(values: Tensor) -> Tensor:
    return values.t().contiguous()
