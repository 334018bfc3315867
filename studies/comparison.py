"""A plan beside the published planners, and fronts over any quantities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse.evaluate.effective_bits import effective_bits
from dse.partition.baselines import published_baselines
from dse.partition.objective import objective_s, penalty_of, violations
from dse.partition.pareto import Axis, FrontPoint, objective_front
from dse.partition.problem import Goal
from studies.planning import Planned, Setting


@dataclass(frozen=True)
class BaselineRow:
    """What a published planner would have done: value and penalty, None with the reason where it has no plan.

    ``breaks``: the goal's bounds that its plan does not keep.
    """

    name: str
    value: float | None
    penalty: float | None
    reason: str
    breaks: tuple[str, ...]


def baselines(planned: Planned) -> list[BaselineRow]:
    """Return the published planners on the tables that the plan was made from.

    The uniform precision is the study's where every layer has it as a choice, else the nearest one of the
    largest penalty that a uniform plan can have within memory.
    """
    found = planned.candidate.problem
    if found is None:
        return []
    problem, goal = found.problem, planned.goal
    precision = planned.setting.arranger.uniform_names[:1]
    uniform = None
    for name in precision:
        wanted = next(p for p in found.precisions if p.name == name)
        choices = [found.choice_of(layer, [wanted] * len(units)) for layer, units in enumerate(found.units)]
        if all(choice is not None for choice in choices):
            uniform = np.array(choices, dtype=np.int64)
    rows = []
    for baseline in published_baselines(problem, goal, uniform):
        plan = baseline.arrangement
        if plan is None:
            rows.append(BaselineRow(baseline.name, None, None, baseline.reason, ()))
            continue
        value = objective_s(problem, goal, plan)
        broken = tuple(violations(problem, goal, plan))
        rows.append(BaselineRow(baseline.name, value, penalty_of(problem, plan), "", broken))
    return rows


@dataclass(frozen=True)
class FrontRow:
    """A point of a front with its plan.

    Attributes:
        values: of the axes, in the units people use: throughput in tokens/s.
        stages: (device, first layer, last layer + 1); linear_bits: effective bits of the linears.
        plan: the plan as JSON; gap_frac, status: of the minimised axis under the other axes' bounds.
    """

    values: dict[Axis, float]
    minimised: Axis
    status: str
    gap_frac: float
    stages: tuple[tuple[str, int, int], ...]
    linear_bits: float
    plan: dict[str, Any]


def front_of(
    setting: Setting,
    goal: Goal,
    axes: Sequence[Axis],
    *,
    n_points: int,
    time_limit_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[FrontRow]:
    """Return the front over the axes; with one cache format for all layers, of all formats together."""
    arranger = setting.arranger
    workload = setting.study.workload
    with_energy = "energy" in axes or "energy" in goal.quantities
    problems = arranger.problems(with_energy)
    rows: list[FrontRow] = []
    for found in problems:
        points = objective_front(
            found.problem,
            goal,
            axes,
            n_points=n_points,
            time_limit_s=time_limit_s / len(problems),
            progress=progress,
        )
        for index, point in enumerate(points):
            assert point.solution.arrangement is not None
            plan = found.plan_from(
                point.solution.arrangement,
                model=setting.study.model,
                granularity=setting.study.granularity,
                name=f"front-{len(rows) + index}",
            )
            bits = effective_bits(setting.prepared.graph, plan.assignment, setting.prepared.units)[1]
            rows.append(
                FrontRow(
                    _people(point, workload.batch * workload.output_tokens),
                    point.minimised,
                    point.solution.status,
                    point.solution.gap_frac or 0.0,
                    tuple((stage.devices[0], *stage.layers) for stage in plan.stages),
                    bits,
                    plan.to_json(),
                )
            )
    return _undominated(rows)


def _people(point: FrontPoint, n_tokens: int) -> dict[Axis, float]:
    values = dict(point.values)
    if "throughput" in values:
        values["throughput"] = n_tokens / values["throughput"]
    return values


def _undominated(rows: list[FrontRow]) -> list[FrontRow]:
    from dse.search.pareto import non_dominated

    if not rows:
        return []
    signs = {axis: -1.0 if axis == "throughput" else 1.0 for axis in rows[0].values}
    table = np.array([[signs[axis] * value for axis, value in row.values.items()] for row in rows])
    return [row for row, keep in zip(rows, non_dominated(table), strict=True) if keep]
