"""A plan beside the published planners, and fronts over any quantities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dse.evaluate.effective_bits import effective_bits
from dse.partition.baselines import Baseline, mixed_baselines, one_precision_baselines
from dse.partition.bitwidth_transfer import LayerPrecisions
from dse.partition.from_table import TableProblem
from dse.partition.objective import REL_TOL, objective_s, penalty_of, violations
from dse.partition.pareto import Axis, FrontPoint, objective_front
from dse.partition.problem import Goal, PipelineProblem
from dse.plan import Plan
from studies.arrange import Arranger
from studies.planning import Planned, Setting
from studies.result import Point


@dataclass(frozen=True)
class BaselineRow:
    """What a published planner would have done: value and penalty, None with the reason where it has no plan.

    Attributes:
        over_ours_frac: by how much the value is above that of our plan, of ours.
        breaks: the goal's bounds that its plan does not keep.
        stages: (device, first layer, last layer + 1).
        precision: of all layers, for planners that know only one.
    """

    name: str
    value: float | None
    penalty: float | None
    reason: str
    breaks: tuple[str, ...]
    over_ours_frac: float | None = None
    stages: tuple[tuple[str, int, int], ...] = ()
    precision: str = ""


def baselines(planned: Planned) -> list[BaselineRow]:
    """Return the published planners on the tables that the plan was made from."""
    own = planned.candidate.solution.value
    return baseline_rows(planned.setting.arranger, planned.goal, planned.candidate.plan, own)


def baseline_rows(arranger: Arranger, goal: Goal, plan: Plan, own: float | None) -> list[BaselineRow]:
    """Return the published planners beside a plan whose value by the goal is ``own``."""
    with_energy = "energy" in goal.quantities
    rows: list[BaselineRow] = []
    name = _comparable_uniform(arranger, goal.max_penalty)
    if name is None:
        absent = f"no device runs {arranger.study.uniform[0]}" if arranger.study.uniform else "none is named"
        rows += [BaselineRow(planner, None, None, absent, ()) for planner in ("uniform", "PipeEdge")]
    else:
        one = arranger.of_one_precision(name, with_energy)
        found = one_precision_baselines(one.problem, np.zeros(len(one.units), dtype=np.int64))
        unable = [
            d for d, able in zip(one.problem.devices, one.problem.allowed, strict=True) if not able.any()
        ]
        if unable:
            found[0] = replace(found[0], reason=f"{', '.join(unable)} cannot run it")
        rows += [replace(row, precision=name) for row in _rows(one.problem, goal, found, own)]
    whole = arranger.whole_layers(plan, with_energy)
    found = mixed_baselines(whole.problem, goal, layer_precisions(whole))
    return rows + _rows(whole.problem, goal, found, own)


def _comparable_uniform(arranger: Arranger, max_penalty: float | None) -> str | None:
    """Return the study's uniform precision of the largest penalty within the bound, of the least above it."""

    def rank(name: str) -> tuple[bool, float]:
        index = arranger.precision_index[name]
        penalty = arranger.additive_penalty((index,) * len(arranger.prepared.units))
        within = max_penalty is None or penalty <= max_penalty * (1 + REL_TOL)
        return (not within, -penalty if within else penalty)

    return min(arranger.uniform_names, key=rank, default=None)


def planners_beside(arranger: Arranger, point: Point) -> dict[str, Any]:
    """Return the published planners beside a study's plan: seconds of the batch, within its predicted loss.

    Returns:
        ``plan``, its ``value_s`` and ``max_penalty``, ``bound_s`` that no plan of that loss is below (None if
        unknown), and ``rows``.
    """
    penalty, own = point.predicted.kl_nats, point.predicted.total_s
    rows = baseline_rows(arranger, Goal(max_penalty=penalty), Plan.from_json(point.plan), own)
    return {
        "plan": point.name,
        "value_s": own,
        "max_penalty": penalty,
        "bound_s": arranger.bound_s(penalty),
        "rows": [asdict(row) for row in rows],
    }


def layer_precisions(found: TableProblem) -> LayerPrecisions:
    """Return what the choices of a problem with one precision per layer are."""
    kinds = np.zeros(found.problem.penalty.shape, dtype=np.int64)
    for layer, combinations in enumerate(found.combinations):
        kinds[layer, : len(combinations)] = [combination[0] for combination in combinations]
    return LayerPrecisions(kinds, tuple(precision.weights.bits for precision in found.precisions))


def _rows(
    problem: PipelineProblem, goal: Goal, found: list[Baseline], own: float | None
) -> list[BaselineRow]:
    rows = []
    for baseline in found:
        plan = baseline.arrangement
        if plan is None:
            rows.append(BaselineRow(baseline.name, None, None, baseline.reason, ()))
            continue
        value = objective_s(problem, goal, plan)
        rows.append(
            BaselineRow(
                baseline.name,
                value,
                penalty_of(problem, plan),
                "",
                tuple(violations(problem, goal, plan)),
                value / own - 1 if own else None,
                tuple((problem.devices[device], first, end) for device, first, end in plan.stages),
            )
        )
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
