"""The walk of the main job: names to objects, sensitivities, search, measured finalists, result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dse.errors import DoesNotFitMemory
from dse.evaluate.quality import Quality, QualityEvaluator
from dse.search.tpe import SearchOutcome
from dse.sensitivity.measure import measure_sensitivity
from dse.sensitivity.noise import noise_table
from dse.sensitivity.table import SensitivityTable
from studies.arrange import Arranger, Candidate
from studies.choose import compare_with_uniform, non_dominated_points, recommend, spread
from studies.comparison import planners_beside
from studies.describe import (
    describe_devices,
    describe_model,
    provenance,
    roofline,
    sensitivity_section,
    timeline,
)
from studies.folder import RunFolder
from studies.measuring import Bench, sensitivity_cache
from studies.prepare import Prepared, prepare
from studies.progress import StudyProgress
from studies.result import Measured, Point, StudyResult
from studies.schema import Study
from studies.trials import OBJECTIVES, Trials, volumes

INDICATORS = ("variance", "variance_stochastic")
FIT_TIME_S = 10.0
KL_FLOOR = 1e-6  # nats; below it the differences are rounding


@dataclass
class _Clock:
    """Seconds per step: the only numbers that differ between equal runs."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        began = time.perf_counter()
        yield
        self.seconds[f"{name}_s"] = round(time.perf_counter() - began, 3)


def run_study(
    study: Study, folder: RunFolder, progress: StudyProgress, device: str | None = None
) -> StudyResult:
    """Run a study and return its result; everything measured on the way is cached for the next run.

    Args:
        study: what to do; folder: for what goes on after an interruption; progress: told the steps.
        device: where models run, see ``chosen_device``; no part of the study.

    Raises:
        ConfigError: a name or value in the study is not allowed.
        NoFeasiblePlan: no assignment fits the cluster; the text says what is missing.
    """
    clock = _Clock()
    began = time.time()
    with clock.step("prepare"):
        prepared = prepare(study, progress.step)
        check_fits(study, prepared)
        bench = Bench.of(prepared.source, prepared.graph, prepared.units, study.quality, study.seed, device)
    with clock.step("sensitivity"):
        evaluator = bench.sensitivity_evaluator()
        tables = _sensitivities(study, prepared, evaluator, progress)
        del evaluator
    arranger = Arranger(study, prepared, tables[0])
    with clock.step("exact_front"):
        progress.step("solving bits and partition exactly")
        exact = _exact(arranger, progress)
    with clock.step("uniform_plans"):
        progress.step("placing uniform plans")
        uniform = _uniform(arranger)
    with clock.step("trials"):
        progress.step("searching what is not separable")
        trials = Trials(arranger, bench.trial_evaluator())
        fitting = [c for c in uniform if c.name in _searched_names(study) and not c.predicted.missing_bytes]
        seeds = _distinct([*(c for c in exact if not c.predicted.missing_bytes), *fitting])
        outcome = trials.run(seeds, study.search.trials, folder.journal, progress)
    with clock.step("finalists"):
        progress.step("measuring the finalists")
        judge = bench.finalist_evaluator()
        finalists = _finalists(study, arranger, trials, exact, outcome)
        reference = judge.reference()
        points = _measure(judge, finalists, progress)
        progress.step("measuring uniform plans")
        baselines = _measure(judge, uniform, progress)
    return _result(arranger, tables, points, baselines, reference, outcome, judge, clock, began)


def check_fits(study: Study, prepared: Prepared) -> None:
    """Refuse a model that no plan fits into the cluster, before anything is measured.

    Raises:
        DoesNotFitMemory: the text says what is missing.
    """
    noise = noise_table(prepared.graph, prepared.units, prepared.precisions)
    arranger = Arranger(study, prepared, noise)
    if arranger.fastest(None, 0.0, FIT_TIME_S) is None:
        raise DoesNotFitMemory(arranger.why_infeasible())


def _sensitivities(
    study: Study, prepared: Prepared, evaluator: QualityEvaluator, progress: StudyProgress
) -> list[SensitivityTable]:
    """Measure the study's metric first, then the indicators that it is compared with."""
    tables = []
    for metric in dict.fromkeys((study.metric, *INDICATORS)):
        progress.step(f"sensitivity: {metric} of {len(prepared.units)} units")
        tables.append(
            measure_sensitivity(
                metric,
                evaluator,
                prepared.units,
                prepared.precisions,
                cache=sensitivity_cache(),
                progress=progress.advance,
            )
        )
    return tables


def _exact(arranger: Arranger, progress: StudyProgress) -> list[Candidate]:
    """Return the proven front, and the best assignment within the size of every uniform plan."""
    front = arranger.exact_front(progress.advance)
    table = arranger.prepared.table
    budgets = [
        (precision.weights.name, float(table.unit_weight_bytes[:, q].sum()))
        for q, precision in enumerate(arranger.prepared.precisions)
        if not precision.weights.is_float
    ]
    return front + arranger.within_sizes(dict(budgets).items())


def _uniform(arranger: Arranger) -> list[Candidate]:
    """Place the uniform plan of every precision that the study names; some may exceed the memory."""
    n_units = len(arranger.prepared.units)
    return [
        arranger.place_or_overflow(
            (arranger.precision_index[name],) * n_units, _uniform_name(name), "uniform"
        )
        for name in arranger.uniform_names
    ]


def _uniform_name(precision: str) -> str:
    """Return a name that is good for a folder; bfloat16 activations and KV cache go without saying."""
    return f"uniform-{precision.removesuffix('/bf16/bf16').replace('/', '+')}"


