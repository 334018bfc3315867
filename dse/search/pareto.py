"""Pareto fronts and exact hypervolumes. Every objective is minimised."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return the (M) mask of points (M, D) that no other point dominates.

    A point dominates another if it is nowhere above it and somewhere below it; so equal points stay together.
    O(M log M) for D <= 2, else O(M F) with F points on the front.
    """
    values = _points(points)
    if len(values) == 0:
        return np.zeros(0, dtype=bool)
    if values.shape[1] == 1:
        return np.asarray(values[:, 0] == values[:, 0].min())
    if values.shape[1] == 2:
        return _non_dominated_2d(values)
    return _non_dominated_general(values)


def pareto_front(points: ArrayLike) -> NDArray[np.int64]:
    """Return indices of the non-dominated points, one of each value (the first), sorted by their values."""
    values = _points(points)
    index = np.flatnonzero(non_dominated(values))
    if len(index) == 0:
        return index
    _, first = np.unique(values[index], axis=0, return_index=True)
    return index[first]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points (M, D) dominate below the reference (D); exact.

    Points that are not below the reference in every objective add nothing. 2-D: sweep, 3-D: sweep of slices,
    above: WFG (While, Bradstreet, Barone, IEEE TEC 16(1), 2012): the sum over points of the volume that a
    point dominates alone among those after it.
    """
    limit = np.asarray(reference, dtype=np.float64)
    values = _points(points)
    if values.shape[1] != len(limit):
        raise ValueError(f"points have {values.shape[1]} objectives, but the reference has {len(limit)}")
    values = values[(values < limit).all(axis=1)]
    return _volume(values[pareto_front(values)], limit) if len(values) else 0.0


def hypervolume_gain(point: ArrayLike, front: ArrayLike, reference: ArrayLike) -> float:
    """Return by how much ``point`` (D) enlarges the hypervolume of ``front`` (M, D)."""
    limit = np.asarray(reference, dtype=np.float64)
    value = np.asarray(point, dtype=np.float64)
    if not (value < limit).all():
        return 0.0
    others = np.maximum(np.asarray(front, dtype=np.float64).reshape(-1, len(limit)), value)
    return float(np.prod(limit - value)) - hypervolume(others, limit)


def _points(points: ArrayLike) -> Array:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"points must have shape (M, D), but got {values.shape}")
    if np.isnan(values).any():
        raise ValueError("points must not be NaN")
    return values


def _non_dominated_2d(values: Array) -> NDArray[np.bool_]:
    order = np.lexsort((values[:, 1], values[:, 0]))
    x, y = values[order].T
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(y)[:-1]])
    same_as_before = np.concatenate([[False], (x[1:] == x[:-1]) & (y[1:] == y[:-1])])
    keep = y < best_before
    # an equal point follows its twin directly; it stays exactly if the first of them does
    first_of_run = np.maximum.accumulate(np.where(same_as_before, 0, np.arange(len(x))))
    mask = np.empty(len(values), dtype=bool)
    mask[order] = keep[first_of_run]
    return mask


def _non_dominated_general(values: Array) -> NDArray[np.bool_]:
    """Sort so that no later point dominates an earlier one; each survivor strikes out what it dominates."""
    order = np.lexsort(values.T[::-1])
    alive = order
    mask = np.zeros(len(values), dtype=bool)
    while len(alive):
        head = values[alive[0]]
        rest = values[alive]
        equal = (rest == head).all(axis=1)
        mask[alive[equal]] = True
        alive = alive[~((rest >= head).all(axis=1))]
    return mask


def _volume(front: Array, limit: Array) -> float:
    """Hypervolume of mutually non-dominated, distinct points below the limit."""
    if len(front) == 1:
        return float(np.prod(limit - front[0]))
    if len(limit) == 1:
        return float(limit[0] - front[:, 0].min())
    if len(limit) == 2:
        return _volume_2d(front, limit)
    if len(limit) == 3:
        return _volume_3d(front, limit)
    return _volume_wfg(front, limit)


def _volume_2d(front: Array, limit: Array) -> float:
    x, y = front[np.argsort(front[:, 0], kind="stable")].T
    widths = np.append(x[1:], limit[0]) - x
    return float(widths @ (limit[1] - y))


def _volume_3d(front: Array, limit: Array) -> float:
    """Slice along the last objective; each slice is the 2-D volume of the points that reach it."""
    ordered = front[np.argsort(front[:, 2], kind="stable")]
    heights = np.append(ordered[1:, 2], limit[2]) - ordered[:, 2]
    total = 0.0
    for i, height in enumerate(heights):
        if height > 0:
            reach = ordered[: i + 1, :2]
            total += height * _volume_2d(reach[pareto_front(reach)], limit[:2])
    return float(total)


def _volume_wfg(front: Array, limit: Array) -> float:
    # worst first objective first: the limited sets then shrink fastest
    ordered = front[np.argsort(-front[:, 0], kind="stable")]
    total = 0.0
    for i, point in enumerate(ordered):
        alone = float(np.prod(limit - point))
        if i + 1 < len(ordered):
            limited = np.maximum(ordered[i + 1 :], point)
            alone -= _volume(limited[pareto_front(limited)], limit)
        total += alone
    return total
