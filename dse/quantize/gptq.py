"""GPTQ (arXiv 2210.17323): round column by column, and move each error into the columns still to come.

With H = 2/N X X^T + damping and U the upper Cholesky factor of its inverse, H^-1 = U^T U:

    Q_j = round(W_j),  E_j = (W_j - Q_j) / U_jj,  W_k -= E_j U_jk  for k > j

and tr((W - Q) H (W - Q)^T) = ||E||_F^2 exactly. (The full inverse in place of U is worse, and the factor
L^-T of H = L L^T worse than rounding to nearest; METHODS 1.2.) Columns go in lazy blocks: inside a block
every column is brought up to date at once, the columns behind it once per block; the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.quantize.fake import quantize_codes
from dse.quantize.fit import GroupContext, fit_scales
from dse.quantize.half import half_value
from dse.quantize.layout import needs_layout
from dse.quantize.quantizer import QUANTIZERS, Scales

Order = Literal["natural", "activation"]
BLOCK_COLUMNS = 128
DAMPING_FRAC = 0.01
_MAX_DAMPING_FRAC = 10.0


@dataclass(frozen=True)
class Band:
    """``n_columns`` neighbouring columns with one format."""

    n_columns: int
    fmt: NumberFormat


@dataclass(frozen=True)
class GptqResult:
    """A quantized weight.

    Attributes:
        weight: (R, C) in the dtype of the input; kept columns hold full-precision values that took in errors.
        loss: ||E||_F^2 = tr((W - Q) H (W - Q)^T) with the damped H.
        kept: columns in full precision, in order.
    """

    weight: Tensor
    loss: float
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Segment:
    """Columns (of those that are quantized, in their natural order) that share scales in each row."""

    start: int
    end: int
    fmt: NumberFormat


def inverse_factor(hessian: Tensor, damping_frac: float = DAMPING_FRAC) -> tuple[Tensor, Tensor]:
    """Return (U, damped H), H^-1 = U^T U with U upper.

    Args:
        hessian: (C, C); a channel without input (H_jj = 0) gets H_jj = 1.
        damping_frac: times the mean of the diagonal is added to it; ten times more where that is not enough.

    Raises:
        ConfigError: it is not positive definite even with damping 10 (NaN in the calibration).
    """
    damped = hessian.clone()  # of 14336 channels it is 0.8 GB: no copies beyond what the factors need
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    undamped, mean, damping = diagonal.clone(), float(diagonal.mean()), damping_frac
    while damping <= _MAX_DAMPING_FRAC:
        diagonal.copy_(undamped + mean * damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(factor)
            del factor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                return upper, damped
        damping = max(damping * 10, 1e-4)
    raise ConfigError("the second moments of a linear's inputs are not positive definite (NaN or infinity?)")


def obs_saliency(weight: Tensor, hessian: Tensor, *, damping_frac: float = DAMPING_FRAC) -> Tensor:
    """Return w_ij^2 / U_jj^2 (R, C): what removing one weight costs once the columns before it are frozen.

    U_jj^2 is the first diagonal entry of the inverse of H without those columns: one power of an inverse,
    although it is written as a square (METHODS 0). Twice the optimal-brain-surgeon cost w^2 / (2 [H^-1]_jj)
    for a last column.
    """
    upper, _ = inverse_factor(hessian, damping_frac)
    return weight.to(upper.dtype).square() / upper.diagonal().square()


def gptq(
    weight: Tensor,
    hessian: Tensor,
    fmt: NumberFormat | Sequence[Band],
    *,
    fit: str = "minmax",
    order: Order = "natural",
    block_columns: int = BLOCK_COLUMNS,
    damping_frac: float = DAMPING_FRAC,
    keep: Sequence[int] = (),
    importance: Tensor | None = None,
    exact: Tensor | None = None,
) -> GptqResult:
    """Quantize one weight.

    Args:
        weight: (R, C) outputs by inputs; float64 is computed in float64, everything else in float32.
        hessian: (C, C) second moments of the inputs, any positive multiple.
        fmt: the format, or bands of formats from the left over the columns that are not kept.
        fit: range fit of scales. With the natural order the scales of a group are fitted when its first
        column
            is reached, on weights that took in errors; with "activation" order (columns by falling H_jj) on
            the original weights ("static groups"), so that groups stay neighbours in memory.
        order: "natural" or "activation".
        block_columns: width of a lazy block; 1 updates everything after every column.
        damping_frac: see ``inverse_factor``.
        keep: columns that stay in full precision; they come last and take in the errors of all others.
        importance: (R, C) for the fits that need it.
        exact: (R, C) bool, elements that are kept as float16 where they are (SpQR, PB-LLM); scales see 0
            there.

    Raises:
        ConfigError: bands that do not cover the columns, or a format whose scales cross rows.
    """
    n_columns = weight.shape[1]
    kept = torch.tensor(sorted(set(keep)), dtype=torch.long, device=weight.device)
    is_kept = torch.zeros(n_columns, dtype=torch.bool, device=weight.device)
    is_kept[kept] = True
    rest = torch.arange(n_columns, device=weight.device)[~is_kept]
    segments = _segments(fmt, len(rest))
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    h = hessian.to(dtype)
    dead = h.diagonal() == 0
    w = weight.to(dtype).masked_fill(dead, 0.0)
    diagonal = h.diagonal()[rest]
    turn = torch.arange(len(rest), device=weight.device)
    if order != "natural":
        turn = diagonal.argsort(descending=True, stable=True)
    permutation = torch.cat([rest[turn], kept])
    upper = inverse_factor(_picked(h, permutation), damping_frac)[0]
    job = _Job(
        w[:, rest],
        _picked(h, rest),
        segments,
        fit,
        None if importance is None else importance[:, rest],
        None if exact is None else exact[:, rest],
    )
    static = [job.scales(segment) for segment in segments] if order != "natural" or job.is_static else None
    with one_thread():
        columns, loss = _sweep(w[:, permutation].clone(), upper, turn, job, static, block_columns)
    out = torch.empty_like(columns)
    out[:, permutation] = columns
    return GptqResult(out.to(weight.dtype), loss, tuple(kept.tolist()))


def _picked(h: Tensor, channels: Tensor) -> Tensor:
    """Return ``h`` (C, C) for some channels in their order; itself where those are all, as they are."""
    if torch.equal(channels, torch.arange(len(h), device=h.device)):
        return h
    return h[channels[:, None], channels]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: a sweep is many small steps, whose thread wake-ups cost more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Job:
    """The quantized columns in natural order, and how scales are fitted to them."""

    def __init__(
        self,
        weight: Tensor,
        moments: Tensor,
        segments: list[_Segment],
        fit: str,
        importance: Tensor | None,
        exact: Tensor | None,
    ) -> None:
        self.weight = weight if exact is None else weight.masked_fill(exact, 0.0)
        self.moments, self.segments, self.fit = moments, segments, fit
        self.importance, self.exact = importance, exact
        self.is_static = any(
            segment.fmt.scale_codec != "plain" or segment.fmt.granularity == "tensor" for segment in segments
        )
        self._tensor_scales: dict[NumberFormat, Tensor | None] = {}
        self._two_level: dict[NumberFormat, Tensor] = {}

    def scales(self, segment: _Segment, current: Tensor | None = None) -> Scales:
        """Return the scales of a segment, fitted to ``current`` (R, L), by default the original weights."""
        part = slice(segment.start, segment.end)
        values = (self.weight[:, part] if current is None else current).float().contiguous()
        if current is not None and self.exact is not None:
            values = values.masked_fill(self.exact[:, part], 0.0)
        fmt = segment.fmt
        if fmt.scale_codec != "plain":
            return self._stored(segment)
        if fmt not in self._tensor_scales:
            quantizer = QUANTIZERS.get(fmt.kind)
            self._tensor_scales[fmt] = quantizer.tensor_scale(self.weight.float(), fmt)
        groups = values.view(1, -1) if fmt.granularity == "tensor" else values
        importance = None if self.importance is None else self.importance[:, part].reshape(groups.shape)
        context = GroupContext(self.moments[part, part].float()[None], importance)
        return fit_scales(self.fit, groups, fmt, self._tensor_scales[fmt], context)

    def _stored(self, segment: _Segment) -> Scales:
        """Return two-level scales, which depend on all groups of the matrix."""
        fmt = segment.fmt
        quantized = quantize_codes(self.weight.float(), fmt)
        group = segment.start // (fmt.group_size or 1)
        zero = None if quantized.zero is None else quantized.zero[:, group : group + 1]
        return Scales(quantized.scale[:, group : group + 1], zero)


def _sweep(
    w: Tensor,
    upper: Tensor,
    turn: Tensor,
    job: _Job,
    static: list[Scales] | None,
    block_columns: int,
) -> tuple[Tensor, float]:
    """Round the first ``len(turn)`` columns of ``w`` (R, C) in place; return it and ||E||_F^2."""
    owner = torch.empty_like(turn)
    for index, segment in enumerate(job.segments):
        owner[segment.start : segment.end] = index
    owners = owner[turn].tolist()
    exact = None if job.exact is None else job.exact[:, turn]
    loss, scales = 0.0, None
    for start, end in _blocks(len(turn), block_columns, job.segments, aligned=static is None):
        block, factor = w[:, start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for j in range(end - start):
            segment = job.segments[owners[start + j]]
            if static is not None:
                scales = static[owners[start + j]]
            elif start + j == segment.start:
                scales = job.scales(segment, w[:, segment.start : segment.end])
            assert scales is not None
            column = block[:, j : j + 1]
            rounded = column.float().clone()
            QUANTIZERS.get(segment.fmt.kind).round_(rounded, scales, segment.fmt)
            if exact is not None:
                rounded = torch.where(exact[:, j + start : j + start + 1], half_value(column), rounded)
            error = (column - rounded) / factor[j, j]
            block[:, j:] -= error * factor[j : j + 1, j:]
            block[:, j : j + 1] = rounded
            errors[:, j : j + 1] = error
        loss += float(errors.double().square().sum())
        w[:, end:] -= errors @ upper[start:end, end:]
    return w, loss


def _blocks(n: int, size: int, segments: list[_Segment], *, aligned: bool) -> list[tuple[int, int]]:
    """Return the lazy blocks; aligned ones do not end inside a segment that began in them, if possible.

    Scales fitted during the sweep look at all columns of their segment, which must be up to date.
    """
    starts = {segment.start for segment in segments}
    blocks, start = [], 0
    while start < n:
        end = min(start + size, n)
        if aligned and end < n and end not in starts:
            inside = [s for s in starts if start < s < end]
            end = max(inside) if inside else end
        blocks.append((start, end))
        start = end
    return blocks


def _segments(fmt: NumberFormat | Sequence[Band], n_columns: int) -> list[_Segment]:
    bands = [Band(n_columns, fmt)] if isinstance(fmt, NumberFormat) else list(fmt)
    if sum(band.n_columns for band in bands) != n_columns:
        raise ConfigError(
            f"bands cover {sum(band.n_columns for band in bands)} columns, but {n_columns} are quantized"
        )
    segments, start = [], 0
    for band in bands:
        if needs_layout(band.fmt) or band.fmt.is_float:
            raise ConfigError(f"GPTQ cannot round columns to '{band.fmt.name}'", value=band.fmt.name)
        size = min(band.fmt.group_size or band.n_columns, band.n_columns)
        stops = [*range(start, start + band.n_columns, size), start + band.n_columns]
        segments += [_Segment(a, b, band.fmt) for a, b in pairwise(stops)]
        start += band.n_columns
    return segments
