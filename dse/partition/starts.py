"""Multipliers that need no linear program: what a lane can do at best as one long stage, and in balance."""

from __future__ import annotations

import numpy as np

from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import Multipliers, uniform_multipliers
from dse.partition.terms import Maximum


def start_multipliers(lane: Lane) -> list[Multipliers]:
    """Return the multipliers that a search of a lane starts with.

    Uniform ones; those of the sums over all stages, which bound latency; and those of a balanced pipeline,
    which bound the slowest stage by the harmonic mean: with shares in proportion to the speeds 1 / t_s every
    layer costs 1 / sum_s (1 / t_s) wherever it is.
    """
    cheapest = [np.where(lane.usable, table, np.inf).min(axis=2) for table in (lane.prefill_s, lane.decode_s)]
    typical = np.concatenate([np.where(np.isfinite(c), c, 0.0).mean(axis=1) for c in cheapest])
    uniform = uniform_multipliers(lane)
    return [uniform, *(_shared(lane, typical, whole=whole) for whole in (True, False))]


def _shared(lane: Lane, typical: Array, *, whole: bool) -> Multipliers:
    shares = tuple(_shares(maximum, lane.n, typical, whole=whole) for maximum in lane.terms.maxima)
    of_bounds = tuple(
        tuple(_shares(maximum, lane.n, typical, whole=whole) for maximum in bound.terms.maxima)
        for bound in lane.bounds
    )
    return Multipliers(shares, np.zeros(lane.n), 0.0, (0.0,) * len(lane.bounds), of_bounds)


def _shares(maximum: Maximum, n: int, typical: Array, *, whole: bool) -> Array:
    """Return a probability vector over the rows of a maximum.

    ``whole`` takes the row that sums over all stages, where there is one.
    """
    touched = (maximum.forms[:, :n] != 0) | (maximum.forms[:, n:] != 0)
    n_stages = touched.sum(axis=1)
    sums = np.flatnonzero((n_stages == n) & (n > 1))
    if whole and len(sums):
        return np.eye(len(n_stages))[sums[0]]
    values = maximum.forms @ typical
    speeds = np.where((n_stages == 1) & (values > 0), 1.0 / np.maximum(values, 1e-300), 0.0)
    total = speeds.sum()
    return speeds / total if total > 0 else np.full(len(speeds), 1.0 / len(speeds))
