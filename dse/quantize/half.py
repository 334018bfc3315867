"""Float16 numbers as they are stored: scales, means and levels of tables."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_MIN, HALF_MAX = 2.0**-24, 65504.0


def half_scale(scale: Tensor) -> Tensor:
    """Round scales to positive float16 values, keep them float32; what is not finite becomes NaN."""
    stored = scale.clamp(HALF_MIN, HALF_MAX).to(torch.float16).float()
    return stored.masked_fill_(~torch.isfinite(scale), torch.nan)


def half_value(values: Tensor) -> Tensor:
    """Round signed values to float16 (saturating), keep them float32."""
    return values.clamp(-HALF_MAX, HALF_MAX).to(torch.float16).float()


def half_bits(values: Tensor) -> Tensor:
    """Return the bit patterns of values that float16 holds, int64 in [0, 2^16)."""
    return values.to(torch.float16).view(torch.int16).long() & 0xFFFF


def half_of_bits(bits: Tensor) -> Tensor:
    """Return the float32 values of float16 bit patterns."""
    numbers = bits.long()
    signed = torch.where(numbers >= 1 << 15, numbers - (1 << 16), numbers)
    return signed.to(torch.int16).view(torch.float16).float()
