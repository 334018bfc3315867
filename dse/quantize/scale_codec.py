"""Second levels of scales: 8-bit scales under a float16 per row, QLoRA's double quantization, and SpQR's.

- "int8_row" (VS-Quant, arXiv 2102.04503): r = max of a row's scales / 255 as float16, scale = k r, k = 1 ...
  255.
- "double" (QLoRA, arXiv 2305.14314): scales minus their mean, in blocks of 256, each block divided by its
  absolute maximum (float32) and rounded to the signed 8-bit dynamic codes of Dettmers (arXiv 1511.04561).
- "rows16" (SpQR, arXiv 2306.03078): the scales of 16 neighbouring rows in one group of columns are low + k
  step, k of few bits, with low and step as float16; so are zero points, with a low and a step of their own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dse.formats.grammar import DOUBLE_BLOCK, SCALE_ROWS
from dse.formats.precision import ScaleCodec
from dse.quantize.half import half_scale, half_value

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
    levels = dynamic_levels(scale.device)
    codes = torch.bucketize(blocks / top[:, None], (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: scale.numel()].view(scale.shape), torch.cat([top, mean.view(1)])


def decode_scales(codes: Tensor, second: Tensor, codec: ScaleCodec) -> Tensor:
    """Return the scales (R, n) float32; never below 0 (a scale below its block's resolution counts as 0)."""
    if codec == "int8_row":
        return codes.float() * second[:, None]
    top, mean = second[:-1], second[-1]
    values = dynamic_levels(codes.device)[_blocks(codes)] * top[:, None] + mean
    return values.view(-1)[: codes.numel()].view(codes.shape).clamp(min=0.0)


def codes_of_scales(scale: Tensor, second: Tensor, codec: ScaleCodec) -> Tensor:
    """Return the codes of scales that ``decode_scales`` made with this second level."""
    if codec == "int8_row":
        return (scale / second[:, None]).round().long()
    levels = dynamic_levels(scale.device)
    blocks = (_blocks(scale - second[-1])) / second[:-1, None]
    codes = torch.bucketize(blocks, (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: scale.numel()].view(scale.shape)


@lru_cache(maxsize=4)
def dynamic_levels(device: torch.device) -> Tensor:
    """Return the 256 signed dynamic levels in order, float32.

    7 decades, the i-th (from 10^-6) with 2^i magnitudes in the middle of equal parts of [0.1, 1), on both
    sides, and 0 and 1.
    """
    levels = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1.0, 2**i + 1, dtype=torch.float64, device="cpu")
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)).tolist()
        levels += middles + [-value for value in middles]
    return torch.tensor(sorted(levels), dtype=torch.float32, device=device)


def between_ends(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (codes (R, n) int64, ends (2, B, n) float32) of values (R, n), B blocks of 16 rows.

    The ends are low and step; what is not finite does not count.
    """
    finite = torch.isfinite(values)
    low = _by_rows(values.masked_fill(~finite, torch.inf)).amin(1)
    high = _by_rows(values.masked_fill(~finite, -torch.inf)).amax(1)
    low = half_value(low.masked_fill_(~torch.isfinite(low), 0.0))
    high.masked_fill_(~torch.isfinite(high), 0.0)
    top = float((1 << bits) - 1)
    ends = torch.stack([low, half_value((high - low).clamp(min=0.0) / top)])
    first, step = _to_rows(ends, len(values))
    codes = ((values.nan_to_num(0.0, 0.0, 0.0) - first) / step.clamp(min=_TINY)).round_().clamp_(0, top)
    return codes.masked_fill_(step == 0, 0.0).long(), ends


def of_ends(codes: Tensor, ends: Tensor) -> Tensor:
    """Return the values (R, n) float32 of codes between ends (2, B, n)."""
    low, step = _to_rows(ends, len(codes))
    return low + codes.float() * step


def codes_between(values: Tensor, ends: Tensor) -> Tensor:
    """Return the codes (R, n) int64 of values that ``of_ends`` made with these ends."""
    low, step = _to_rows(ends, len(values))
    return ((values - low) / step.clamp(min=_TINY)).round().masked_fill_(step == 0, 0.0).long()


def _by_rows(values: Tensor) -> Tensor:
    """Return (R, n) values as (B, 16, n), the last block filled up with its last row."""
    short = -len(values) % SCALE_ROWS
    full = torch.cat([values, values[-1:].expand(short, -1)])
    return full.view(-1, SCALE_ROWS, values.shape[1])


def _to_rows(ends: Tensor, rows: int) -> Tensor:
    return ends.repeat_interleave(SCALE_ROWS, dim=1)[:, :rows]


def _blocks(values: Tensor) -> Tensor:
    """Return the flat values in rows of 256, filled up with zeros."""
    flat = values.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % DOUBLE_BLOCK)).view(-1, DOUBLE_BLOCK)
