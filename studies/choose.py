"""Which candidates are measured, which plan is recommended, and whether mixing beat uniform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.result import Point


def spread(objectives: NDArray[np.float64], n_wanted: int, already: Sequence[int] = ()) -> list[int]:
    """Return indices of rows that are spread over the objective space, in order of choice.

    Greedy farthest-point selection on the objectives scaled to [0, 1] (Gonzalez 1985, a 2-approximation of
    the k-centre problem), begun with ``already`` or, if that is empty, with the best row of each objective.

    Args:
        objectives: (N, M), minimised.
        n_wanted: how many indices to return, ``already`` included.
    """
    n = len(objectives)
    low, high = objectives.min(axis=0), objectives.max(axis=0)
    scaled = (objectives - low) / np.where(high > low, high - low, 1.0)
    chosen = list(dict.fromkeys(already)) or list(dict.fromkeys(int(i) for i in scaled.argmin(axis=0)))
    chosen = chosen[:n_wanted]
    while len(chosen) < min(n_wanted, n):
        distance = np.linalg.norm(scaled[:, None, :] - scaled[None, chosen, :], axis=2).min(axis=1)
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return chosen


def non_dominated_points(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in measured perplexity, latency, energy and memory at once."""
    from dse.search.pareto import non_dominated

    if not points:
        return []
    objectives = np.array([objectives_of(point) for point in points])
    return [point for point, keep in zip(points, non_dominated(objectives), strict=True) if keep]


def objectives_of(point: Point) -> tuple[float, float, float, float]:
    """Return (quality, latency, energy, memory), minimised; quality is measured where it was measured."""
    quality = point.measured.kl_nats if point.measured else point.predicted.kl_nats
    predicted = point.predicted
    return quality, predicted.total_s, predicted.energy_j_per_token, predicted.memory_total_bytes


def compare_with_uniform(
    mixed: Sequence[Point], uniform: Sequence[Point], slack_bits: float = 1e-9
) -> list[dict[str, Any]]:
    """Hold every uniform plan against the best measured mixed plan of the same or fewer effective bits."""
    rows: list[dict[str, Any]] = []
    for base in uniform:
        if base.measured is None:
            continue
        bits = base.predicted.linear_effective_bits
        rivals = [
            point
            for point in mixed
            if point.measured is not None and point.predicted.linear_effective_bits <= bits + slack_bits
        ]
        best = min(rivals, key=_perplexity, default=None)
        rows.append(
            {
                "uniform": base.name,
                "uniform_bits": bits,
                "uniform_perplexity": base.measured.perplexity,
                "mixed": None if best is None else best.name,
                "mixed_bits": None if best is None else best.predicted.linear_effective_bits,
                "mixed_perplexity": None if best is None else _perplexity(best),
                "wins": best is not None and _perplexity(best) < base.measured.perplexity,
            }
        )
    return rows


def recommend(
    points: Sequence[Point], reference_perplexity: float, tolerance_frac: float
) -> tuple[Point, str]:
    """Return the fastest measured plan within the tolerated loss, or the best one if none is, and why."""
    measured = [point for point in points if point.measured is not None]
    limit = reference_perplexity * (1 + tolerance_frac)
    good = [point for point in measured if _perplexity(point) <= limit]
    if good:
        best = min(good, key=lambda point: (point.predicted.total_s, _perplexity(point), point.name))
        return best, (
            f"the fastest plan whose measured perplexity ({_perplexity(best):.2f}) is within "
            f"{tolerance_frac:.0%} of full precision ({reference_perplexity:.2f})"
        )
    best = min(measured, key=lambda point: (_perplexity(point), point.name))
    return best, (
        f"no measured plan is within {tolerance_frac:.0%} of full precision ({reference_perplexity:.2f}); "
        f"this one has the lowest perplexity ({_perplexity(best):.2f})"
    )


def _perplexity(point: Point) -> float:
    assert point.measured is not None
    return point.measured.perplexity
