"""One exact plan: the fastest arrangement within a quality bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from dse.errors import ConfigError, NoFeasiblePlan
from dse.partition.layout.pipeline import LayoutOptions
from dse.partition.problem import Goal
from dse.sensitivity.noise import METRIC as NOISE
from dse.sensitivity.noise import noise_table
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import Cluster
from studies.arrange import Arranger, Candidate
from studies.layouts import PlannedLayout, plan_layout
from studies.prepare import Prepared, prepare
from studies.progress import StudyProgress
from studies.schema import Study


@dataclass(frozen=True)
class Setting:
    """A study resolved for planning."""

    study: Study
    prepared: Prepared
    sensitivity: SensitivityTable
    with_weights: bool

    @cached_property
    def arranger(self) -> Arranger:
        """What solves it."""
        return Arranger(self.study, self.prepared, self.sensitivity)


@dataclass(frozen=True)
class Planned:
    """A plan with what it was found from."""

    candidate: Candidate
    setting: Setting
    goal: Goal

    @property
    def prepared(self) -> Prepared:
        """The resolved inputs."""
        return self.setting.prepared

    @property
    def sensitivity(self) -> SensitivityTable:
        """The penalties."""
        return self.setting.sensitivity


def fastest_plan(
    study: Study,
    progress: StudyProgress,
    *,
    max_penalty: float | None = None,
    theta_s: float = 0.0,
    time_limit_s: float = 60.0,
    goal: Goal | None = None,
    memory_limits: Mapping[str, float] | None = None,
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
        memory_limits: as for ``setting_of``.

    Raises:
        ConfigError: a name or value is not allowed.
        NoFeasiblePlan: nothing fits, or nothing is as good.
    """
    setting = setting_of(study, progress, memory_limits)
    arranger = setting.arranger
    if max_penalty is None and theta_s == 0:
        max_penalty = uniform_penalty(setting)
    progress.step("solving bits, partition and micro-batches")
    candidate = arranger.fastest(max_penalty, theta_s, time_limit_s, goal)
    if candidate is None:
        raise NoFeasiblePlan(arranger.why_infeasible(max_penalty, goal))
    return planned(setting, candidate, replace(goal or Goal(), theta_s=theta_s), max_penalty)


def best_layout(
    study: Study,
    progress: StudyProgress,
    options: LayoutOptions,
    *,
    max_penalty: float | None = None,
    theta_s: float = 0.0,
    time_limit_s: float = 60.0,
    goal: Goal | None = None,
    memory_limits: Mapping[str, float] | None = None,
) -> PlannedLayout:
    """Return the best layout: ``fastest_plan`` with the decisions of ``options`` beside the rest.

    Every replica keeps the penalty within the bound.

    Raises:
        ConfigError, NoFeasiblePlan: as ``fastest_plan``.
    """
    setting = setting_of(study, progress, memory_limits)
    if max_penalty is None and theta_s == 0:
        max_penalty = uniform_penalty(setting)
    progress.step("solving groups, replicas, bits, partition and micro-batches")
    solved_for = replace(goal or Goal(), theta_s=theta_s, max_penalty=max_penalty)
    return plan_layout(
        setting.study, setting.prepared, setting.sensitivity, solved_for, options, time_limit_s
    )


def setting_of(
    study: Study,
    progress: StudyProgress,
    memory_limits: Mapping[str, float] | None = None,
    *,
    of_loss: bool = False,
) -> Setting:
    """Resolve a study for planning: the names, the prices, the sensitivities.

    Args:
        study: the inputs; progress: told the steps.
        memory_limits: bytes of a device that the model may use, by type or machine, "" for all.
        of_loss: whether the metric "auto" has to follow the model's loss, see ``_metric_of_loss``.

    Raises:
        ConfigError: a name or value is not allowed.
    """
    automatic = study.metric == "auto"
    study, with_weights = _resolved_metric(study)
    prepared = prepare(study, progress.step, weights=with_weights)
    if automatic and of_loss and with_weights:
        study = replace(study, metric=_metric_of_loss(study, prepared))
    if memory_limits:
        prepared = replace(prepared, cluster=limited(prepared.cluster, memory_limits))
    sensitivity = _sensitivity(study, prepared, progress) if with_weights else _noise(prepared)
    return Setting(study, prepared, sensitivity, with_weights)


def limited(cluster: Cluster, limits: Mapping[str, float]) -> Cluster:
    """Return the cluster with at most so much memory for the model, by device type, machine, or "" for all.

    Raises:
        ConfigError: a name is neither a type nor a machine.
    """
    names = {"", *(node.name for node in cluster.nodes), *cluster.specs}
    for name in limits:
        if name not in names:
            raise ConfigError(
                "unknown device type or machine",
                path="--max-memory",
                value=name,
                allowed=sorted(names - {""}),
            )
    nodes = []
    for node in cluster.nodes:
        given = [limits[name] for name in ("", node.device, node.name) if name in limits]
        old = [] if node.memory_limit_bytes is None else [node.memory_limit_bytes]
        nodes.append(replace(node, memory_limit_bytes=min(given + old)) if given else node)
    return replace(cluster, nodes=tuple(nodes))


def uniform_penalty(setting: Setting) -> float:
    """Return the penalty of the uniform plan that the study names.

    Raises:
        ConfigError: no device runs its precision.
    """
    arranger = setting.arranger
    if not arranger.uniform_names:
        raise ConfigError(
            f"no device of {setting.study.cluster} runs {setting.study.uniform[0]}, so nothing can be held "
            "against it: give --max-penalty, or another --as-good-as",
            path="--as-good-as",
        )
    index = arranger.precision_index[arranger.uniform_names[0]]
    return arranger.additive_penalty((index,) * len(setting.prepared.units))


def planned(setting: Setting, candidate: Candidate, goal: Goal, max_penalty: float | None) -> Planned:
    """Return a plan with what it was found from."""
    return Planned(candidate, setting, replace(goal, max_penalty=max_penalty))


def _resolved_metric(study: Study) -> tuple[Study, bool]:
    """Return the study with a definite metric, and whether it needs weights."""
    from studies.catalogue import resolve_model

    metric = study.metric
    if metric == "auto":
        source = resolve_model(study.model)
        metric = "variance" if source.has_weights or source.checkpoint is not None else "noise"
    if metric == "noise":
        return replace(study, metric=NOISE), False
    from dse.sensitivity.measure import registered_metrics

    registered_metrics().get(metric)
    return replace(study, metric=metric), True


def _metric_of_loss(study: Study, prepared: Prepared) -> str:
    """Return "kl" where it has been measured before or activations or caches are rounded, else "fisher".

    The variance orders units of unlike roles hardly better than chance; the Fisher information of the loss
    orders them nearly as the KL does for a fraction of its passes, but sees weights only.
    """
    import dse.sensitivity.gradients  # noqa: F401  (registers "fisher")
    from dse.sensitivity.measure import is_measured
    from studies.measuring import Bench, sensitivity_cache

    if any(not (p.activations.is_float and p.kv.is_float) for p in prepared.precisions):
        return "kl"
    bench = Bench.of(prepared.source, prepared.graph, prepared.units, study.quality, study.seed)
    evaluator = bench.sensitivity_evaluator()
    known = is_measured("kl", evaluator, prepared.units, prepared.precisions, sensitivity_cache())
    return "kl" if known else "fisher"


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
