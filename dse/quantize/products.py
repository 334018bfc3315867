"""Products of quantized matrices as an integer kernel computes them: exact whole-number sums, then scales.

Within a stretch of columns that shares its scales on both sides, y = S_x S_w sum (q_x - Z_x)(q_w - Z_w): the
sum is exact, as in 32-bit accumulators. The sums of the stretches are scaled and added in float32, in order.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.fake import QuantizedTensor, quantize_codes

ACCUMULATOR_MAX = 2**31 - 1


def is_integer(fmt: NumberFormat) -> bool:
    """Whether a product with this format is one of whole numbers with scales along its columns."""
    along = fmt.granularity in ("tensor", "row", "token", "group") and fmt.block_rows is None
    return fmt.kind == "int" and fmt.scale_codec == "plain" and along


def integer_linear(x: Tensor, fmt: NumberFormat, weight: QuantizedTensor) -> Tensor:
    """Return x W^T (..., R) in float32.

    Args:
        x: (..., C), rounded here to ``fmt``, an integer format.
        fmt: of ``x``; weight: (R, C) as codes, of an integer format.

    Raises:
        ConfigError: a format that is no integer, or sums that leave 32 bits.
    """
    for part in (fmt, weight.fmt):
        if not is_integer(part):
            raise ConfigError(f"'{part.name}' has no integer product", value=part.name)
    given = quantize_codes(x.reshape(-1, x.shape[-1]), fmt)
    columns = given.codes.shape[1]
    cuts = {0, columns}
    for size in (fmt.group_size, weight.fmt.group_size):
        cuts |= set(range(0, columns, size or columns))
    out = torch.zeros(len(given.codes), len(weight.codes), device=x.device)
    for start, end in pairwise(sorted(cuts)):
        # float64 holds whole numbers up to 2^53, so this product is the accumulator's
        sums = _numbers(given, start, end) @ _numbers(weight, start, end).t()
        if float(sums.abs().max()) > ACCUMULATOR_MAX:
            raise ConfigError("the sums of this product do not fit 32 bits")
        scale = _at(given.scale, given.fmt, start) * _at(weight.scale, weight.fmt, start).t()
        out += sums.float() * scale
    return out.view(*x.shape[:-1], -1)


def _numbers(quantized: QuantizedTensor, start: int, end: int) -> Tensor:
    """Return the whole numbers q - Z of a stretch of columns, float64."""
    codes = quantized.codes[:, start:end].double()
    return codes if quantized.zero is None else codes - _at(quantized.zero, quantized.fmt, start).double()


def _at(values: Tensor, fmt: NumberFormat, column: int) -> Tensor:
    """Return the scales (or zero points) that hold from a column on, (rows or 1, 1)."""
    group = column // fmt.group_size if fmt.group_size else 0
    return values[:, group : group + 1]
