"""The exact planner: bits, partition, device order and micro-batches together, with a proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dse.partition.branch import BranchAndBound, Incumbent, Limits, Outcome
from dse.partition.explain import binding_sentence, missing_sentence
from dse.partition.families import Space
from dse.partition.lanes import Lane, LaneFactory
from dse.partition.memory import Memory, QualityFilter
from dse.partition.objective import REL_TOL, objective_s, penalty_of, quantity, violations
from dse.partition.problem import Arrangement, Goal, PipelineProblem, Solution

OPTIMAL_GAP_FRAC = 1e-6  # relative gap up to which "optimal" is claimed
TIES_TIME_S = 2.0
LEAVES_TIMES_OPEN = ("ttft", "tpot", "throughput")


class Planner:
    """Solves one problem for several penalty bounds; what one solve learns makes the next one faster.

    Every solve is deterministic unless its time limit is met (a limit on relaxations keeps it so).
    """

    def __init__(self, problem: PipelineProblem, goal: Goal, limits: Limits | None = None) -> None:
        self.problem = problem
        self.goal = goal
        self.limits = limits or Limits(time_s=60.0)
        # whether penalties count decides which choices dominate others, so bounded and free goals differ
        self._spaces: dict[bool, Space] = {}
        self._memory: dict[bool, Memory] = {}
        self._quality: QualityFilter | None = None
        self.last: Outcome | None = None

    def learn_quality(self, limits: Limits) -> Solution:
        """Find the least penalty that fits, and keep what its search proves for later penalty bounds."""
        began = time.monotonic()
        space = Space(LaneFactory(self.problem, Goal(), quality_only=True))
        memory = Memory()
        outcome = BranchAndBound(space, None, limits, memory, Incumbent()).run()
        if outcome.finished:
            self._quality = QualityFilter(space, memory)
        return _solution(self.problem, Goal(), outcome, time.monotonic() - began, quality_only=True)

    def solve(
        self,
        max_penalty: float | None,
        starts: Sequence[Arrangement] = (),
        limits: Limits | None = None,
        *,
        explain: bool = True,
        cutoff: float | None = None,
    ) -> Solution:
        """Return the best arrangement whose penalty is at most ``max_penalty``.

        Args:
            max_penalty: None for no bound.
            starts: arrangements to start from; infeasible ones are ignored.
            limits: overrides the planner's.
            explain: whether an infeasible problem is looked into for what is missing.
            cutoff: a value that is known from elsewhere; arrangements that do not beat it by the limits' gap
                are not looked for, and "infeasible" then says that there are none.
        """
        began = time.monotonic()
        goal = replace(self.goal, max_penalty=max_penalty)
        bounded = max_penalty is not None
        if bounded not in self._spaces:
            self._spaces[bounded] = Space(LaneFactory(self.problem, goal))
            self._memory[bounded] = Memory()
        space = self._spaces[bounded]
        start = self._start(goal, space, starts)
        if cutoff is not None and cutoff < start.value:
            start = Incumbent(cutoff)
        outcome = BranchAndBound(
            space,
            None if max_penalty is None else _widened(max_penalty),
            limits or self.limits,
            self._memory[bounded],
            start,
            self._quality,
        ).run()
        self.last = outcome
        return _solution(self.problem, goal, outcome, time.monotonic() - began, explain=explain)

    def _start(self, goal: Goal, space: Space, starts: Sequence[Arrangement]) -> Incumbent:
        best = Incumbent()
        for arrangement in starts:
            if violations(self.problem, goal, arrangement):
                continue
            value = objective_s(self.problem, goal, arrangement)
            penalty = penalty_of(self.problem, arrangement)
            if (value, penalty) < (best.value, best.penalty):
                best = _as_incumbent(self.problem, goal, space, arrangement, value, penalty)
        return best


def with_ties_broken(planner: Planner, solution: Solution, max_penalty: float | None) -> Solution:
    """Return the solution with the fastest arrangement of its devices found that is as good by the objective.

    Objectives like the TTFT leave the decode open; a plan should not be slow there for nothing. The proof of
    the objective stays what it is, that the rest is fastest is not claimed.
    """
    goal = planner.goal
    if goal.objective not in LEAVES_TIMES_OPEN or solution.arrangement is None or goal.theta_s > 0:
        return solution
    value = quantity(planner.problem, goal, solution.arrangement, goal.objective)
    as_good = goal.with_bound(goal.objective, value + OPTIMAL_GAP_FRAC * abs(value))
    problem = replace(
        planner.problem,
        orders=(tuple(device for device, _, _ in solution.arrangement.stages),),
        allow_empty=False,
    )
    fastest = Planner(problem, replace(as_good, objective="time"), Limits(TIES_TIME_S, gap_frac=1e-3))
    again = fastest.solve(max_penalty, [solution.arrangement], explain=False)
    if again.arrangement is None:
        return solution
    return replace(
        solution,
        arrangement=again.arrangement,
        penalty=again.penalty,
        value=quantity(planner.problem, goal, again.arrangement, goal.objective),
        time_s=solution.time_s + again.time_s,
    )


def solve(
    problem: PipelineProblem,
    goal: Goal,
    *,
    time_limit_s: float | None = 60.0,
    gap_frac: float = 1e-9,
    starts: Sequence[Arrangement] = (),
) -> Solution:
    """Solve a problem for a goal.

    Args:
        problem: the arrays.
        goal: what to minimise and the bound on the penalty.
        time_limit_s: wall clock; when it is met the incumbent is returned with its true gap.
        gap_frac: improvements below this share of the value are not looked for.
        starts: arrangements to start from.

    Returns:
        "optimal" where the gap is at most 1e-6, "feasible" with a larger gap, "infeasible" (proven) with what
        is missing in ``binding``. A search that found nothing before its limit is "infeasible" too, only its
        ``binding`` says that it is not proven, and ``bound`` is set.
    """
    planner = Planner(problem, goal, Limits(time_s=time_limit_s, gap_frac=gap_frac))
    return planner.solve(goal.max_penalty, starts)


def least_penalty(
    problem: PipelineProblem,
    *,
    time_limit_s: float | None = 30.0,
    n_relaxations: int | None = None,
    gap_frac: float = 1e-9,
) -> Solution:
    """Return the arrangement of least penalty that fits into memory; ``value`` and ``bound`` are penalties.

    Its micro-batches are the first candidates: they do not matter for the penalty.
    """
    return Planner(problem, Goal()).learn_quality(Limits(time_limit_s, n_relaxations, gap_frac))


def _widened(max_penalty: float) -> float:
    """Return the bound with room for the rounding of sums in another order."""
    return max_penalty + REL_TOL * abs(max_penalty)


def _as_incumbent(
    problem: PipelineProblem,
    goal: Goal,
    space: Space,
    arrangement: Arrangement,
    value: float,
    penalty: float,
) -> Incumbent:
    """Express an arrangement in a lane, for which interchangeable devices may have to change places."""
    p = problem.prefill_micro_batches.index(arrangement.prefill_micro_batch)
    d = problem.decode_micro_batches.index(arrangement.decode_micro_batch)
    devices = tuple(stage[0] for stage in arrangement.stages)
    types = [problem.device_types[device] for device in devices]
    alike = [
        sequence
        for sequence in space.factory.sequences()
        if [problem.device_types[device] for device in sequence] == types
    ]
    alike.sort(key=lambda sequence: sequence != devices)
    cut = np.array([0, *(stage[2] for stage in arrangement.stages)])
    for lane in (space.lane(sequence, p, d) for sequence in alike):
        moved = _arrangement(problem, lane, cut, np.asarray(arrangement.choices))
        if abs(objective_s(problem, goal, moved) - value) <= REL_TOL * abs(value):
            return Incumbent(value, penalty, lane, cut, np.asarray(arrangement.choices))
    return Incumbent()


def _arrangement(problem: PipelineProblem, lane: Lane, cut: np.ndarray, choices: np.ndarray) -> Arrangement:
    return Arrangement(
        tuple((device, int(cut[s]), int(cut[s + 1])) for s, device in enumerate(lane.devices)),
        tuple(int(choice) for choice in choices),
        problem.prefill_micro_batches[lane.prefill_index],
        problem.decode_micro_batches[lane.decode_index],
    )


def _solution(
    problem: PipelineProblem,
    goal: Goal,
    outcome: Outcome,
    time_s: float,
    *,
    quality_only: bool = False,
    explain: bool = True,
) -> Solution:
    best = outcome.incumbent
    if best.lane is None or best.cut is None or best.choices is None:
        if not outcome.finished:
            text = "nothing feasible was found before the limit; that nothing exists is not proven"
            return Solution("infeasible", None, None, outcome.bound, None, time_s, None, text)
        text = missing_sentence(problem, goal) if explain else ""
        return Solution("infeasible", None, None, None, None, time_s, None, text)
    arrangement = _arrangement(problem, best.lane, best.cut, best.choices)
    penalty = penalty_of(problem, arrangement)
    value = penalty if quality_only else objective_s(problem, goal, arrangement)
    bound = min(outcome.bound, value)
    gap_frac = (value - bound) / abs(value) if value != bound else 0.0
    return Solution(
        status="optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible",
        arrangement=arrangement,
        value=value,
        bound=bound,
        gap_frac=gap_frac,
        time_s=time_s,
        penalty=penalty,
        binding=binding_sentence(problem, goal, best, outcome.relaxed),
    )
