"""The best pipeline over all groupings of a cluster's devices, where there are too many to list.

The aggregate program proposes numbers of stages and bounds what is left; the exact planner places them; the
proposal is excluded, and so on until the bound meets the best plan (logic-based Benders decomposition, Hooker
and Ottosson 2003).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dse.partition.branch import Limits
from dse.partition.groups import group_sequences
from dse.partition.lanes import LaneFactory
from dse.partition.layout.aggregate import Aggregation
from dse.partition.layout.classes import StageClasses, layer_classes
from dse.partition.layout.rates import rate_windows
from dse.partition.problem import Goal, PipelineProblem, Solution, Status
from dse.partition.solve import OPTIMAL_GAP_FRAC, Planner
from hardware_specs.spec import Cluster

MAX_ORDERS = 6
MAX_LISTED = 4_000
LIMIT_PART = 0.85  # of the time limit, after which nothing new is begun
PROGRAM_S = 10.0
PLACEMENT_S = 8.0

Sequence_ = tuple[int, ...]


@dataclass(frozen=True)
class Orders:
    """Sequences of one grouping; ``complete`` if there are no others that could differ."""

    sequences: tuple[Sequence_, ...]
    complete: bool


class GroupingSearch:
    """One search over groupings and micro-batches."""

    def __init__(
        self, problem: PipelineProblem, cluster: Cluster, stages: StageClasses, goal: Goal, limits: Limits
    ) -> None:
        self.problem, self.cluster, self.stages, self.goal, self.limits = (
            problem,
            cluster,
            stages,
            goal,
            limits,
        )
        self.layers = layer_classes(problem)
        self.windows = rate_windows(problem, stages, goal, limits.gap_frac)
        n_layers = problem.memory_bytes.shape[0]
        listed = group_sequences(
            cluster, stages.groups, n_layers, max_devices=goal.max_devices, limit=MAX_LISTED
        )
        self.listed = None if listed is None else self._by_counts(listed)
        self.counter = itertools.count()
        self.heap: list[tuple[float, int, Aggregation]] = []
        self.value, self.settled = float("inf"), float("inf")
        self.best: Solution | None = None
        self.deadline: float | None = None

    def run(self, cutoff: float | None = None) -> Solution:
        """Return the best plan with the bound for all groupings; "infeasible" if none beats the cutoff."""
        began = time.monotonic()
        # the last program and the last placement end a little late
        self.deadline = None if self.limits.time_s is None else began + LIMIT_PART * self.limits.time_s
        self.value = float("inf") if cutoff is None else cutoff
        for p, d in LaneFactory(self.problem, self.goal).pairs():
            whole = Aggregation(self.problem, self.stages, self.layers, self.goal, p, d, self.windows)
            self._push(whole)
        while self.heap and self.heap[0][0] < self._target and self._left(PROGRAM_S) > 0:
            bound, _, part = heapq.heappop(self.heap)
            halves = part.halves()
            for half in halves:
                self._push(half, bound)
            if not halves:
                self._explore(part, bound)
        if self.heap:
            self._settle(self.heap[0][0])
        return self._answer(time.monotonic() - began)

    @property
    def _target(self) -> float:
        """What a plan must be below to be looked for."""
        if self.value == float("inf"):
            return self.value
        return self.value - self.limits.gap_frac * abs(self.value)

    def _left(self, most: float) -> float:
        return most if self.deadline is None else min(most, self.deadline - time.monotonic())

    def _settle(self, bound: float) -> None:
        """Note that plans that are not looked for any more may be as low as this."""
        self.settled = min(self.settled, bound)

    def _push(self, part: Aggregation, bound: float = 0.0) -> None:
        """Keep a part of the search with its linear bound, unless nothing in it is good enough."""
        bound = max(bound, part.solve(self._target, integer=False).bound)
        if bound == float("inf"):
            self._settle(self._target)
        else:
            heapq.heappush(self.heap, (bound, next(self.counter), part))

    def _explore(self, part: Aggregation, bound: float) -> None:
        """Place the best grouping of a part; what is left of it then is kept."""
        proposal = part.solve(self._target, time_limit_s=self._left(PROGRAM_S))
        bound = max(bound, proposal.bound)
        if proposal.counts is None:
            self._settle(min(bound, self._target))
            return
        found, proven = self._placed(part, proposal.counts)
        self._settle(bound if proven is None else proven)
        if found.value is not None and found.value < self.value:
            self.value, self.best = found.value, found
        part.excluded.append(proposal.counts)
        heapq.heappush(self.heap, (bound, next(self.counter), part))

    def _placed(self, part: Aggregation, counts: Sequence_) -> tuple[Solution, float | None]:
        """Return the best plan of a grouping, and what is proven for all its orders (None: nothing)."""
        orders = self._orders(counts)
        problem = replace(only_pair(self.problem, part.p, part.d), orders=orders.sequences, allow_empty=False)
        limits = Limits(time_s=max(0.5, self._left(PLACEMENT_S)), gap_frac=self.limits.gap_frac)
        planner = Planner(problem, replace(self.goal, max_devices=None), limits)
        cutoff = self.value if self.value < float("inf") else None
        solution = planner.solve(self.goal.max_penalty, explain=False, cutoff=cutoff)
        if not orders.complete:
            return solution, None
        return solution, self._target if solution.bound is None else solution.bound

    def _answer(self, time_s: float) -> Solution:
        if self.best is None:
            bound = self.settled if self.settled < float("inf") else None
            return Solution("infeasible", None, None, bound, None, time_s, None, "")
        bound = min(self.settled, self.value)
        gap_frac = (self.value - bound) / abs(self.value) if self.value != bound else 0.0
        status: Status = "optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible"
        return replace(self.best, status=status, bound=bound, gap_frac=gap_frac, time_s=time_s)

    def _by_counts(self, sequences: Sequence[Sequence_]) -> dict[Sequence_, list[Sequence_]]:
        class_of = {i: c for c, entry in enumerate(self.stages.classes) for i in entry.members}
        found: dict[Sequence_, list[Sequence_]] = {}
        for sequence in sequences:
            counts = [0] * len(self.stages.classes)
            for index in sequence:
                counts[class_of[index]] += 1
            found.setdefault(tuple(counts), []).append(sequence)
        return found

    def _orders(self, counts: Sequence_) -> Orders:
        """Return all orders of a grouping where they could be listed, else some that change nodes rarely."""
        if self.listed is not None:
            return Orders(tuple(self.listed.get(counts, ())), True)
        blocks = self._packed(counts)
        seen: dict[object, Sequence_] = {}
        for arranged in itertools.islice(itertools.permutations(range(len(blocks))), 5040):
            sequence = tuple(index for b in arranged for index in blocks[b])
            kinds = tuple(self.problem.device_types[index] for index in sequence)
            seen.setdefault(kinds, sequence)
        spread = list(seen.values())
        step = max(1, len(spread) // MAX_ORDERS)
        return Orders(tuple(spread[::step][:MAX_ORDERS]), False)

    def _packed(self, counts: Sequence_) -> list[list[int]]:
        """Put the groups into nodes, large ones first; return the groups of every node that has some."""
        free = dict(self.stages.node_sizes)
        taken: dict[str, list[int]] = {}
        order = sorted(range(len(counts)), key=lambda c: -self.stages.classes[c].degree)
        for c in order:
            entry = self.stages.classes[c]
            nodes = dict.fromkeys(self.stages.groups[i].node for i in entry.members)
            for _ in range(counts[c]):
                node = min(
                    (name for name in nodes if free[name] >= entry.degree), key=lambda name: free[name]
                )
                free[node] -= entry.degree
                used = taken.setdefault(node, [])
                used.append(
                    next(i for i in entry.members if self.stages.groups[i].node == node and i not in used)
                )
        return list(taken.values())


def only_pair(problem: PipelineProblem, p: int, d: int) -> PipelineProblem:
    """Return the problem with one prefill and one decode micro-batch, by their indices."""
    energy = problem.energy
    ps, ds = slice(p, p + 1), slice(d, d + 1)
    if energy is not None:
        energy = replace(
            energy,
            prefill_j=energy.prefill_j[ps],
            decode_j=energy.decode_j[ds],
            first_prefill_j=energy.first_prefill_j[ps],
            first_decode_j=energy.first_decode_j[ds],
            last_prefill_j=energy.last_prefill_j[ps],
            last_decode_j=energy.last_decode_j[ds],
            hop_prefill_j=energy.hop_prefill_j[ps],
            hop_decode_j=energy.hop_decode_j[ds],
        )
    return replace(
        problem,
        prefill_micro_batches=problem.prefill_micro_batches[ps],
        decode_micro_batches=problem.decode_micro_batches[ds],
        prefill_s=problem.prefill_s[ps],
        decode_s=problem.decode_s[ds],
        first_prefill_s=problem.first_prefill_s[ps],
        first_decode_s=problem.first_decode_s[ds],
        last_prefill_s=problem.last_prefill_s[ps],
        last_decode_s=problem.last_decode_s[ds],
        hop_prefill_s=problem.hop_prefill_s[ps],
        hop_decode_s=problem.hop_decode_s[ds],
        activation_bytes=None if problem.activation_bytes is None else problem.activation_bytes[ps, ds],
        handover_s=None if problem.handover_s is None else problem.handover_s[ps],
        energy=energy,
    )
