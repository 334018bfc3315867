"""The exact front of seconds against quality: epsilon constraints, each with its own proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from dse.partition.branch import Limits
from dse.partition.objective import objective_s, violations
from dse.partition.problem import Arrangement, Formula, Goal, PipelineProblem, Solution
from dse.partition.solve import Planner

FLOOR_FRAC = 1e-4  # penalties below this share of the largest one are not told apart


@dataclass(frozen=True)
class _Corner:
    """A solved point: the penalty bound it was solved for, and its solution."""

    max_penalty: float
    solution: Solution


def latency_quality_front(
    problem: PipelineProblem,
    n_points: int,
    *,
    formula: Formula = "round",
    time_limit_s: float | None = 120.0,
    n_relaxations: int | None = None,
    gap_frac: float = 1e-9,
    progress: Callable[[int, int], None] | None = None,
) -> list[Solution]:
    """Return solutions that no other one beats in both seconds and penalty, fastest last.

    The extremes come first: the least penalty that fits (with the fastest plan that reaches it) and the
    fastest plan without a bound. Then the penalty bound goes where the front is known least: into the largest
    rectangle between two neighbours (seconds times the logarithm of the penalty), at the geometric mean of
    their penalties. Every solution is optimal for its own bound up to its ``gap_frac``.

    Args:
        problem: the arrays.
        n_points: solves to make, the extremes included, at least 2; fewer points are returned where solves
            coincide or one point beats another.
        formula: as in ``Goal``.
        time_limit_s: for all solves together; what remains is shared evenly, so that late points may carry a
            gap. None for no limit.
        n_relaxations: linear programmes per solve, a limit that stops at the same place on every machine.
        gap_frac: per solve.
        progress: called with (solves done, ``n_points``).

    Returns:
        At least one solution; a single "infeasible" one where nothing fits.
    """
    began = time.monotonic()
    goal = Goal(formula)
    planner = Planner(problem, goal)

    def limits(n_left: int) -> Limits:
        if time_limit_s is None:
            return Limits(n_relaxations=n_relaxations, gap_frac=gap_frac)
        left = max(time_limit_s - (time.monotonic() - began), 0.05)
        return Limits(time_s=left / max(n_left, 1), n_relaxations=n_relaxations, gap_frac=gap_frac)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, n_points)

    fastest = planner.solve(None, limits=limits(n_points))
    if fastest.arrangement is None or fastest.penalty is None:
        return [fastest]
    report(1)
    best_quality = planner.learn_quality(limits(n_points - 1))
    corners = [_Corner(fastest.penalty, fastest)]
    if best_quality.value is not None and best_quality.arrangement is not None:
        bound = best_quality.value
        if bound < fastest.penalty:
            start = fastest_micro_batches(problem, goal, best_quality.arrangement)
            slowest = planner.solve(bound, [start], limits(n_points - 1))
            corners.insert(0, _Corner(bound, slowest))
    report(2)
    for done in range(2, n_points):
        target = _next_bound(corners)
        if target is None:
            break
        position, bound = target
        starts = [c.solution.arrangement for c in corners if c.solution.arrangement is not None]
        solution = planner.solve(bound, starts, limits(n_points - done))
        corners.insert(position, _Corner(bound, solution))
        report(done + 1)
    return _non_dominated([corner.solution for corner in corners])


def fastest_micro_batches(problem: PipelineProblem, goal: Goal, arrangement: Arrangement) -> Arrangement:
    """Return the arrangement with its best pair of micro-batches."""
    candidates = [
        replace(arrangement, prefill_micro_batch=p, decode_micro_batch=d)
        for p in problem.prefill_micro_batches
        for d in problem.decode_micro_batches
    ]
    return min(
        (c for c in candidates if not violations(problem, replace(goal, max_penalty=None), c)),
        key=lambda c: objective_s(problem, goal, c),
    )


def _penalty(corner: _Corner) -> float:
    return corner.max_penalty if corner.solution.penalty is None else corner.solution.penalty


def _next_bound(corners: list[_Corner]) -> tuple[int, float] | None:
    """Return where to solve next: the position of the new corner and its bound; None if all is known.

    The rectangle of two neighbours starts at the bound that the lower one was solved for: below it nothing
    faster exists. Widths are logarithmic down to ``FLOOR_FRAC`` of the largest penalty.
    """
    floor = FLOOR_FRAC * max(_penalty(corner) for corner in corners)
    values = [corner.solution.value or 0.0 for corner in corners]
    best, found = 0.0, None
    for i in range(len(corners) - 1):
        low, high = corners[i].max_penalty, _penalty(corners[i + 1])
        height = values[i] - values[i + 1]
        if high <= max(low, floor) * (1 + 1e-9) or height <= 1e-9 * abs(values[i]):
            continue
        area = math.log2(high / max(low, floor)) * height
        if area > best:
            best, found = area, (i + 1, math.sqrt(high * max(low, floor)))
    return found


def _non_dominated(solutions: list[Solution]) -> list[Solution]:
    """Return the solutions in the order of their penalties, without dominated and repeated ones."""
    kept: list[Solution] = []
    solved = [s for s in solutions if s.value is not None and s.penalty is not None]
    for solution in sorted(solved, key=lambda s: (s.penalty or 0.0, s.value or 0.0)):
        if not kept or (solution.value or 0.0) < (kept[-1].value or 0.0):
            kept.append(solution)
    return kept or solutions[:1]
