"""Which cell of a line a number lies in, for whole tensors at the pace of memory.

``torch.bucketize`` searches for every element, comparisons are not vectorised either. Here the upper 16 bits
of a float32 look up how many bounds lie below every number that begins with them, and the one bound that may
lie among those numbers decides the rest: exact, in two look-ups and one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_BINS = 1 << 16


@lru_cache(maxsize=64)
def _tables(bounds: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return by bin the number of bounds below all of it (uint8), and the bound inside it (float32)."""
    bits = torch.arange(_BINS, dtype=torch.int64, device=device) << 16
    first = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)
    begin, end = first.view(torch.float32), (first | 0xFFFF).view(torch.float32)
    ends = torch.stack([begin, torch.where(torch.isnan(end), begin, end)])  # infinity shares its bin with NaN
    low, high = ends.amin(0), ends.amax(0)
    edges = torch.tensor(bounds, dtype=torch.float32, device=device)
    below = torch.bucketize(low, edges)  # how many are less than the least number of the bin
    within = torch.bucketize(high, edges) - below
    if int(within[torch.isfinite(high)].max()) > 1:
        raise ValueError(f"two bounds share their upper 16 bits: {bounds}")
    inside = torch.where(within == 1, edges[below.clamp(max=len(edges) - 1)], torch.inf)
    return below.to(torch.uint8), inside


def cells(x: Tensor, bounds: tuple[float, ...]) -> Tensor:
    """Return how many of the bounds lie below each element of a float32 tensor, uint8.

    Args:
        x: any shape; NaN gets some number.
        bounds: in order, fewer than 256, no two with the same upper 16 bits as float32.
    """
    below, inside = _tables(bounds, x.device)
    flat = x.contiguous().view(-1)
    place = (flat.view(torch.int32) >> 16) & (_BINS - 1)
    found = below.index_select(0, place)
    found += flat > inside.index_select(0, place)
    return found.view(x.shape)


def cells_by_row(x: Tensor, bounds: Tensor) -> Tensor:
    """Return how many of a row's bounds (R, K) lie below each element of ``x`` (R, C), uint8, K < 256."""
    found = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for bound in bounds.split(1, dim=1):
        found += x > bound
    return found


def look_up(table: Tensor, numbers: Tensor) -> Tensor:
    """Return entries of a table (K,) by whole numbers of any shape and type."""
    return table.index_select(0, numbers.int().view(-1)).view(numbers.shape)


def midpoints(levels: Sequence[float]) -> tuple[float, ...]:
    """Return the float32 middles of neighbouring levels."""
    values = torch.tensor(levels, dtype=torch.float32, device="cpu")
    return tuple(((values[1:] + values[:-1]) / 2).tolist())
