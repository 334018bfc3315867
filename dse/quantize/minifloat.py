"""Small floating-point elements (ExMy) with one float32 scale per group: fp8, and the element rounding of MX.

S = absmax / max_value (448 for E4M3, 57344 for E5M2), elements RNE(w / S), saturating (OCP OFP8 v1.0;
METHODS 1.8). A group of zeros gets the smallest normal scale; a group with NaN or infinity becomes NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.elements import ELEMENTS, ElementSpec
from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.extremes import absmax_of
from dse.quantize.quantizer import QUANTIZERS, Scales

_SMALLEST_NORMAL = 2.0**-126
_EXPONENT_MASK = 0x7F800000
_FLOAT_BIAS, _FLOAT_MANTISSA = 127, 23


def round_minifloat_(x: Tensor, spec: ElementSpec) -> Tensor:
    """Round float32 values, in place, to the nearest of a small float's, ties to even, and saturate.

    Adding and subtracting 1.5 * 2^(23 + e - mantissa_bits), where e is the exponent of the element (of the
    smallest normal for subnormals), makes the addition itself round at the spacing of the small format. NaN
    stays NaN; the sign of a zero result is not kept.
    """
    x.clamp_(-spec.max_value, spec.max_value)
    magic = x.view(torch.int32).bitwise_and(_EXPONENT_MASK)
    magic.clamp_(min=(spec.min_exponent + _FLOAT_BIAS) << _FLOAT_MANTISSA)
    magic.add_(((_FLOAT_MANTISSA - spec.mantissa_bits) << _FLOAT_MANTISSA) | 1 << (_FLOAT_MANTISSA - 1))
    shift = magic.view(torch.float32)
    return x.add_(shift).sub_(shift)


def encode_minifloat(x: Tensor, spec: ElementSpec) -> Tensor:
    """Return the bit patterns (int16, sign bit on top) of finite values, rounded as ``round_minifloat_``."""
    magnitudes = torch.tensor(spec.magnitudes, dtype=torch.float32, device=x.device)
    rounded = round_minifloat_(x.float().clone(), spec).abs_()
    codes = torch.searchsorted(magnitudes, rounded).to(torch.int16)
    return codes | (torch.signbit(x).to(torch.int16) << (spec.bits - 1))


def decode_minifloat(codes: Tensor, spec: ElementSpec) -> Tensor:
    """Return the float32 values of bit patterns."""
    sign_bit = 1 << (spec.bits - 1)
    magnitudes = torch.tensor(spec.magnitudes, dtype=torch.float32, device=codes.device)
    values = magnitudes[(codes & (sign_bit - 1)).long()]
    return torch.where((codes & sign_bit) != 0, -values, values)


class MinifloatQuantizer(GroupScaled):
    """fp8 with a float32 scale per tensor, row, token, head or group."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return S = absmax / max_value."""
        scale = absmax_of(groups).div_(ELEMENTS[fmt.element].max_value)
        finite = torch.isfinite(scale)
        return Scales(scale.clamp_(min=_SMALLEST_NORMAL).masked_fill_(~finite, torch.nan))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place: S * RNE(w / S)."""
        round_minifloat_(groups.div_(scales.scale), ELEMENTS[fmt.element]).mul_(scales.scale)

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the bit patterns of RNE(w / S)."""
        return encode_minifloat(groups.div(scales.scale), ELEMENTS[fmt.element])

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return S times the elements."""
        return decode_minifloat(codes, ELEMENTS[fmt.element]).mul_(scales.scale)

    def scale_codes(
        self,
        scale: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the bits of the float32 scales."""
        return float32_bits(scale)

    def scale_values(
        self,
        codes: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the float32 scales of their bits."""
        return float32_of_bits(codes)


def float32_bits(values: Tensor) -> Tensor:
    """Return the bit patterns of float32 values as int64 in [0, 2^32)."""
    return values.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def float32_of_bits(bits: Tensor) -> Tensor:
    """Return the float32 values of bit patterns in [0, 2^32)."""
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)
    return signed.to(torch.int32).view(torch.float32)


QUANTIZERS.register("minifloat")(MinifloatQuantizer())
