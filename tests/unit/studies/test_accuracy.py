"""The perplexity constraint with a stand-in for emulation. Oracle: the stand-in's own law of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from dse.errors import NoFeasiblePlan
from dse.partition.problem import Goal
from studies.accuracy import Check, LossModel, PerplexitySearch
from studies.progress import Silent

REFERENCE = 10.0


@dataclass
class FakeArranger:
    """Plans that use their whole bound; a looser bound is faster."""

    solved: list[float] = field(default_factory=list)
    precision_index: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 1, "c": 2})

    def additive_penalty(self, choices: Any) -> float:
        return float(choices) if isinstance(choices, float) else (0.01, 0.3, 6.0)[choices[0]]

    def choices_of(self, assignment: float) -> float:
        return assignment

    def fastest(self, bound: float, theta: float, limit_s: float, goal: Goal) -> Any:
        self.solved.append(bound)
        used = SimpleNamespace(assignment=0.999 * bound)
        return SimpleNamespace(plan=used, solution=SimpleNamespace(value=1 / bound))

    def why_infeasible(self, bound: float, goal: Goal) -> str:
        return "nothing fits"


def search(law: Any, allowed: float = 0.02) -> tuple[PerplexitySearch, FakeArranger]:
    arranger = FakeArranger()
    setting: Any = SimpleNamespace(
        arranger=arranger, prepared=SimpleNamespace(units=(1,), precisions=("a", "b", "c"))
    )
    found = PerplexitySearch(
        setting, Goal(), 1.0, allowed, REFERENCE, lambda a: REFERENCE * math.exp(law(a)), Silent()
    )
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
    candidate, _ = found.run()
    first = next(check for check in found.checks if check.name == "plan 1")
    assert not first.passes
    assert len(arranger.solved) >= 2
    passed = [check for check in found.checks if check.passes and check.name.startswith("plan")]
    assert passed
    assert math.expm1(0.15 * candidate.plan.assignment) <= 0.02


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
