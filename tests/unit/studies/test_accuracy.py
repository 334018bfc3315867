"""The perplexity constraint with a stand-in for emulation. Oracle: the stand-in's own law of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dse.errors import NoFeasiblePlan
from dse.partition.problem import Goal, Solution
from studies.accuracy import Check, LossModel, PerplexitySearch
from studies.arrange import Candidate
from studies.progress import Silent

REFERENCE = 10.0


@dataclass
class FakeArranger:
    """Plans that use their whole bound; a looser bound is faster."""

    solved: list[float] = field(default_factory=list)
    precision_index: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 1, "c": 2})
    searched: Any = field(default_factory=lambda: np.ones((1, 3), dtype=bool))

    def additive_penalty(self, choices: Any) -> float:
        return float(choices) if isinstance(choices, float) else (0.01, 0.3, 6.0)[choices[0]]

    def choices_of(self, assignment: float) -> float:
        return assignment

    def fastest(self, bound: float, theta: float, limit_s: float, goal: Goal) -> Any:
        self.solved.append(bound)
        used = SimpleNamespace(assignment=0.999 * bound)
        return SimpleNamespace(name="plan", plan=used, solution=SimpleNamespace(value=1 / bound))

    def place(self, choices: Any, name: str, origin: str, goal: Goal) -> Candidate:
        penalty = (0.01, 0.3, 6.0)[choices[0]]
        solution = Solution("optimal", None, 1 / penalty, 1 / penalty, 0.0, 0.0, penalty, "x")
        plan: Any = SimpleNamespace(assignment=penalty)
        return Candidate(name, origin, plan, None, solution)  # type: ignore[arg-type]

    def why_infeasible(self, bound: float, goal: Goal) -> str:
        return "nothing fits"


def quality(loss: float) -> Any:
    return SimpleNamespace(perplexity=REFERENCE * math.exp(loss), kl_nats=loss, n_tokens=2048)


def search(law: Any, allowed: float = 0.02) -> tuple[PerplexitySearch, FakeArranger]:
    arranger = FakeArranger()
    setting: Any = SimpleNamespace(
        arranger=arranger, prepared=SimpleNamespace(units=(1,), precisions=("a", "b", "c"))
    )
    found = PerplexitySearch(setting, Goal(), 1.0, allowed, REFERENCE, lambda a: quality(law(a)), Silent())
    found._uniform = lambda name: (0.01, 0.3, 6.0)["abc".index(name)]  # type: ignore[assignment, method-assign, return-value]
    return found, arranger


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_a_power_law_is_met_at_once(power: float) -> None:
    found, arranger = search(lambda x: 0.05 * x**power)
    _, bound = found.run()
    assert found.checks[-1].passes
    assert found.checks[-1].increase_frac > 0.7 * 0.02
    assert len(arranger.solved) <= 2
    assert bound == arranger.solved[-1] or bound in arranger.solved


def test_a_plan_that_loses_more_than_predicted_is_repaired() -> None:
    """Mixed plans lose three times what uniform ones of their penalty lose."""
    found, arranger = search(lambda x: 0.05 * x if x in (0.01, 0.3, 6.0) else 0.15 * x)
    arranger.searched[:] = False  # no uniform plan competes
    candidate, _ = found.run()
    first = next(check for check in found.checks if check.name == "plan 1")
    assert not first.passes
    assert len(arranger.solved) >= 2
    passed = [check for check in found.checks if check.passes and check.name.startswith("plan")]
    assert passed
    assert math.expm1(0.15 * candidate.plan.assignment) <= 0.02


@pytest.mark.parametrize("allowed_choices", [(True, True, True), (True, False, True)])
def test_a_uniform_plan_that_passes_competes(allowed_choices: tuple[bool, ...]) -> None:
    """Mixed plans lose 40 times what uniform ones of their penalty lose, so that "b" is the fastest to pass.

    It is no answer where it is not among the choices, as a precision of the baselines alone.
    """
    found, arranger = search(lambda x: 0.05 * x if x in (0.01, 0.3, 6.0) else 2.0 * x)
    arranger.searched = np.array([allowed_choices])
    candidate, bound = found.run()
    assert (candidate.name == "uniform-b") == allowed_choices[1]
    assert all(check.passes for check in found.checks if check.name == "uniform b")
    if allowed_choices[1]:
        assert bound == 0.3
        assert candidate.solution.binding.startswith("b everywhere")
    else:
        assert candidate.name in ("plan", "uniform-a")


def test_noise_is_that_of_paired_losses() -> None:
    """Oracle: the standard error of log p - log q over tokens drawn from p, of two close distributions."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=1000)
    p, q = (np.exp(x) / np.exp(x).sum() for x in (logits, logits + 0.1 * rng.normal(size=1000)))
    ratio = np.log(p / q)
    kl = float(p @ ratio)
    exact = math.sqrt(float(p @ ratio**2) - kl**2) / math.sqrt(2048)
    found, _ = search(lambda _: kl)
    found.run()
    assert found.checks[0].noise_frac == pytest.approx(exact, rel=0.05)


def test_nothing_passes() -> None:
    found, _ = search(lambda _: 1.0)
    with pytest.raises(NoFeasiblePlan, match=r"none of \d+ emulated"):
        found.run()


def test_fit_recovers_a_power_law() -> None:
    check = Check("x", 0.0, None, 0.0, 0.0, passes=True)
    rows = [replace(check, penalty=x, increase_frac=math.expm1(0.3 * x**1.4)) for x in (0.01, 0.2, 1.5)]
    fitted = LossModel.fitted(rows)
    assert (fitted.scale, fitted.power) == pytest.approx((0.3, 1.4))
    assert fitted.increase_frac(fitted.penalty(0.02)) == pytest.approx(0.02)