def _searched_names(study: Study) -> set[str]:
    """Names of the uniform plans whose precision is among the searched ones."""
    from dse.formats.grammar import parse_precision

    names = {parse_precision(text).name for text in study.precisions}
    return {_uniform_name(name) for name in names}


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without repeated assignments, the first of each."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.plan.assignment.hash, candidate)
    return list(found.values())


def _finalists(
    study: Study,
    arranger: Arranger,
    trials: Trials,
    exact: Sequence[Candidate],
    outcome: SearchOutcome,
) -> list[Candidate]:
    """Choose what is measured: the best within every uniform size, and a spread over the trials' front.

    Trials that lost more than the worst uniform plan are of no use to anybody and are left out, unless that
    leaves nothing.
    """
    known = {arranger.choices_of(c.plan.assignment): c for c in exact}
    front = [outcome.trials[number] for number in outcome.front]
    worst = _worst_uniform(trials, outcome)
    useful = [trial for trial in front if trial.values[0] <= worst] or front
    candidates, rows = [], []
    for trial in useful:
        choices = trials.precisions_of(trial.choices)
        candidate = known.get(choices) or arranger.place(choices, f"tpe-{trial.number}", "tpe")
        if candidate is not None:
            candidates.append(candidate)
            rows.append((np.log(max(trial.values[0], KL_FLOOR)), trial.values[1]))
    objectives = np.array(rows)
    rivals = _rivals(arranger, candidates, objectives[:, 0])
    chosen = spread(objectives, max(study.search.finalists, len(rivals)), rivals)
    oversized = [candidate for candidate in exact if candidate.predicted.missing_bytes]
    picked = [*(candidates[i] for i in chosen), *oversized]
    return sorted(_distinct(picked), key=lambda c: (c.predicted.linear_effective_bits, c.name))


def _worst_uniform(trials: Trials, outcome: SearchOutcome) -> float:
    """Return the largest KL of a trial that gives all units one of the baselines' precisions."""
    named = {trials.arranger.precision_index[name] for name in trials.arranger.uniform_names}
    kl = []
    for trial in outcome.trials:
        picks = set(trials.precisions_of(trial.choices))
        if len(picks) == 1 and picks <= named:
            kl.append(trial.values[0])
    return max(kl, default=float("inf"))


def _rivals(arranger: Arranger, candidates: Sequence[Candidate], quality: np.ndarray) -> list[int]:
    """Return, for each uniform precision, the candidate of best quality that spends no more bits."""
    bits = np.array([candidate.predicted.linear_effective_bits for candidate in candidates])
    is_mixed = np.array([len(set(c.plan.assignment.by_unit.values())) > 1 for c in candidates])
    found = []
    for limit in arranger.uniform_bits():
        able = np.flatnonzero((bits <= limit + 1e-9) & is_mixed)
        if len(able):
            found.append(int(able[quality[able].argmin()]))
    return list(dict.fromkeys(found))


def _measure(
    judge: QualityEvaluator, candidates: Sequence[Candidate], progress: StudyProgress
) -> list[Point]:
    points = []
    for index, candidate in enumerate(candidates):
        quality = judge.evaluate(candidate.plan.assignment)
        measured = Measured(
            perplexity=quality.perplexity,
            kl_nats=quality.kl_nats,
            top1_agreement_frac=quality.top1_agreement_frac,
            n_tokens=quality.n_tokens,
            sequence_length=quality.sequence_length,
        )
        points.append(
            Point(
                candidate.name,
                candidate.origin,
                candidate.plan.to_json(),
                candidate.predicted,
                measured,
                candidate.solver,
            )
        )
        progress.advance(index + 1, len(candidates))
    return points


def _result(
    arranger: Arranger,
    tables: list[SensitivityTable],
    points: list[Point],
    baselines: list[Point],
    reference: Quality,
    outcome: SearchOutcome,
    judge: QualityEvaluator,
    clock: _Clock,
    began: float,
) -> StudyResult:
    study, prepared = arranger.study, arranger.prepared
    front = non_dominated_points([point for point in points if not point.predicted.missing_bytes])
    box = float(np.prod(outcome.reference))  # progress on the scale of ``volumes``
    best, reason = recommend(front, reference.perplexity, study.quality.tolerance_frac)
    with clock.step("published_planners"):
        planners = planners_beside(arranger, best)
    return StudyResult(
        study={**study.to_json(), "hash": study.hash},
        model=describe_model(prepared, study),
        devices=describe_devices(prepared),
        units=[{"name": unit.name, "layer": unit.layer} for unit in prepared.units],
        reference={
            "perplexity": reference.perplexity,
            "n_tokens": reference.n_tokens,
            "sequence_length": reference.sequence_length,
        },
        front=front,
        chosen=best.name,
        chosen_reason=reason,
        baselines=baselines,
        comparisons=compare_with_uniform(points, baselines),
        sensitivity=sensitivity_section(tables),
        hypervolume={
            "objectives": list(OBJECTIVES),
            "reference": dict(zip(OBJECTIVES, outcome.reference, strict=True)),
            **volumes(outcome),
        },
        progress=[
            {"trial": number, "hypervolume": value / box} for number, value in enumerate(outcome.hypervolume)
        ],
        roofline=roofline(prepared, study),
        timeline=timeline(best, prepared, study),
        dropped=list(prepared.dropped),
        provenance=provenance(study, prepared, judge),
        times={
            "started_unix_s": round(began),
            **clock.seconds,
            "total_s": round(sum(clock.seconds.values()), 3),
        },
        planners=planners,
    )
