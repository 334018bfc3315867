"""NVFP4: E2M1 elements, an E4M3 scale per 16 of them, and a float32 scale per tensor (METHODS section 8).

s_t = absmax_tensor / (448 * 6); s_b = RNE_E4M3(clamp((absmax_block / 6) / s_t, 2^-9, 448)); elements are
RNE_E2M1(w / (s_b s_t)). A tensor of zeros has s_t = 1; NaN or infinity anywhere makes the whole tensor NaN,
because the tensor's scale sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.formats.elements import ELEMENTS
from dse.formats.precision import NumberFormat
from dse.quantize.extremes import absmax_of
from dse.quantize.minifloat import decode_minifloat, encode_minifloat, round_minifloat_
from dse.quantize.quantizer import QUANTIZERS, Scales

_ELEMENT, _SCALE = ELEMENTS["e2m1"], ELEMENTS["e4m3"]
_SMALLEST_NORMAL = 2.0**-126


class Nvfp4Quantizer:
    """Two-level scaled E2M1."""

    def tensor_scale(self, x: Tensor, fmt: NumberFormat) -> Tensor | None:  # noqa: ARG002
        """Return s_t, float32."""
        absmax = absmax_of(x.reshape(1, -1)).view(())
        scale = absmax / (_SCALE.max_value * _ELEMENT.max_value)
        scale = torch.where(absmax == 0, torch.ones_like(scale), scale.clamp(min=_SMALLEST_NORMAL))
        return scale.masked_fill(~torch.isfinite(absmax), torch.nan)

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return s_b s_t."""
        assert tensor_scale is not None
        block = absmax_of(groups).div_(_ELEMENT.max_value).div_(tensor_scale)
        block.clamp_(_SCALE.magnitudes[1], _SCALE.max_value)
        return Scales(round_minifloat_(block, _SCALE).mul_(tensor_scale))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:  # noqa: ARG002
        """Round in place: s_b s_t RNE(w / (s_b s_t))."""
        round_minifloat_(groups.div_(scales.scale), _ELEMENT).mul_(scales.scale)

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return E2M1 bit patterns."""
        return encode_minifloat(groups.div(scales.scale), _ELEMENT)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return the elements times s_b s_t."""
        return decode_minifloat(codes, _ELEMENT).mul_(scales.scale)

    def signed(self, fmt: NumberFormat) -> bool:  # noqa: ARG002
        """Codes are bit patterns."""
        return False

    def scale_codes(self, scale: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return the E4M3 bit patterns of s_b."""
        assert tensor_scale is not None
        return encode_minifloat(scale / tensor_scale, _SCALE).long()

    def scale_values(self, codes: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return s_b s_t."""
        assert tensor_scale is not None
        return decode_minifloat(codes, _SCALE) * tensor_scale


QUANTIZERS.register("nvfp4")(Nvfp4Quantizer())
