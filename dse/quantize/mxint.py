"""MASE's MXInt(w, e, B) (METHODS 4.2): w-bit mantissas under a shared exponent of e bits per B elements.

E = clamp(floor(log2 absmax) + bias, 0, 2^e - 1) with bias = 2^(e-1) - 1; m = clamp(rnd(x / 2^(E - bias) *
2^(w-2))) to +-(2^(w-1) - 1); the value is m / 2^(w-2) * 2^(E - bias). Mantissas are rounded to nearest even
(the method's own code cuts them, which biases). A block of zeros has E = 0. With e = 8 and B = 32, w = 8 is
OCP's MXINT8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.extremes import absmax_of
from dse.quantize.integer import round_even_
from dse.quantize.quantizer import QUANTIZERS, Scales


class MxIntQuantizer(GroupScaled):
    """The scale of a block is 2^(E - bias - (w - 2)), what one unit of the mantissa is worth."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the power-of-two scales."""
        absmax = absmax_of(groups)
        exponent = torch.frexp(absmax.clamp(min=2.0**-126)).exponent.long() - 1
        code = (exponent + _bias(fmt)).masked_fill_(absmax == 0, 0).clamp_(0, (1 << fmt.scale_bits) - 1)
        return Scales(self.scale_values(code, fmt, None).masked_fill_(~torch.isfinite(absmax), torch.nan))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place."""
        top = float((1 << (fmt.bits - 1)) - 1)
        round_even_(groups.div_(scales.scale).clamp_(-top, top)).mul_(scales.scale)

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the mantissas."""
        top = float((1 << (fmt.bits - 1)) - 1)
        return round_even_(groups.div(scales.scale).clamp_(-top, top)).to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return mantissas times their unit."""
        return codes.float().mul_(scales.scale)

    def signed(self, fmt: NumberFormat) -> bool:  # noqa: ARG002
        """Mantissas are two's complement."""
        return True

    def scale_codes(self, scale: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return E."""
        exponent = torch.frexp(scale.double()).exponent.long() - 1
        return exponent + (fmt.bits - 2) + _bias(fmt)

    def scale_values(self, codes: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return 2^(E - bias - (w - 2)); at E = 0 and e = 8 that is a subnormal float32, still exact."""
        power = codes.long() - _bias(fmt) - (fmt.bits - 2)
        return torch.ldexp(torch.ones_like(codes, dtype=torch.float64), power).float()


def _bias(fmt: NumberFormat) -> int:
    return (1 << (fmt.scale_bits - 1)) - 1


QUANTIZERS.register("mxint")(MxIntQuantizer())
