"""Second levels of scales: 8-bit scales under a float16 per row, and QLoRA's double quantization.

- "int8_row" (VS-Quant, arXiv 2102.04503): r = max of a row's scales / 255 as float16, scale = k r, k = 1 ...
  255.
- "double" (QLoRA, arXiv 2305.14314): scales minus their mean, in blocks of 256, each block divided by its
  absolute maximum (float32) and rounded to the signed 8-bit dynamic codes of Dettmers (arXiv 1511.04561).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dse.formats.grammar import DOUBLE_BLOCK
from dse.formats.precision import ScaleCodec
from dse.quantize.half import half_scale

_CODES = 255.0
_TINY = 2.0**-126


def encode_scales(scale: Tensor, codec: ScaleCodec) -> tuple[Tensor, Tensor]:
    """Return (codes (R, n) int64, second level (S,) float32) of scales (R, n); NaN scales do not count."""
    finite = scale.nan_to_num(0.0, 0.0, 0.0)
    if codec == "int8_row":
        unit = half_scale(finite.amax(1) / _CODES)
        codes = (finite / unit[:, None]).round_().clamp_(1, _CODES)
        return codes.long(), unit
    mean = finite.mean()
    blocks = _blocks(finite - mean)
    top = blocks.abs().amax(1).clamp(min=_TINY)
    levels = dynamic_levels()
    codes = torch.bucketize(blocks / top[:, None], (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: scale.numel()].view(scale.shape), torch.cat([top, mean.view(1)])


def decode_scales(codes: Tensor, second: Tensor, codec: ScaleCodec) -> Tensor:
    """Return the scales (R, n) float32; never below 0 (a scale below its block's resolution counts as 0)."""
    if codec == "int8_row":
        return codes.float() * second[:, None]
    top, mean = second[:-1], second[-1]
    values = dynamic_levels()[_blocks(codes)] * top[:, None] + mean
    return values.view(-1)[: codes.numel()].view(codes.shape).clamp(min=0.0)


def codes_of_scales(scale: Tensor, second: Tensor, codec: ScaleCodec) -> Tensor:
    """Return the codes of scales that ``decode_scales`` made with this second level."""
    if codec == "int8_row":
        return (scale / second[:, None]).round().long()
    levels = dynamic_levels()
    blocks = (_blocks(scale - second[-1])) / second[:-1, None]
    codes = torch.bucketize(blocks, (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: scale.numel()].view(scale.shape)


@lru_cache(maxsize=1)
def dynamic_levels() -> Tensor:
    """Return the 256 signed dynamic levels in order, float32.

    7 decades, the i-th (from 10^-6) with 2^i magnitudes in the middle of equal parts of [0.1, 1), on both
    sides, and 0 and 1.
    """
    levels = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1.0, 2**i + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)).tolist()
        levels += middles + [-value for value in middles]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def _blocks(values: Tensor) -> Tensor:
    """Return the flat values in rows of 256, filled up with zeros."""
    flat = values.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % DOUBLE_BLOCK)).view(-1, DOUBLE_BLOCK)
