"""What a change of the cluster does to a plan: a lost device, another price; planned again from the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dse.partition.branch import Limits
from dse.partition.objective import violations
from dse.partition.problem import Arrangement, Goal, PipelineProblem, Solution
from dse.partition.solve import Planner

REPLAN = Limits(time_s=1.0, gap_frac=1e-3)


@dataclass(frozen=True)
class Change:
    """A plan after a change.

    Attributes:
        what: the change in words.
        solution: the new plan with its proof.
        moved_layers: layers that another device runs now, or in other precisions; moved_bytes: what has to
            be loaded for them, weights and cache.
    """

    what: str
    solution: Solution
    moved_layers: tuple[int, ...]
    moved_bytes: float


def without_device(problem: PipelineProblem, device: int) -> PipelineProblem:
    """Return the problem in which no order has the device."""
    orders = tuple(dict.fromkeys(tuple(d for d in order if d != device) for order in problem.orders))
    return replace(problem, orders=tuple(order for order in orders if order))


def lost_devices(
    problem: PipelineProblem,
    goal: Goal,
    plan: Arrangement,
    limits: Limits = REPLAN,
    *,
    only: str | None = None,
) -> Iterator[Change]:
    """Plan again without each of the plan's devices (or one of them); unused ones can go without any change.

    The plan's neighbours take over the lost stage as a start, so that there is an answer at once where they
    have the memory for it.
    """
    for index, (device, _, _) in enumerate(plan.stages):
        if only not in (None, problem.devices[device]):
            continue
        changed = without_device(problem, device)
        starts = list(takeovers(changed, goal, plan, index))
        solution = Planner(changed, goal, limits).solve(goal.max_penalty, starts, explain=True)
        yield compared(f"without {problem.devices[device]}", problem, plan, solution)


def with_prices(
    problem: PipelineProblem,
    goal: Goal,
    plan: Arrangement,
    prices_usd_per_h: Sequence[float | None],
    limits: Limits = REPLAN,
) -> Change:
    """Plan again with other prices, from the old plan."""
    changed = replace(problem, price_usd_per_h=tuple(prices_usd_per_h))
    solution = Planner(changed, goal, limits).solve(goal.max_penalty, [plan])
    return compared("other prices", problem, plan, solution)


def takeovers(problem: PipelineProblem, goal: Goal, plan: Arrangement, lost: int) -> Iterator[Arrangement]:
    """Yield feasible plans in which the neighbours of a lost stage share its layers."""
    _, first, end = plan.stages[lost]
    for cut in range(first, end + 1):
        stages = []
        for index, (device, a, b) in enumerate(plan.stages):
            if index == lost:
                continue
            begin = cut if index == lost + 1 else a
            stop = cut if index == lost - 1 else b
            stages.append((device, begin, stop))
        if not stages or stages[0][1] != 0 or stages[-1][2] != len(plan.choices):
            continue
        moved = replace(plan, stages=tuple(stages))
        if not violations(problem, goal, moved):
            yield moved


def compared(what: str, problem: PipelineProblem, old: Arrangement, solution: Solution) -> Change:
    """Say what moves between a plan and its successor."""
    new = solution.arrangement
    if new is None:
        return Change(what, solution, (), 0.0)
    before, after = _device_of_layers(old), _device_of_layers(new)
    moved = (before != after) | (np.array(old.choices) != np.array(new.choices))
    layers = np.flatnonzero(moved)
    loaded = problem.memory_bytes[layers, np.array(new.choices)[layers]].sum()
    return Change(what, solution, tuple(int(layer) for layer in layers), float(loaded))


def _device_of_layers(plan: Arrangement) -> np.ndarray:
    return np.repeat([device for device, _, _ in plan.stages], [end - a for _, a, end in plan.stages])
