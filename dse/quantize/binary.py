"""One bit per weight: mean + sign(w - mean) * alpha, alpha = mean |w - mean| (PB-LLM, SliM-LLM).

That alpha is the least-squares one for the given mean and signs. Mean and alpha are float16; ``Scales.zero``
holds the bit pattern of the mean, as it is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.half import half_bits, half_of_bits, half_value
from dse.quantize.quantizer import QUANTIZERS, Scales


class BinaryQuantizer(GroupScaled):
    """Mean and magnitude of a group."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return alpha and the bits of the mean."""
        mean = half_value(groups.mean(-1, keepdim=True))
        alpha = half_value((groups - mean).abs_().mean(-1, keepdim=True))
        bad = ~torch.isfinite(groups.sum(-1, keepdim=True))
        mean, alpha = mean.masked_fill(bad, 0.0), alpha.masked_fill(bad, torch.nan)
        return Scales(alpha, half_bits(mean).float())

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place."""
        groups.copy_(self.decode(self.encode(groups, scales, fmt), scales, fmt))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return 1 for elements at or above the mean, else 0."""
        assert scales.zero is not None
        return (groups >= half_of_bits(scales.zero)).to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return mean +- alpha."""
        assert scales.zero is not None
        return half_of_bits(scales.zero) + (codes.float() * 2 - 1) * scales.scale


QUANTIZERS.register("binary")(BinaryQuantizer())
