"""DialectFP4 (BlockDialect, arXiv 2501.01144): blocks choose one of 16 tables of 4-bit magnitudes.

The shared exponent is e = floor(log2 absmax) - 2, so that the scaled maximum lies in [4, 8); it is stored in
5 bits as the exponent field of float16, floor(log2 absmax) in [-16, 15]. Magnitudes are multiples of 0.5.

- "dialect" (weights): the dialect with the least squared error.
- "dialect_online" (activations), two stages: |x| / 2^e is cut to steps of 0.25; the block's maximum rounded
  to 0.5 (at most 7.5) picks the pair of dialects with that maximum; of the two values in which they differ,
  a > b with the neighbours l below and u above, the first dialect gains elements in [(a+b)/2, (a+u)/2) and
  the second those in [(l+b)/2, (a+b)/2); the one that gains more wins, the first on ties. Elements are
  rounded after the cut.

A magnitude in the middle of two goes up.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dse.formats.codebooks import dialects
from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.cells import look_up
from dse.quantize.extremes import absmax_of
from dse.quantize.quantizer import QUANTIZERS, Scales

_EXPONENT_BIAS, _EXPONENT_MAX = 16, 31
_TOP = 7.5
_STEPS = 32
ONLINE = "dialect_online"


@lru_cache(maxsize=4)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return magnitudes (16, 8) float32, and the code of each step of 0.25 (16, 32) int16.

    Every midpoint is a multiple of 0.25, so that the step that a magnitude lies in decides its code.
    """
    levels = torch.tensor(dialects(), dtype=torch.float32, device=device)
    midpoints = (levels[:, 1:] + levels[:, :-1]) / 2
    steps = torch.arange(_STEPS, dtype=torch.float32, device=device) / 4
    codes = (steps[None, :, None] >= midpoints[:, None, :]).sum(-1)
    return levels, codes.to(torch.int16)


@lru_cache(maxsize=4)
def _intervals(device: torch.device) -> Tensor:
    """Return for each pair of dialects the bounds (l+b)/2, (a+b)/2, (a+u)/2; (8, 3) float32."""
    bounds = []
    for first, second in zip(dialects()[::2], dialects()[1::2], strict=True):
        union = sorted({*first, *second})
        a, b = (next(iter(set(one) - set(other))) for one, other in ((first, second), (second, first)))
        low = union[union.index(b) - 1]
        above = union.index(a) + 1
        high = union[above] if above < len(union) else 2 * _TOP
        bounds.append(((low + b) / 2, (a + b) / 2, (a + high) / 2))
    return torch.tensor(bounds, dtype=torch.float32, device=device)


class DialectQuantizer(GroupScaled):
    """``Scales.zero`` is the dialect of a block."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return 2^e and the dialects."""
        absmax = absmax_of(groups)
        exponent = torch.frexp(absmax.clamp(min=2.0**-126)).exponent - 1
        exponent = exponent.clamp_(-_EXPONENT_BIAS, _EXPONENT_MAX - _EXPONENT_BIAS)
        scale = torch.ldexp(torch.ones_like(absmax), exponent - 2)
        scale = scale.masked_fill(~torch.isfinite(absmax), torch.nan)
        magnitude = _magnitudes(groups, scale, fmt)
        choice = _two_stage(magnitude) if fmt.element == ONLINE else _least_error(magnitude)
        return Scales(scale, choice)

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:
        """Round in place."""
        groups.copy_(self.decode(self.encode(groups, scales, fmt), scales, fmt))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:
        """Return the sign bit (8) and the number of the magnitude."""
        assert scales.zero is not None
        _, codes_of = _tables(groups.device)
        step = _steps(_magnitudes(groups, scales.scale, fmt)) + scales.zero.int() * _STEPS
        codes = look_up(codes_of.view(-1), step)
        return codes | (torch.signbit(groups).to(torch.int16) << 3)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return signed magnitudes times 2^e."""
        assert scales.zero is not None
        levels, _ = _tables(codes.device)
        index = (codes & 7).int() + scales.zero.int() * levels.shape[1]
        values = look_up(levels.view(-1), index)
        return torch.where(codes >= 8, -values, values).mul_(scales.scale)

    def scale_codes(self, scale: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return floor(log2 absmax) + 16."""
        return torch.frexp(scale).exponent.long() - 1 + 2 + _EXPONENT_BIAS

    def scale_values(self, codes: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return 2^(code - 18)."""
        return torch.ldexp(torch.ones_like(codes, dtype=torch.float32), codes - 2 - _EXPONENT_BIAS)


def _magnitudes(groups: Tensor, scale: Tensor, fmt: NumberFormat) -> Tensor:
    magnitude = groups.abs() / scale
    return magnitude.mul_(4).floor_().mul_(0.25) if fmt.element == ONLINE else magnitude


def _steps(magnitude: Tensor) -> Tensor:
    """Return the step of 0.25 that each magnitude lies in, int32, the last one for everything above."""
    return (magnitude * 4).nan_to_num_(0.0).clamp_(max=_STEPS - 1).int()


def _least_error(magnitude: Tensor) -> Tensor:
    """Return the dialect (n, 1) with the least squared error, the first on ties.

    With n_s elements and their sum m_s in each step s, whose level is L_s, the error is sum m^2 + sum_s (n_s
    L_s^2 - 2 L_s m_s), so that one pass over the elements serves all dialects; the first term is the same in
    all of them.
    """
    n, device = len(magnitude), magnitude.device
    levels, codes_of = _tables(device)
    level = levels.gather(1, codes_of.long()).double()  # (16, 32)
    place = _steps(magnitude) + torch.arange(0, n * _STEPS, _STEPS, dtype=torch.int32, device=device)[:, None]
    flat, weights = place.view(-1), magnitude.nan_to_num(0.0).double().view(-1)
    count = torch.bincount(flat, minlength=n * _STEPS).view(n, _STEPS).double()
    total = torch.bincount(flat, weights=weights, minlength=n * _STEPS).view(n, _STEPS)
    errors = count @ level.square().t() - 2 * (total @ level.t())
    return errors.argmin(-1, keepdim=True).float()


def _two_stage(magnitude: Tensor) -> Tensor:
    """Return the dialect (n, 1) from the block's maximum and two counts."""
    top = magnitude.amax(-1, keepdim=True).nan_to_num(0.0).mul(2).round_().div_(2).clamp_(4.0, _TOP)
    pair = ((_TOP - top) * 2).long()
    low, middle, high = _intervals(magnitude.device)[pair.squeeze(-1)].unsqueeze(-1).unbind(1)
    first = ((magnitude >= middle) & (magnitude < high)).sum(-1, keepdim=True)
    second = ((magnitude >= low) & (magnitude < middle)).sum(-1, keepdim=True)
    return (2 * pair + (second > first)).float()


QUANTIZERS.register("dialect")(DialectQuantizer())
