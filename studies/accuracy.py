"""Perplexity as a constraint: sensitivities calibrated on emulated plans, the plan checked and repaired.

The summed sensitivities have no unit that a user knows. A few emulated evaluations tell what they do to the
logarithm of the perplexity; the bound that follows is only a guess, so the plan found within it is emulated
itself, and where it loses too much (or leaves much unused) the bound is moved and the plan made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dse.errors import ConfigError, NoFeasiblePlan
from dse.partition.problem import Goal
from dse.plan import Assignment
from studies.arrange import Candidate
from studies.planning import Planned, Setting, planned, setting_of
from studies.progress import StudyProgress
from studies.schema import Study

if TYPE_CHECKING:
    from dse.evaluate.quality import Quality

MAX_PLANS = 6  # plans that are emulated at most
ENOUGH_FRAC = 0.7  # a plan that uses so much of the allowance is good enough
MAX_STEP = 4.0  # factor between the bounds of two plans
UNIFORM = "uniform "
SAFETY_FRAC = 0.95  # of the bound that the newest evaluation suggests


@dataclass(frozen=True)
class Check:
    """One emulated evaluation.

    Attributes:
        name: what was emulated; penalty: its summed sensitivities.
        predicted_increase_frac: of the perplexity, by the calibration at that time; None before there is one.
        perplexity, increase_frac: measured, against full precision; passes: whether within the bound.
        noise_frac: about one standard error of the increase, from the finite number of tokens.
    """

    name: str
    penalty: float
    predicted_increase_frac: float | None
    perplexity: float
    increase_frac: float
    passes: bool
    noise_frac: float = 0.0


@dataclass(frozen=True)
class Verified:
    """A plan that was emulated and passed, with every evaluation on the way."""

    planned: Planned
    max_increase_frac: float
    reference_perplexity: float
    n_tokens: int
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class LossModel:
    """log(perplexity / reference) = scale * penalty ** power, fitted to evaluations."""

    scale: float
    power: float

    @classmethod
    def fitted(cls, checks: list[Check]) -> LossModel:
        """Fit to the evaluations that lost something: a power law, or a proportion where there is only one.

        Raises:
            ConfigError: none lost anything.
        """
        points = [(c.penalty, math.log1p(c.increase_frac)) for c in checks]
        points = [(x, y) for x, y in points if x > 0 and y > 0]
        if not points:
            raise ConfigError("no precision loses any perplexity, so that nothing can be calibrated")
        x, y = np.log(np.array(points)).T
        power = 1.0
        if len(points) > 1 and np.ptp(x) > 0:
            power = float(np.clip(np.polyfit(x, y, 1)[0], 0.25, 4.0))
        return cls(float(np.exp((y - power * x).mean())), power)

    def increase_frac(self, penalty: float) -> float:
        """Return the predicted relative increase of the perplexity."""
        return math.expm1(self.scale * max(penalty, 0.0) ** self.power)

    def penalty(self, increase_frac: float) -> float:
        """Return the penalty that the increase stands for."""
        return float((math.log1p(increase_frac) / self.scale) ** (1 / self.power))


def plan_within_perplexity(
    study: Study,
    progress: StudyProgress,
    max_increase_frac: float,
    *,
    goal: Goal,
    time_limit_s: float = 60.0,
    memory_limits: Mapping[str, float] | None = None,
) -> Verified:
    """Return the best plan by a goal whose emulated perplexity is at most so much above full precision's.

    Args:
        study: needs a model with weights; ``quality.tokens`` are evaluated.
        progress: told the steps.
        max_increase_frac: 0.02 for 2 %.
        goal: objective and bounds; its penalty bound is ignored.
        time_limit_s: of every solve.
        memory_limits: as for ``setting_of``.

    Raises:
        ConfigError: the model has no weights.
        NoFeasiblePlan: nothing fits, or no plan that was tried passes.
    """
    from studies.measuring import Bench

    setting = setting_of(study, progress, memory_limits, of_loss=True)
    if not setting.with_weights:
        raise ConfigError(
            f"{study.model} has no weights here (or the metric needs none), so no perplexity can be emulated",
            path="--max-perplexity-increase",
        )
    prepared = setting.prepared
    bench = Bench.of(prepared.source, prepared.graph, prepared.units, study.quality, study.seed)
    evaluator = bench.finalist_evaluator()
    progress.step("emulating full precision")
    reference = evaluator.reference(progress.advance).perplexity

    def emulate(assignment: Assignment) -> Quality:
        return evaluator.evaluate(assignment, progress.advance)

    search = PerplexitySearch(setting, goal, time_limit_s, max_increase_frac, reference, emulate, progress)
    candidate, bound = search.run()
    return Verified(
        planned(setting, candidate, goal, bound),
        max_increase_frac,
        reference,
        evaluator.sample.n_tokens,
        tuple(search.checks),
    )


class PerplexitySearch:
    """The evaluations so far, and what to try next."""

    def __init__(
        self,
        setting: Setting,
        goal: Goal,
        time_limit_s: float,
        max_increase_frac: float,
        reference: float,
        emulate: Callable[[Assignment], Quality],
        progress: StudyProgress,
    ) -> None:
        self.setting = setting
        self.goal = replace(goal, theta_s=0.0)
        self.time_limit_s = time_limit_s
        self.allowed = max_increase_frac
        self.reference = reference
        self.emulate = emulate
        self.progress = progress
        self.checks: list[Check] = []

    def run(self) -> tuple[Candidate, float]:
        """Return the best plan that passes, and the penalty bound that it was solved for."""
        arranger = self.setting.arranger
        self._calibrate()
        low, high = 0.0, math.inf  # penalties that passed and failed
        bound = LossModel.fitted(self.checks).penalty(self.allowed)
        best: tuple[float, Candidate, float] | None = None
        for attempt in range(1, MAX_PLANS + 1):
            self.progress.step(f"plan {attempt}: solving for a penalty of at most {bound:.4g}")
            candidate = arranger.fastest(bound, 0.0, self.time_limit_s, self.goal)
            if candidate is None:
                if best is None and not any(c.passes for c in self.checks):
                    raise NoFeasiblePlan(arranger.why_infeasible(bound, self.goal))
                break
            assignment = candidate.plan.assignment
            penalty = arranger.additive_penalty(arranger.choices_of(assignment))
            check = self._check(f"plan {attempt}", assignment, penalty)
            if check.passes:
                low, value = max(low, penalty), candidate.solution.value or 0.0
                if best is None or value < best[0]:
                    best = (value, candidate, bound)
                if check.increase_frac >= ENOUGH_FRAC * self.allowed or penalty < SAFETY_FRAC * bound:
                    break  # little is left to win, or the bound does not bind
            else:
                high = min(high, penalty)
            bound = self._next_bound(check, low, high)
        best = self._best_uniform(best)
        if best is None:
            raise NoFeasiblePlan(self._nothing_passes())
        return best[1], best[2]

    def _best_uniform(
        self, best: tuple[float, Candidate, float] | None
    ) -> tuple[float, Candidate, float] | None:
        """Return a uniform plan that passed where it is no worse than the best one, which stays otherwise."""
        arranger = self.setting.arranger
        for check in self.checks:
            name = check.name.removeprefix(UNIFORM)
            if not check.passes or name == check.name:
                continue
            index = arranger.precision_index[name]
            if not arranger.searched[:, index].all():
                continue
            choices = (index,) * len(self.setting.prepared.units)
            candidate = arranger.place(choices, f"uniform-{name}", "uniform", self.goal)
            if candidate is None or candidate.solution.value is None:
                continue
            if best is None or candidate.solution.value <= best[0]:
                text = (
                    f"{name} everywhere, which passes, is no worse than any mixed plan emulated; the proof "
                )
                text += f"is of its placement; {candidate.solution.binding}"
                solution = replace(candidate.solution, binding=text)
                best = (candidate.solution.value, replace(candidate, solution=solution), check.penalty)
        return best

    def _nothing_passes(self) -> str:
        nearest = min(self.checks, key=lambda check: check.increase_frac)
        return (
            f"none of {len(self.checks)} emulated assignments stays within {self.allowed:+.2%} of the "
            f"perplexity of full precision ({self.reference:.3f}); the nearest, {nearest.name}, is at "
            f"{nearest.increase_frac:+.2%}"
        )

    def _next_bound(self, check: Check, low: float, high: float) -> float:
        """Return the penalty at which the newest evaluation, by the fitted power, meets the allowance."""
        power = LossModel.fitted(self.checks).power
        measured = max(math.log1p(check.increase_frac), 0.1 * math.log1p(self.allowed))
        guess = check.penalty * (math.log1p(self.allowed) / measured) ** (1 / power) * SAFETY_FRAC
        # where sensitivities rank badly the fitted power is worthless, so no step is larger than fourfold
        guess = float(np.clip(guess, check.penalty / MAX_STEP, check.penalty * MAX_STEP))
        if low > 0 and math.isfinite(high):
            ratio = high / low
            return float(np.clip(guess, low * ratio**0.2, low * ratio**0.8))
        return min(guess, 0.8 * high)

    def _calibrate(self) -> None:
        """Emulate two or three uniform plans, towards the allowed increase."""
        names = [name for name in self.setting.arranger.precision_index if self._penalty_of(name) > 0]
        names.sort(key=self._penalty_of)
        low, high = 0, len(names) - 1
        while low <= high and len(self.checks) < 3:
            middle = (low + high) // 2
            check = self._check(
                UNIFORM + names[middle], self._uniform(names[middle]), self._penalty_of(names[middle])
            )
            low, high = (middle + 1, high) if check.passes else (low, middle - 1)

    def _penalty_of(self, name: str) -> float:
        index = self.setting.arranger.precision_index[name]
        return self.setting.arranger.additive_penalty((index,) * len(self.setting.prepared.units))

    def _uniform(self, name: str) -> Assignment:
        units = tuple(unit.name for unit in self.setting.prepared.units)
        index = self.setting.arranger.precision_index[name]
        return Assignment.uniform(units, self.setting.prepared.precisions[index])

    def _check(self, name: str, assignment: Assignment, penalty: float) -> Check:
        """Emulate an assignment.

        The losses of two models on the same tokens differ by log p/q, whose variance is about 2 KL(p || q)
        where the models are close (second order of the KL), so the mean over n tokens has sqrt(2 KL / n).
        """
        predicted = None
        if any(check.increase_frac > 0 for check in self.checks):
            predicted = LossModel.fitted(self.checks).increase_frac(penalty)
        self.progress.step(f"emulating {name}")
        quality = self.emulate(assignment)
        increase = quality.perplexity / self.reference - 1
        noise = (1 + increase) * math.sqrt(2 * max(quality.kl_nats, 0.0) / quality.n_tokens)
        check = Check(name, penalty, predicted, quality.perplexity, increase, increase <= self.allowed, noise)
        self.checks.append(check)
        return check
