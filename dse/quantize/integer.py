"""Integer formats: round to nearest on a uniform grid, min-max scales (METHODS of RTN).

Grids, with b bits and rnd = round half to even:

- restricted: S = absmax / (2^(b-1) - 1), codes in [-(2^(b-1) - 1), 2^(b-1) - 1]
- full:       the same S, codes in [-2^(b-1), 2^(b-1) - 1]
- gptq:       S = 2 absmax / (2^b - 1), codes in [-2^(b-1), 2^(b-1) - 1] (there offset by 2^(b-1))
- asym:       S = (hi - lo) / (2^b - 1), Z = rnd(-lo / S), codes in [0, 2^b - 1], value S (q - Z), where
  lo = min(min w, 0) and hi = max(max w, 0) so that Z is a legal code.

Under two-level zero points (codec "rows16") Z is no whole number: q = clamp(rnd(w / S + Z)).

A scale is rounded to float16 *before* it is used, because that is what is stored and counted, so the values
are those of a deployed model. (They are also exact in float32: 8 + 11 bits.) It saturates at float16's
smallest and largest positive values; a group of zeros gets the smallest. A group with NaN or infinity becomes
NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.extremes import low_high_of
from dse.quantize.half import half_scale
from dse.quantize.quantizer import QUANTIZERS, Scales

_ROUNDER = 1.5 * 2.0**23


def round_even_(x: Tensor) -> Tensor:
    """Round float32 values below 2^22 to whole numbers, in place, half to even; larger ones stay about equal.

    The same as ``x.round_()`` there, which wakes the other threads from 2048 elements on: far more expensive
    than the work on a chunk when the cores are shared. Added to 1.5 * 2^23, a float32 has no fraction bits.
    """
    return x.add_(_ROUNDER).sub_(_ROUNDER)


class IntegerQuantizer(GroupScaled):
    """Round to nearest on the four integer grids."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return min-max scales, rounded to float16, and zero points of the asymmetric grid."""
        low, high = low_high_of(groups)
        if fmt.grid == "asym":
            low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
            n_steps = float((1 << fmt.bits) - 1)
            scale = half_scale((high - low).div_(n_steps))
            zero = low.neg_().div_(scale)
            return Scales(scale, zero if _has_fractions(fmt) else round_even_(zero).clamp_(0.0, n_steps))
        absmax = torch.maximum(high, low.neg_())
        if fmt.grid == "gptq":
            return Scales(half_scale(absmax.mul_(2.0 / ((1 << fmt.bits) - 1))))
        return Scales(half_scale(absmax.div_(float((1 << (fmt.bits - 1)) - 1))))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place: S * (clamp(rnd(w / S) + Z) - Z)."""
        low, high = _code_range(fmt)
        groups.div_(scales.scale)
        if scales.zero is None:
            round_even_(groups).clamp_(low, high)
        elif _has_fractions(fmt):
            round_even_(groups.add_(scales.zero)).clamp_(low, high).sub_(scales.zero)
        else:
            round_even_(groups).add_(scales.zero).clamp_(low, high).sub_(scales.zero)
        groups.mul_(scales.scale)

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return clamp(rnd(w / S) + Z) as int16; symmetric codes are signed, 0 for 0.0."""
        codes = groups.div(scales.scale)
        if scales.zero is None:
            round_even_(codes)
        elif _has_fractions(fmt):
            round_even_(codes.add_(scales.zero))
        else:
            round_even_(codes).add_(scales.zero)
        return codes.clamp_(*_code_range(fmt)).to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return S * (q - Z)."""
        values = codes.float()
        if scales.zero is not None:
            values.sub_(scales.zero)
        return values.mul_(scales.scale)

    def signed(self, fmt: NumberFormat) -> bool:
        """Symmetric codes are two's complement, asymmetric ones unsigned."""
        return fmt.grid != "asym"


def _has_fractions(fmt: NumberFormat) -> bool:
    """Whether zero points are stored as other numbers than codes."""
    return fmt.scale_codec == "rows16"


def _code_range(fmt: NumberFormat) -> tuple[float, float]:
    """Return the smallest and largest code of a grid."""
    if fmt.grid == "asym":
        return 0.0, float((1 << fmt.bits) - 1)
    top = float((1 << (fmt.bits - 1)) - 1)
    return (-top, top) if fmt.grid == "restricted" else (-top - 1.0, top)


QUANTIZERS.register("int")(IntegerQuantizer())
