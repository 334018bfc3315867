"""Choosing the range of a scale: options that compose with every format whose scale follows from extremes.

A candidate range is the group's [min, max] times a ratio; its scale is what the format makes of such
extremes, so that every kind keeps its own rule (float16 scales, powers of two, zero points). The candidate
with the least error of its group wins, the widest on ties; ratio 1 is always among them, so a search never
does worse by its own measure.

- minmax: ratio 1.
- mse: sum |w - q|^2.4 over ratios 1, 0.98 ... 0.2 (GPTQ's search: exponent 2.4, shrink to 0.2).
- percentile: the extremes are the 0.5 % and 99.5 % quantiles of the group, for long rows.
- act_clip: AWQ's (arXiv 2306.00978) ratios 1 - i/20, i = 0 ... 9, error d H_gg d^T with the second moments
  H_gg of the group's inputs: the squared output error of the group over the calibration tokens.
- salience, salience_x2, _x4, _x8: SliM-LLM's (arXiv 2405.14917) factors 0.9 ... 1.1; errors^2.4 of salient
  elements (importance more than two standard deviations above its mean) count 1, 2, 4 or 8 times. With the
  published weight of 1 the split changes nothing.
- importance: sum importance * (w - q)^2 over the ratios of "mse".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.extremes import low_high_of
from dse.quantize.fake import fake_quantize
from dse.quantize.layout import needs_layout
from dse.quantize.quantizer import QUANTIZERS, Scales
from dse.registry import Registry

MSE_EXPONENT = 2.4
MSE_RATIOS = tuple(1 - 0.02 * i for i in range(41))
CLIP_RATIOS = tuple(1 - i / 20 for i in range(10))
SALIENCE_RATIOS = (1.0, *(1 + 0.002 * i for i in range(1, 51)), *(1 - 0.002 * i for i in range(1, 51)))
SALIENT_WEIGHTS = {"salience": 1.0, "salience_x2": 2.0, "salience_x4": 4.0, "salience_x8": 8.0}
SALIENT_DEVIATIONS = 2.0
PERCENTILE_FRAC = 0.005
_FROM_EXTREMES = {"int", "minifloat", "mx", "nvfp4", "mxint"}


@dataclass(frozen=True)
class GroupContext:
    """What calibration knows of groups (n, L), whose row r * G + g is group g of a weight's row r.

    Attributes:
        moments: (G, L, L) second moments of the inputs of each group, else None.
        importance: (n, L) not negative, else None.
    """

    moments: Tensor | None = None
    importance: Tensor | None = None


RangeFit = Callable[[Tensor, NumberFormat, Tensor | None, GroupContext], Scales]
"""(groups (n, L) float32, format, the tensor's scale or None, context) -> a scale per group."""

FITS: Registry[RangeFit] = Registry("range fit")
"""Range fits by name."""

NEEDS_MOMENTS = frozenset({"act_clip"})
NEEDS_IMPORTANCE = frozenset({*SALIENT_WEIGHTS, "importance"})


def fit_scales(
    name: str, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None, context: GroupContext
) -> Scales:
    """Return the scales of groups (n, L) under a registered fit.

    Raises:
        ConfigError: unknown fit, a fit without the calibration that it needs, or a format without a range.
    """
    fit = FITS.get(name)
    if name != "minmax" and not has_range(fmt):
        raise ConfigError(f"'{fmt.name}' has no range to fit, so only 'minmax' goes with it", value=name)
    if name in NEEDS_MOMENTS and context.moments is None:
        raise ConfigError(f"range fit '{name}' needs second moments of the inputs (calibration)", value=name)
    if name in NEEDS_IMPORTANCE and context.importance is None:
        raise ConfigError(f"range fit '{name}' needs an importance of every element", value=name)
    return fit(groups, fmt, tensor_scale, context)


def has_range(fmt: NumberFormat) -> bool:
    """Whether the scales of a format follow from the extremes of a group alone and are stored as they are."""
    plain = fmt.scale_codec == "plain" and not needs_layout(fmt)
    return plain and (fmt.kind in _FROM_EXTREMES or fmt.element == "nf4")


def fitted_fake_quantize(
    weight: Tensor,
    fmt: NumberFormat,
    fit: str = "minmax",
    *,
    moments: Tensor | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """Return a weight (R, C) rounded to a format with a fitted range, in its dtype.

    Args:
        weight: (outputs, inputs).
        fmt: the format; fit: a registered name.
        moments: (C, C) second moments of the inputs; importance: (R, C). None where not known.
    """
    if fit == "minmax" or fmt.is_float:
        FITS.get(fit)
        return fake_quantize(weight, fmt)
    work = weight.float().clone()
    quantizer = QUANTIZERS.get(fmt.kind)
    tensor_scale = quantizer.tensor_scale(work, fmt)
    rows, columns = work.shape
    out = torch.empty_like(work)
    for start, end in spans(columns, fmt):
        size = min(fmt.group_size or (end - start), end - start)
        groups = work[:, start:end].reshape(-1, size)
        context = _context(moments, importance, start, end, size)
        if fmt.granularity == "tensor":
            groups = groups.reshape(1, -1)
            if importance is not None:
                context = replace(context, importance=importance.reshape(1, -1))
        scales = fit_scales(fit, groups, fmt, tensor_scale, context)
        quantizer.round_(groups, scales, fmt)
        out[:, start:end] = groups.view(rows, end - start)
    return out.to(weight.dtype)


def spans(columns: int, fmt: NumberFormat) -> list[tuple[int, int]]:
    """Return the range of columns of all whole groups, and that of the ragged last one."""
    size = min(fmt.group_size or columns, columns)
    cut = columns - columns % size
    return [(0, cut), (cut, columns)] if cut < columns else [(0, cut)]


def _context(
    moments: Tensor | None, importance: Tensor | None, start: int, end: int, size: int
) -> GroupContext:
    blocks = None
    if moments is not None:
        blocks = torch.stack([moments[i : i + size, i : i + size] for i in range(start, end, size)]).float()
    part = None if importance is None else importance[:, start:end].reshape(-1, size)
    return GroupContext(blocks, part)


def search(
    groups: Tensor,
    fmt: NumberFormat,
    tensor_scale: Tensor | None,
    ratios: tuple[float, ...],
    error_of: Callable[[Tensor], Tensor],
) -> Scales:
    """Return for every group the scale of the ratio with the least error; ``error_of`` maps (n, L) to (n, 1).

    The argument of ``error_of`` is the rounding error, which it may overwrite.
    """
    quantizer = QUANTIZERS.get(fmt.kind)
    extremes = torch.cat(low_high_of(groups), dim=1)
    best = scale = zero = None
    for ratio in ratios:
        candidate = quantizer.fit(extremes * ratio, fmt, tensor_scale)
        rounded = groups.clone()
        quantizer.round_(rounded, candidate, fmt)
        error = error_of(rounded.sub_(groups))
        if best is None or scale is None:
            best, scale, zero = error, candidate.scale, candidate.zero
            continue
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, candidate.scale, scale)
        if zero is not None and candidate.zero is not None:
            zero = torch.where(better, candidate.zero, zero)
    assert scale is not None
    return Scales(scale, zero)


@FITS.register("minmax")
def _minmax(
    groups: Tensor,
    fmt: NumberFormat,
    tensor_scale: Tensor | None,
    context: GroupContext,  # noqa: ARG001
) -> Scales:
    return QUANTIZERS.get(fmt.kind).fit(groups, fmt, tensor_scale)


@FITS.register("mse")
def _mse(
    groups: Tensor,
    fmt: NumberFormat,
    tensor_scale: Tensor | None,
    context: GroupContext,  # noqa: ARG001
) -> Scales:
    def error_of(error: Tensor) -> Tensor:
        return error.abs_().pow_(MSE_EXPONENT).sum(-1, keepdim=True)

    return search(groups, fmt, tensor_scale, MSE_RATIOS, error_of)


@FITS.register("importance")
def _importance(
    groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None, context: GroupContext
) -> Scales:
    weights = context.importance
    assert weights is not None

    def error_of(error: Tensor) -> Tensor:
        return error.square_().mul_(weights).sum(-1, keepdim=True)

    return search(groups, fmt, tensor_scale, MSE_RATIOS, error_of)


@FITS.register("percentile")
def _percentile(
    groups: Tensor,
    fmt: NumberFormat,
    tensor_scale: Tensor | None,
    context: GroupContext,  # noqa: ARG001
) -> Scales:
    n = groups.shape[1]
    skipped = int(PERCENTILE_FRAC * (n - 1))
    low = groups.kthvalue(skipped + 1, dim=1, keepdim=True).values
    high = groups.kthvalue(n - skipped, dim=1, keepdim=True).values
    return QUANTIZERS.get(fmt.kind).fit(torch.cat([low, high], dim=1), fmt, tensor_scale)


@FITS.register("act_clip")
def _act_clip(
    groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None, context: GroupContext
) -> Scales:
    moments = context.moments
    assert moments is not None
    n_groups, size = moments.shape[:2]

    def error_of(error: Tensor) -> Tensor:
        by_group = error.view(-1, n_groups, size).transpose(0, 1)
        quadratic = (torch.bmm(by_group, moments) * by_group).sum(-1)
        return quadratic.t().reshape(-1, 1)

    return search(groups, fmt, tensor_scale, CLIP_RATIOS, error_of)


def salient_weights(importance: Tensor, weight: float) -> Tensor:
    """Return ``weight`` where importance is more than two standard deviations above its mean, else 1."""
    score = (importance - importance.mean()) / importance.std().clamp(min=1e-30)
    return torch.where(score > SALIENT_DEVIATIONS, weight, 1.0)


def _salience(weight: float) -> RangeFit:
    """Return the fit in which errors of salient elements count ``weight`` times."""

    def fit(groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None, context: GroupContext) -> Scales:
        assert context.importance is not None
        weights = salient_weights(context.importance, weight)

        def error_of(error: Tensor) -> Tensor:
            return error.abs_().pow_(MSE_EXPONENT).mul_(weights).sum(-1, keepdim=True)

        return search(groups, fmt, tensor_scale, SALIENCE_RATIOS, error_of)

    return fit


for _name, _weight in SALIENT_WEIGHTS.items():
    FITS.register(_name)(_salience(_weight))
