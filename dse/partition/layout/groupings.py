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
        n_layers = problem.memory_bytes.shape[0]
        listed = group_sequences(
            cluster, stages.groups, n_layers, max_devices=goal.max_devices, limit=MAX_LISTED
        )
        self.listed = None if listed is None else self._by_counts(listed)

    def run(self, cutoff: float | None = None) -> Solution:
        """Return the best plan with the bound for all groupings; "infeasible" if none beats the cutoff."""
        began = time.monotonic()
        # the last program and the last placement end a little late
        deadline = None if self.limits.time_s is None else began + LIMIT_PART * self.limits.time_s
        best: Solution | None = None
        value = float("inf") if cutoff is None else cutoff
        heap, settled = self._pairs(value)
        while heap:
            bound, _, pair = heapq.heappop(heap)
            if bound >= self._good_enough(value):
                settled = min(settled, bound)
                break
            left = PROGRAM_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                settled = min(settled, bound)
                break
            proposal = pair.solve(self._good_enough(value), time_limit_s=min(PROGRAM_S, left))
            if proposal.counts is None:
                settled = min(settled, max(bound, proposal.bound))
                continue
            bound = max(bound, proposal.bound)
            found, proven = self._placed(pair, proposal.counts, value, deadline)
            settled = min(settled, proven if proven is not None else bound)
            if found is not None and found.value is not None and found.value < value:
                value, best = found.value, found
            pair.excluded.append(proposal.counts)
            heapq.heappush(heap, (bound, len(pair.excluded) * 10_000 + pair.p * 100 + pair.d, pair))
        if heap:
            settled = min(settled, heap[0][0])
        return self._answer(best, value, settled, time.monotonic() - began)

    def _good_enough(self, value: float) -> float:
        return value - self.limits.gap_frac * abs(value) if value < float("inf") else value

    def _pairs(self, value: float) -> tuple[list[tuple[float, int, Aggregation]], float]:
        """Return a heap of the pairs of micro-batches with their linear bounds."""
        heap: list[tuple[float, int, Aggregation]] = []
        for p, d in LaneFactory(self.problem, self.goal).pairs():
            pair = Aggregation(self.problem, self.stages, self.layers, self.goal, p, d)
            bound = pair.solve(self._good_enough(value), integer=False).bound
            if bound < float("inf"):
                heapq.heappush(heap, (bound, p * 100 + d, pair))
        return heap, float("inf")

    def _placed(
        self, pair: Aggregation, counts: Sequence_, value: float, deadline: float | None
    ) -> tuple[Solution | None, float | None]:
        """Return the best plan of a grouping, and what is proven for all its orders (None: nothing)."""
        orders = self._orders(counts)
        problem = replace(only_pair(self.problem, pair.p, pair.d), orders=orders.sequences, allow_empty=False)
        left = PLACEMENT_S if deadline is None else max(0.5, min(PLACEMENT_S, deadline - time.monotonic()))
        goal = replace(self.goal, max_devices=None)
        planner = Planner(problem, goal, Limits(time_s=left, gap_frac=self.limits.gap_frac))
        cutoff = value if value < float("inf") else None
        solution = planner.solve(goal.max_penalty, explain=False, cutoff=cutoff)
        if not orders.complete:
            return solution, None
        if solution.bound is not None:
            return solution, solution.bound
        return None, value

    def _answer(self, best: Solution | None, value: float, settled: float, time_s: float) -> Solution:
        if best is None:
            bound = settled if settled < float("inf") else None
            return Solution("infeasible", None, None, bound, None, time_s, None, "")
        bound = min(settled, value)
        gap_frac = (value - bound) / abs(value) if value != bound else 0.0
        status: Status = "optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible"
        return replace(best, status=status, bound=bound, gap_frac=gap_frac, time_s=time_s)

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
