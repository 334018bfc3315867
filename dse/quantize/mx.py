"""OCP Microscaling (MX) v1.0: blocks of 32 elements with one power-of-two scale X = 2^e of 8 bits (E8M0).

The exponent of a block, with emax the exponent and M the largest value of the element format:

- floor (OCP v1.0, section 6.3): e = floor(log2 absmax) - emax. The scaled maximum lies in
  [2^emax, 2^(emax + 1)), so what exceeds M saturates (up to 25 % of the block's maximum for E2M1).
- ceil: e = ceil(log2(absmax / M)), the smallest with absmax <= M 2^e: nothing saturates (torchao: RCEIL).
- up: e = ceil(log2 absmax) - emax, whatever M (torchao: CEIL).
- even: absmax is first rounded to the element's mantissa width (half up), then floor (torchao: EVEN).

e is clamped to [-127, 127]. Elements are RNE(w / X), saturating to +-M, subnormals kept. A block of zeros
gets e = -127 (code 0); a block with NaN or infinity becomes NaN (code 255).

MXINT8 elements are k / 64 with |k| <= 127: the code -128 is legal and never produced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.elements import ELEMENTS
from dse.formats.precision import NumberFormat
from dse.quantize.extremes import absmax_of
from dse.quantize.integer import round_even_
from dse.quantize.minifloat import decode_minifloat, encode_minifloat, round_minifloat_
from dse.quantize.quantizer import QUANTIZERS, Scales

_BIAS, _NAN_CODE = 127, 255
_MANTISSA_BITS = 23
_MANTISSA_MASK = (1 << _MANTISSA_BITS) - 1
_INT_MAX, _INT_UNIT = 127.0, 64.0
# (emax, mantissa bits, mantissa field of M as float32) of MXINT8: M = 127 / 64 = 1.984375.
_INT_ELEMENT = (0, 6, 0x7E0000)


class MxQuantizer:
    """Microscaling with small floats or 8-bit integers as elements."""

    def tensor_scale(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:  # noqa: ARG002
        """Return None: there is no scale above the blocks."""
        return None

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the power-of-two scales; exact integer arithmetic on the bits of absmax."""
        emax, mantissa_bits, max_mantissa = _element(fmt)
        absmax = absmax_of(groups)
        bits = absmax.view(torch.int32)
        if fmt.exponent_rule == "even":
            bits = bits + (1 << (_MANTISSA_BITS - 1 - mantissa_bits))
        exponent = (bits >> _MANTISSA_BITS) - (_BIAS + emax)
        if fmt.exponent_rule == "ceil":
            exponent += ((bits & _MANTISSA_MASK) > max_mantissa).to(torch.int32)
        elif fmt.exponent_rule == "up":
            exponent += ((bits & _MANTISSA_MASK) > 0).to(torch.int32)
        scale = _power_of_two(exponent.clamp_(-_BIAS, _BIAS))
        return Scales(scale.masked_fill_(~torch.isfinite(absmax), torch.nan))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place: X * RNE(w / X)."""
        groups.div_(scales.scale)
        if fmt.element == "int":
            round_even_(groups.mul_(_INT_UNIT)).clamp_(-_INT_MAX, _INT_MAX).mul_(1 / _INT_UNIT)
        else:
            round_minifloat_(groups, ELEMENTS[fmt.element])
        groups.mul_(scales.scale)

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return element codes: bit patterns, or k for MXINT8."""
        scaled = groups.div(scales.scale)
        if fmt.element == "int":
            return round_even_(scaled.mul_(_INT_UNIT)).clamp_(-_INT_MAX, _INT_MAX).to(torch.int16)
        return encode_minifloat(scaled, ELEMENTS[fmt.element])

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return X times the elements."""
        if fmt.element == "int":
            return codes.float().mul_(1 / _INT_UNIT).mul_(scales.scale)
        return decode_minifloat(codes, ELEMENTS[fmt.element]).mul_(scales.scale)

    def signed(self, fmt: NumberFormat) -> bool:
        """MXINT8 is two's complement, the others are bit patterns."""
        return fmt.element == "int"

    def scale_codes(
        self,
        scale: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return the E8M0 codes e + 127; NaN is 255."""
        exponent = torch.frexp(scale.nan_to_num(1.0)).exponent.long() - 1 + _BIAS
        return exponent.masked_fill(torch.isnan(scale), _NAN_CODE)

    def scale_values(
        self,
        codes: Tensor,
        fmt: NumberFormat,  # noqa: ARG002
        tensor_scale: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Return 2^(code - 127)."""
        scale = _power_of_two((codes - _BIAS).to(torch.int32))
        return scale.masked_fill(codes == _NAN_CODE, torch.nan)


def _element(fmt: NumberFormat) -> tuple[int, int, int]:
    """Return (emax, mantissa bits, float32 mantissa field of the largest value) of the element format."""
    if fmt.element == "int":
        return _INT_ELEMENT
    spec = ELEMENTS[fmt.element]
    fraction = spec.max_value / 2.0**spec.max_exponent - 1.0
    return spec.max_exponent, spec.mantissa_bits, int(fraction * (1 << _MANTISSA_BITS))


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent exactly, float32; exponent is int32 in [-127, 127]."""
    normal = ((exponent.clamp(min=1 - _BIAS) + _BIAS) << _MANTISSA_BITS).view(torch.float32)
    return torch.where(exponent < 1 - _BIAS, normal * 0.5, normal)


QUANTIZERS.register("mx")(MxQuantizer())
