"""One exact plan: the fastest arrangement within a quality bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dse.errors import ConfigError, NoFeasiblePlan
from dse.partition.layout.pipeline import LayoutOptions
from dse.partition.problem import Goal
from dse.partition.what_if import Change, lost_devices
from dse.sensitivity.noise import METRIC as NOISE
from dse.sensitivity.noise import noise_table
from dse.sensitivity.table import SensitivityTable
from studies.arrange import Arranger, Candidate
from studies.layouts import PlannedLayout, plan_layout
from studies.prepare import Prepared, prepare
from studies.progress import StudyProgress
from studies.schema import Study


@dataclass(frozen=True)
class Planned:
    """A plan with what it was found from."""

    candidate: Candidate
    prepared: Prepared
    sensitivity: SensitivityTable
    goal: Goal

    def what_if_lost(self) -> list[Change]:
        """Plan again without each of the plan's devices, from the plan."""
        candidate = self.candidate
        if candidate.problem is None or candidate.solution.arrangement is None:
            return []
        return list(lost_devices(candidate.problem.problem, self.goal, candidate.solution.arrangement))


def fastest_plan(
    study: Study,
    progress: StudyProgress,
    *,
    max_penalty: float | None = None,
    theta_s: float = 0.0,
    time_limit_s: float = 60.0,
    goal: Goal | None = None,
) -> Planned:
    """Return the best plan by a goal (default: the fastest) whose penalty is within the bound.

    Args:
        study: ``metric`` may be "auto" (variance where the model has weights, else noise) or "noise";
            ``uniform`` names the precision whose uniform plan sets the bound.
        progress: told the steps.
        max_penalty: the bound; None takes that of the uniform plan.
        theta_s: seconds that one unit of penalty is worth, instead of a bound where it is above 0.
        goal: objective and bounds; its penalty bound and theta are ignored.
        time_limit_s: for the solver; when it is met the incumbent is returned with its true gap.

    Raises:
        ConfigError: a name or value is not allowed.
        NoFeasiblePlan: nothing fits, or nothing is as good.
    """
    arranger, max_penalty = _arranger(study, progress, max_penalty, theta_s)
    progress.step("solving bits, partition and micro-batches")
    candidate = arranger.fastest(max_penalty, theta_s, time_limit_s, goal)
    if candidate is None:
        raise NoFeasiblePlan(arranger.why_infeasible(max_penalty, goal))
    solved_for = replace(goal or Goal(), theta_s=theta_s, max_penalty=max_penalty)
    return Planned(candidate, arranger.prepared, arranger.sensitivity, solved_for)


def best_layout(
    study: Study,
    progress: StudyProgress,
    options: LayoutOptions,
    *,
    max_penalty: float | None = None,
    theta_s: float = 0.0,
    time_limit_s: float = 60.0,
    goal: Goal | None = None,
) -> PlannedLayout:
    """Return the best layout: ``fastest_plan`` with the decisions of ``options`` beside the rest.

    Every replica keeps the penalty within the bound.

    Raises:
        ConfigError, NoFeasiblePlan: as ``fastest_plan``.
    """
    arranger, max_penalty = _arranger(study, progress, max_penalty, theta_s)
    progress.step("solving groups, replicas, bits, partition and micro-batches")
    solved_for = replace(goal or Goal(), theta_s=theta_s, max_penalty=max_penalty)
    return plan_layout(
        arranger.study, arranger.prepared, arranger.sensitivity, solved_for, options, time_limit_s
    )


def _arranger(
    study: Study, progress: StudyProgress, max_penalty: float | None, theta_s: float
) -> tuple[Arranger, float | None]:
    """Return the inputs of a plan, and the bound on its penalty."""
    study, with_weights = _resolved_metric(study)
    prepared = prepare(study, progress.step, weights=with_weights)
    sensitivity = _sensitivity(study, prepared, progress) if with_weights else _noise(prepared)
    arranger = Arranger(study, prepared, sensitivity)
    if max_penalty is None and theta_s == 0:
        if not arranger.uniform_names:
            raise ConfigError(
                f"no device of {study.cluster} runs {study.uniform[0]}, so nothing can be held against it: "
                "give --max-penalty, or another --as-good-as",
                path="--as-good-as",
            )
        index = arranger.precision_index[arranger.uniform_names[0]]
        max_penalty = arranger.additive_penalty((index,) * len(prepared.units))
    return arranger, max_penalty


def _resolved_metric(study: Study) -> tuple[Study, bool]:
    """Return the study with a definite metric, and whether it needs weights."""
    from studies.catalogue import resolve_model

    metric = study.metric
    if metric == "auto":
        source = resolve_model(study.model)
        metric = "variance" if source.has_weights or source.checkpoint is not None else "noise"
    if metric == "noise":
        return replace(study, metric=NOISE), False
    import dse.sensitivity.measure  # noqa: F401  (registers the metrics)
    from dse.sensitivity.metric import METRICS

    METRICS.get(metric)
    return replace(study, metric=metric), True


def _noise(prepared: Prepared) -> SensitivityTable:
    return noise_table(prepared.graph, prepared.units, prepared.precisions)


def _sensitivity(study: Study, prepared: Prepared, progress: StudyProgress) -> SensitivityTable:
    from dse.sensitivity.measure import measure_sensitivity
    from studies.measuring import Bench, sensitivity_cache

    bench = Bench.of(prepared.source, prepared.graph, prepared.units, study.quality, study.seed)
    progress.step(f"sensitivity: {study.metric} of {len(prepared.units)} units")
    return measure_sensitivity(
        study.metric,
        bench.sensitivity_evaluator(),
        prepared.units,
        prepared.precisions,
        cache=sensitivity_cache(),
        progress=progress.advance,
    )
