"""The front over any of the planner's quantities, by epsilon constraints with a proof for every point.

One axis is minimised, the others are bounded by a grid from above their best value up to the worst that the
best plans of the other axes have. A plan that already keeps the bounds of a tighter cell answers that too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dse.partition.branch import Limits
from dse.partition.objective import REL_TOL, penalty_of, quantity
from dse.partition.problem import Goal, Objective, PipelineProblem, Solution
from dse.partition.solve import Planner, least_penalty

Axis = Literal["quality", "time", "ttft", "tpot", "throughput", "energy", "cost"]
AXES: tuple[Axis, ...] = ("quality", "time", "ttft", "tpot", "throughput", "energy", "cost")
SPREAD = 1e-4  # smallest penalty on the grid, as a share of the largest


@dataclass(frozen=True)
class FrontPoint:
    """A plan of the front.

    Attributes:
        values: of every axis, minimised: quality is the penalty, throughput the seconds between batches.
        bounds: of the other axes, for which ``solution`` minimises the ``minimised`` axis up to its gap.
    """

    values: dict[Axis, float]
    bounds: dict[Axis, float]
    minimised: Axis
    solution: Solution


def objective_front(
    problem: PipelineProblem,
    goal: Goal,
    axes: Sequence[Axis],
    *,
    n_points: int = 25,
    time_limit_s: float = 60.0,
    gap_frac: float = 1e-3,
    progress: Callable[[int, int], None] | None = None,
) -> list[FrontPoint]:
    """Return plans that no other one of the result beats in all axes, ascending by the first axis.

    Args:
        problem: the arrays; with energy and prices where those are axes.
        goal: formula and bounds that always hold.
        axes: two or more, all different; the first one beside quality is minimised.
        n_points: about how many cells the grid has.
        time_limit_s: for all solves together, shared evenly by those that are left.
        gap_frac: of every solve.
        progress: called with (solves done, solves in all).

    Returns:
        Nothing where nothing is feasible.
    """
    axes = tuple(axes)
    minimised = next(axis for axis in axes if axis != "quality")
    others = tuple(axis for axis in axes if axis != minimised)
    n_levels = max(1, round((n_points / (1 + ("quality" in axes))) ** (1 / len(others))))
    n_cells = n_levels ** len(others) * (2 if "quality" in axes else 1)  # quality has twice the levels
    n_solves, began, done = len(axes) + n_cells, time.monotonic(), 0

    def limits() -> Limits:
        left = max(time_limit_s - (time.monotonic() - began), 0.05)
        return Limits(time_s=left / max(n_solves - done, 1), gap_frac=gap_frac)

    points: list[FrontPoint] = []
    for axis in axes:
        points += _best_of(problem, goal, axis, axes, limits())
        done += 1
    if not points:
        return []
    grids = [_levels([point.values[axis] for point in points], n_levels, axis) for axis in others]
    planner_goal = _minimising(goal, minimised)
    # from loose to tight, so that a plan which keeps tighter bounds than asked for answers those too
    for cell in itertools.product(*(grid[::-1] for grid in grids)):
        done += 1
        if progress is not None:
            progress(done, n_solves)
        bounds = dict(zip(others, cell, strict=True))
        if _is_answered(points, minimised, bounds):
            continue
        bounded, max_penalty = _bounded(planner_goal, bounds)
        starts = [p.solution.arrangement for p in points if p.solution.arrangement is not None]
        solution = Planner(problem, bounded, limits()).solve(max_penalty, starts, explain=False)
        points += _point(problem, goal, solution, axes, minimised, bounds)
    return _undominated(points, axes)


def value_of(problem: PipelineProblem, goal: Goal, solution: Solution, axis: Axis) -> float:
    """Return a solution's value on an axis."""
    assert solution.arrangement is not None
    if axis == "quality":
        return penalty_of(problem, solution.arrangement)
    return quantity(problem, goal, solution.arrangement, axis)


def _minimising(goal: Goal, axis: Axis) -> Goal:
    objective: Objective = "time" if axis == "quality" else axis
    return replace(goal, objective=objective, theta_s=0.0)


def _best_of(
    problem: PipelineProblem, goal: Goal, axis: Axis, axes: tuple[Axis, ...], limits: Limits
) -> list[FrontPoint]:
    """Return the best plan on one axis alone, empty where there is none."""
    if axis != "quality":
        solution = Planner(problem, _minimising(goal, axis), limits).solve(goal.max_penalty, explain=False)
        return _point(problem, goal, solution, axes, axis, {})
    if goal.bounds or goal.max_devices is not None:
        return []  # the least penalty is known without other bounds only; the grid's tight end stands in
    solution = least_penalty(problem, time_limit_s=limits.time_s)
    return _point(problem, goal, solution, axes, "quality", {})


def _point(
    problem: PipelineProblem,
    goal: Goal,
    solution: Solution,
    axes: tuple[Axis, ...],
    minimised: Axis,
    bounds: dict[Axis, float],
) -> list[FrontPoint]:
    if solution.arrangement is None:
        return []
    values = {axis: value_of(problem, goal, solution, axis) for axis in axes}
    return [FrontPoint(values, bounds, minimised, solution)]


def _levels(values: list[float], n_levels: int, axis: Axis) -> list[float]:
    """Return ascending bounds above the best value, up to the worst: geometric for a penalty, else even."""
    low, high = min(values), max(values)
    if axis == "quality" and high > 0:
        return np.geomspace(max(low, SPREAD * high), high, 2 * n_levels + 1)[1:].tolist()
    return np.linspace(low, high, n_levels + 1)[1:].tolist()


def _bounded(goal: Goal, bounds: dict[Axis, float]) -> tuple[Goal, float | None]:
    max_penalty = goal.max_penalty
    for axis, bound in bounds.items():
        if axis == "quality":
            max_penalty = bound if max_penalty is None else min(bound, max_penalty)
        else:
            limit = min(bound, goal.bounds.get(axis, bound))
            goal = goal.with_bound(axis, limit + REL_TOL * abs(limit))
    return goal, max_penalty


def _is_answered(points: list[FrontPoint], minimised: Axis, bounds: dict[Axis, float]) -> bool:
    """Whether a plan that is best for looser bounds keeps these too: then it is best for these as well."""
    return any(
        point.minimised == minimised
        and all(bound <= point.bounds.get(axis, np.inf) for axis, bound in bounds.items())
        and all(point.values[axis] <= bound * (1 + REL_TOL) for axis, bound in bounds.items())
        for point in points
    )


def _undominated(points: list[FrontPoint], axes: tuple[Axis, ...]) -> list[FrontPoint]:
    table = np.array([[point.values[axis] for axis in axes] for point in points])
    kept: list[FrontPoint] = []
    for i, row in enumerate(table):
        beats = (table <= row).all(axis=1) & (table < row).any(axis=1)
        repeats = (table[:i] == row).all(axis=1)
        if not beats.any() and not repeats.any():
            kept.append(points[i])
    return sorted(kept, key=lambda point: tuple(point.values[axis] for axis in axes))
