"""Solve, simulate, tighten, until the simulated fleet keeps every level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.judge import judge, shortfalls
from dse.capacity.market import Answer, Market
from dse.capacity.options import ReplicaOption
from dse.capacity.shortage import shortage, unlimited
from dse.capacity.simulation import Simulation
from dse.errors import NoFeasiblePlan

MAX_ITERATIONS = 8
LEAST_DERATING = 1.03
MOST_DERATING = 1.25
MOST_RELAXED = 1000.0


@dataclass(frozen=True, eq=False)
class Iteration:
    """One turn: the deratings it was solved with, its answer, and what the simulation said.

    ``simulation`` is None for a turn that an earlier run has finished; ``outcome`` is its JSON either way.
    """

    derating: dict[str, float]
    answer: Answer
    simulation: Simulation | None
    outcome: dict[str, Any]
    next_derating: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the simulation kept every level."""
        return bool(self.outcome["passed"])

    def to_json(self) -> dict[str, Any]:
        """Return what a journal needs to go on, and the report to show."""
        fleet = self.answer.fleet
        return {
            "derating": self.derating,
            "next_derating": self.next_derating,
            "usd_per_h": fleet.usd_per_h,
            "bound": fleet.bound,
            "gap_frac": fleet.gap_frac,
            "nodes": self.answer.nodes(),
            "attained": self.answer.attained(),
            "outcome": self.outcome,
        }


Remembered = Callable[[dict[str, float]], dict[str, Any] | None]
"""Returns what an earlier run found with these deratings, None where it did not get there."""


def _why_not(market: Market, answer: Answer) -> str:
    """Return what is missing, and at which limit the level that breaks first would hold."""
    lacking = shortage(answer.assembled.problem, answer.assembled.unserved)
    if not lacking.broken:
        return lacking.reason
    limit_s = least_limit_s(market, lacking.broken[0][0])
    return lacking.reason if limit_s is None else f"{lacking.reason}; it would hold at {limit_s:.3g} s"


def least_limit_s(market: Market, name: str) -> float | None:
    """Return the smallest limit (within 2 %) of a level, by its name, at which any number of machines do.

    None where no limit up to a thousand times the present one helps.
    """
    classes = market.load.classes
    found = [
        (c, k)
        for c, entry in enumerate(classes)
        for k, level in enumerate(entry.levels)
        if f"{entry.name} {level.name}" == name
    ]
    if not found:
        return None
    c, k = found[0]
    present = classes[c].levels[k].limit_s

    def holds(factor: float) -> bool:
        levels = list(classes[c].levels)
        levels[k] = replace(levels[k], limit_s=present * factor)
        relaxed = list(classes)
        relaxed[c] = replace(classes[c], levels=tuple(levels))
        changed = market.with_load(market.load.with_classes(relaxed))
        problem = unlimited(changed.assembled().problem)
        return solve_fleet(problem, options=SolverOptions(integer_nodes=False)).value is not None

    low, high = 1.0, MOST_RELAXED
    if not holds(high):
        return None
    while high / low > 1.02:
        middle = sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return present * high


def tightened(
    derating: dict[str, float], short: dict[str, float], options: Sequence[ReplicaOption]
) -> dict[str, float]:
    """Return deratings under which options that fell short are trusted with less.

    An option that missed a level by a share s of its requests takes 1 + s (3 % to 25 %) more of a replica for
    each request, and so do its kin: the same precisions on the same machine, pipelines with pipelines. Else
    the next solution would be the sibling with the same optimism.
    """
    out = dict(derating)
    by_name = {option.name: option for option in options}
    worst: dict[tuple[tuple[int, ...], str, bool], float] = {}
    for name, by in short.items():
        kin = _kin(by_name[name])
        worst[kin] = max(worst.get(kin, 0.0), by)
    for option in options:
        by_kin = worst.get(_kin(option))
        if by_kin is not None:
            factor = min(max(1.0 + by_kin, LEAST_DERATING), MOST_DERATING)
            out[option.name] = out.get(option.name, 1.0) * factor
    return out


def _kin(option: ReplicaOption) -> tuple[tuple[int, ...], str, bool]:
    return option.offers, option.bits.name, option.replica.n_stages > 1


def plan_and_judge(
    market: Market,
    *,
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
    advance: Callable[[int, int], None] | None = None,
    remembered: Remembered = lambda _: None,
    keep: Callable[[Iteration], None] = lambda _: None,
    max_iterations: int = MAX_ITERATIONS,
) -> list[Iteration]:
    """Return the turns; the last one passes, or is the last that was allowed.

    Args:
        market: what can be bought; its load is what is simulated.
        seed: of the simulation.
        step, advance: told what happens, and how far the simulation is.
        remembered, keep: of a journal.
        max_iterations: turns at most.

    Raises:
        NoFeasiblePlan: no fleet will do even before any simulation; the text says what is missing.
    """
    turns: list[Iteration] = []
    derating: dict[str, float] = dict(market.terms.derating or {})
    for number in range(max_iterations):
        step(f"solving the fleet (turn {number + 1})")
        answer = market.under(replace(market.terms, derating=derating)).solve()
        if not answer.exists:
            if turns:
                return turns
            raise NoFeasiblePlan(_why_not(market, answer))
        found = remembered(derating)
        simulation = None
        if found is None:
            step(f"simulating {len(market.load)} requests on {sum(answer.nodes().values())} machines")
            simulation = judge(answer, market.load, seed, advance)
            outcome = simulation.to_json()
            short = {} if simulation.passed else shortfalls(simulation)
            following = tightened(derating, short, market.options)
        else:
            outcome, following = found["outcome"], dict(found["next_derating"])
        turn = Iteration(derating, answer, simulation, outcome, following)
        turns.append(turn)
        keep(turn)
        if turn.passed:
            return turns
        derating = following
    return turns
