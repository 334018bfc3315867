"""Cuts of L layers into n non-empty contiguous stages, as boxes of boundaries.

A cut is (n + 1) boundaries 0 = c_0 < c_1 < ... < c_n = L; a box bounds each of them by lo and hi.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dse.partition.problem import Array

Boundaries = NDArray[np.int64]


def count_cuts(lo: Boundaries, hi: Boundaries) -> int:
    """Return how many cuts a box holds."""
    end = int(hi[-1])
    ways = [0] * (end + 1)
    ways[0] = 1
    for low, high in zip(lo[1:], hi[1:], strict=True):
        below = 0
        following = [0] * (end + 1)
        for position in range(end + 1):
            if low <= position <= high:
                following[position] = below
            below += ways[position]
        ways = following
    return sum(ways)


def cuts_in_box(lo: Boundaries, hi: Boundaries) -> Boundaries:
    """Return all cuts of a box, (C, n + 1), in lexicographic order."""
    cuts = np.zeros((1, 1), dtype=np.int64)
    for low, high in zip(lo[1:], hi[1:], strict=True):
        start = np.maximum(cuts[:, -1] + 1, low)
        n_next = np.maximum(high - start + 1, 0)
        rows = np.repeat(np.arange(len(cuts)), n_next)
        offset = np.arange(n_next.sum()) - np.repeat(np.cumsum(n_next) - n_next, n_next)
        cuts = np.concatenate([cuts[rows], (start[rows] + offset)[:, None]], axis=1)
    return cuts


def lowest_bounds_in_box(prefixes: Array, constants: Array, lo: Boundaries, hi: Boundaries) -> Array:
    """Return the (T) least ``cut_bounds`` over a box, by dynamic programming over the boundaries, O(T n L).

    Args:
        prefixes: (T, n, L + 1) prefix sums of the layer costs of every stage, for T multipliers.
        constants: (T) added to every bound.
        lo, hi: (n + 1) the box.
    """
    n_rows, n_stages, n_positions = prefixes.shape
    best = np.full((n_rows, n_positions), np.inf)
    best[:, 0] = 0.0
    for stage in range(n_stages):
        least = np.minimum.accumulate(best - prefixes[:, stage], axis=1)
        low, high = int(lo[stage + 1]), int(hi[stage + 1])
        best = np.full((n_rows, n_positions), np.inf)
        best[:, low : high + 1] = least[:, low - 1 : high] + prefixes[:, stage, low : high + 1]
    return np.asarray(best.min(axis=1) + constants)


def best_cut_in_box(prefix: Array, lo: Boundaries, hi: Boundaries) -> Boundaries | None:
    """Return a cut that attains ``lowest_bounds_in_box``, None for an empty box."""
    n, n_positions = prefix.shape
    positions = np.arange(n_positions)
    best = np.where(positions == 0, 0.0, np.inf)
    came_from = np.zeros((n, n_positions), dtype=np.int64)
    for stage in range(n):
        before = best - prefix[stage]
        least = np.minimum.accumulate(before)
        arg = np.maximum.accumulate(np.where(before <= least, positions, 0))
        least = np.concatenate([[np.inf], least[:-1]])
        came_from[stage] = np.concatenate([[0], arg[:-1]])
        inside = (positions >= lo[stage + 1]) & (positions <= hi[stage + 1])
        best = np.where(inside, least + prefix[stage], np.inf)
    if not np.isfinite(best[-1]):
        return None
    cut = np.zeros(n + 1, dtype=np.int64)
    cut[n] = n_positions - 1
    for stage in range(n - 1, -1, -1):
        cut[stage] = came_from[stage, cut[stage + 1]]
    return cut


def split_box_at(lo: Boundaries, hi: Boundaries, at: int, middle: int) -> list[tuple[Boundaries, Boundaries]]:
    """Return the two parts of a box whose boundary ``at`` is at most ``middle``, and above it."""
    left_hi, right_lo = hi.copy(), lo.copy()
    left_hi[at] = middle
    right_lo[at] = middle + 1
    return [tightened(lo, left_hi), tightened(right_lo, hi)]


def tightened(lo: Boundaries, hi: Boundaries) -> tuple[Boundaries, Boundaries]:
    """Return the smallest box with the same cuts: boundaries rise by at least one."""
    steps = np.arange(len(lo))
    return (
        np.maximum.accumulate(lo - steps) + steps,
        np.minimum.accumulate((hi - steps)[::-1])[::-1] + steps,
    )
