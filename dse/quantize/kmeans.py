"""Tables of levels fitted to the values: weighted Lloyd per row, and the exact optimum.

Source: SqueezeLLM, arXiv 2306.07629. Lloyd starts from the levels of min-max round to nearest and each step
lowers the weighted squared error, so that it never ends above round to nearest. In one dimension clusters
are intervals of the sorted values: sums over them are differences of running sums, so that one step over all
rows costs a few searches.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dse.formats.precision import NumberFormat
from dse.quantize.base import GroupScaled
from dse.quantize.cells import cells_by_row
from dse.quantize.half import half_value
from dse.quantize.quantizer import QUANTIZERS, Scales

LLOYD_STEPS = 20
MANY_LEVELS = 16  # from here on a search per element beats comparing with every level
Floats = NDArray[np.float64]


class SortedRows:
    """Rows of values in order, with running sums of weights and weighted values.

    Attributes:
        values: (R, C) float64, each row in order; ``order``: where they came from.
        weight, moment: (R, C + 1) running sums of w and w x, from 0.
    """

    def __init__(self, x: Tensor, weights: Tensor | None) -> None:
        """Sort ``x`` (R, C); ``weights`` (R, C) are not negative, None for all 1."""
        ordered, self.order = x.sort(dim=1)  # in its own dtype, which is faster
        self.values = ordered.double()
        w = torch.ones_like(self.values) if weights is None else weights.double().gather(1, self.order)
        zero = self.values.new_zeros(len(x), 1)
        self.weight = torch.cat([zero, w.cumsum(1)], 1)
        self.moment = torch.cat([zero, (w * self.values).cumsum(1)], 1)

    def edges(self, levels: Tensor) -> Tensor:
        """Return (R, K + 1) positions where the cells of the levels (R, K) begin, and the end."""
        middle = (levels[:, 1:] + levels[:, :-1]) / 2
        inner = torch.searchsorted(self.values, middle)
        first = inner.new_zeros(len(inner), 1)
        return torch.cat([first, inner, first + self.values.shape[1]], 1)

    def means(self, edges: Tensor, empty: Tensor) -> Tensor:
        """Return the weighted means (R, K) of cells; a cell without weight gets ``empty``."""
        weight = self.weight.gather(1, edges).diff(dim=1)
        moment = self.moment.gather(1, edges).diff(dim=1)
        return torch.where(weight > 0, moment / weight.clamp(min=1e-300), empty)


def lloyd(x: Tensor, levels: Tensor, weights: Tensor | None = None, steps: int = LLOYD_STEPS) -> Tensor:
    """Return levels (R, K), in order, after Lloyd steps on rows ``x`` (R, C) from ``levels`` (R, K)."""
    rows = SortedRows(x, weights)
    current = levels.double().sort(dim=1).values
    for _ in range(steps):
        moved = rows.means(rows.edges(current), current)
        if torch.equal(moved, current):
            break
        current = moved
    return current


def grid_levels(x: Tensor, n_levels: int) -> Tensor:
    """Return (R, K) levels of round to nearest between the extremes of each row."""
    low, high = x.amin(1, keepdim=True).double(), x.amax(1, keepdim=True).double()
    return low + (high - low) * torch.linspace(0, 1, n_levels, dtype=torch.float64, device=x.device)


def exact_levels(values: Floats, n_levels: int, weights: Floats | None = None) -> Floats:
    """Return the K levels of the least weighted squared error of one row, by dynamic programming.

    cost(k, j) = min_i cost(k - 1, i) + sse(i, j) over sorted values (Wang & Song 2011, Ckmeans.1d.dp), O(K
    n^2).

    Args:
        values: (n,); n_levels: K; weights: (n,) positive, None for all 1.

    Returns:
        (K,) in order; levels that no value needs repeat the largest.
    """
    order = np.argsort(values, kind="stable")
    x = values[order].astype(np.float64)
    w = np.ones_like(x) if weights is None else weights[order].astype(np.float64)
    mass, moment, square = (np.concatenate([[0.0], np.cumsum(part)]) for part in (w, w * x, w * x * x))
    n = len(x)
    total = mass[None, :] - mass[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        sse = (square[None, :] - square[:, None]) - (moment[None, :] - moment[:, None]) ** 2 / total
    sse = np.where(np.triu(np.ones((n + 1, n + 1)), 1) > 0, np.maximum(sse, 0.0), np.inf)
    np.fill_diagonal(sse, 0.0)
    cost, back = sse[0].copy(), []
    for _ in range(n_levels - 1):
        candidates = cost[:, None] + sse
        back.append(candidates.argmin(0))
        cost = candidates.min(0)
    edges = [n]
    for step in reversed(back):
        edges.append(int(step[edges[-1]]))
    edges = sorted({0, *edges})
    levels = [(moment[b] - moment[a]) / (mass[b] - mass[a]) for a, b in pairwise(edges)]
    return np.array(levels + [levels[-1]] * (n_levels - len(levels)))


def stored_levels(levels: Tensor, x: Tensor) -> Tensor:
    """Return levels as float16 holds them, float32; rows of ``x`` that are not finite become NaN."""
    stored = half_value(levels)
    return stored.masked_fill_(~torch.isfinite(x.sum(1, keepdim=True)), torch.nan)


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Return int64 numbers of the nearest of levels (R, K) to ``x`` (R, C); (1, K) serves all rows."""
    middle = (levels[:, 1:] + levels[:, :-1]) / 2
    if middle.shape[1] > MANY_LEVELS:
        return torch.searchsorted(middle.expand(len(x), -1).contiguous(), x.contiguous())
    return cells_by_row(x, middle).long()


def look_up(codes: Tensor, levels: Tensor) -> Tensor:
    """Return levels (R, K), or (1, K) for all rows, by codes (R, C)."""
    if len(levels) == 1:
        return levels[0][codes.long()]
    return levels.gather(1, codes.long())


class KMeansQuantizer(GroupScaled):
    """A table per row; ``Scales.scale`` is the table (n_groups, 2^bits). Unweighted."""

    def fit(self, groups: Tensor, fmt: NumberFormat, tensor_scale: Tensor | None) -> Scales:  # noqa: ARG002
        """Return the levels after Lloyd steps."""
        clean = groups.nan_to_num(0.0, 0.0, 0.0)
        return Scales(stored_levels(lloyd(clean, grid_levels(clean, 1 << fmt.bits)), groups))

    def round_(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> None:  # noqa: ARG002
        """Round in place to the nearest level."""
        groups.copy_(look_up(nearest(groups, scales.scale), scales.scale))

    def encode(self, groups: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return numbers of levels."""
        return nearest(groups, scales.scale).to(torch.int16)

    def decode(self, codes: Tensor, scales: Scales, fmt: NumberFormat) -> Tensor:  # noqa: ARG002
        """Return the levels."""
        return look_up(codes, scales.scale)


QUANTIZERS.register("kmeans")(KMeansQuantizer())
