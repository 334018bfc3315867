"""What the devices of a plan draw or cost together, in windows: energy and cost are this rate times the time.

The product of two unknowns has no tight linear bound, but within a narrow window of the rate it is nearly
the time alone. Only some sums of the devices' rates exist, so windows end at single ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from dse.partition.layout.classes import StageClasses
from dse.partition.problem import Array, Goal, Objective, PipelineProblem

EQUAL_FRAC = 1e-9  # sums that differ by less are one
MAX_STEPS = 2000


@dataclass(frozen=True)
class RateWindow:
    """Some of the sums that the devices' rates can have.

    Attributes:
        name: the quantity that is ``scale`` times the rate times the time, beside its constant part.
        of_classes: (C) rate of a stage of every class, W or USD/h; None where it is unknown.
        steps: (V, 2) lowest and highest of sums that are not told apart, in rising order.
    """

    name: Objective
    scale: float
    of_classes: tuple[float | None, ...]
    steps: Array

    @property
    def low(self) -> float:
        """The least rate."""
        return float(self.steps[0, 0])

    @property
    def high(self) -> float:
        """The largest rate."""
        return float(self.steps[-1, 1])

    def halves(self) -> tuple[RateWindow, ...]:
        """Return two windows of about the same ratio of their ends; none where there is one sum left."""
        if len(self.steps) == 1:
            return ()
        middle = int(np.searchsorted(self.steps[:, 0], np.sqrt(self.low * self.high)))
        at = min(max(middle, 1), len(self.steps) - 1)
        return replace(self, steps=self.steps[:at]), replace(self, steps=self.steps[at:])


def rate_windows(
    problem: PipelineProblem, stages: StageClasses, goal: Goal, gap_frac: float
) -> tuple[RateWindow, ...]:
    """Return the windows of all sums of watts and prices that the goal asks for, the objective's first.

    Where there are many sums, those within about a share ``gap_frac`` of each other are not told apart.
    """
    n_tokens = problem.batch * problem.output_tokens
    found = []
    for name in dict.fromkeys((goal.objective, *goal.bounds)):
        if name == "energy" and problem.energy is not None:
            watts = problem.energy.static_w
            rates: list[float | None] = [float(watts[entry.device]) for entry in stages.classes]
            found.append(_window(name, 1 / n_tokens, rates, stages, gap_frac))
        if name == "cost" and problem.price_usd_per_h is not None:
            rates = [problem.price_usd_per_h[entry.device] for entry in stages.classes]
            found.append(_window(name, 1e6 / 3600 / n_tokens, rates, stages, gap_frac))
    return tuple(found)


def _window(
    name: Objective, scale: float, rates: list[float | None], stages: StageClasses, gap_frac: float
) -> RateWindow:
    of_kinds = {
        entry.node_kind: rate / entry.degree
        for entry, rate in zip(stages.classes, rates, strict=True)
        if rate is not None
    }
    return RateWindow(name, scale, tuple(rates), _sums(of_kinds, stages.n_devices, gap_frac))


def _sums(of_kinds: dict[int, float], n_devices: dict[int, int], gap_frac: float) -> Array:
    """Return (V, 2) every sum of some devices' rates, beginning with one device; near ones in one row."""
    steps = np.zeros((1, 2))
    for kind, rate in of_kinds.items():
        multiples = rate * np.arange(n_devices[kind] + 1)
        steps = (steps[:, None, :] + multiples[None, :, None]).reshape(-1, 2)
        steps = _joined(steps, EQUAL_FRAC)
        for finer in itertools.count(-6):
            if len(steps) <= MAX_STEPS:
                break
            steps = _joined(steps, gap_frac / 4 * 4.0**finer)
    least = min(of_kinds.values(), default=0.0)
    return steps[steps[:, 1] >= least * (1 - EQUAL_FRAC)]


def _joined(steps: Array, apart_frac: float) -> Array:
    """Return the rows in order, those joined that begin within a share of the first of their row."""
    steps = steps[np.argsort(steps[:, 0])]
    found: list[list[float]] = []
    for low, high in steps.tolist():
        if found and low <= found[-1][0] * (1 + apart_frac):
            found[-1][1] = max(found[-1][1], high)
        else:
            found.append([low, high])
    return np.array(found)
