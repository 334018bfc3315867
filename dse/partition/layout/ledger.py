"""How quantities of replicas combine to those of a deployment, and which bounds replicas share.

Throughput, energy and cost add up; TTFT, TPOT and the time of the batch are those of the slowest replica.
With separate pools a batch is prefilled and then decoded, so times of pools add up, and the slower pool
decides the throughput. A device draws power and is paid for as long as its replica works on a batch: before
and after it serves others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dse.graph.workload import Workload
from dse.partition.layout.pipeline import Role
from dse.partition.problem import BOUND_FIELDS, Goal, Objective

SUMS: frozenset[Objective] = frozenset({"throughput", "energy", "cost"})
OTHER_PHASE: dict[Role, Objective | None] = {"both": None, "prefill": "tpot", "decode": "ttft"}


@dataclass(frozen=True)
class Ledger:
    """The accounts of deployments with one pool, or with a pool for each phase.

    A replica's *part* is what it adds to a sum (requests per second with a minus, joules per token, dollars
    per million tokens, both weighted with its requests), or its own value where the largest counts.
    """

    goal: Goal
    workload: Workload
    separate: bool

    @property
    def roles(self) -> tuple[Role, ...]:
        """One role for each pool."""
        return ("prefill", "decode") if self.separate else ("both",)

    @property
    def shared(self) -> dict[Objective, float]:
        """Bounds that no replica can keep alone, as the sums of parts that they allow."""
        names = SUMS | {"time"} if self.separate else SUMS
        found = {name: limit for name, limit in self.goal.bounds.items() if name in names}
        return {
            name: -self.workload.batch / limit if name == "throughput" else limit
            for name, limit in found.items()
        }

    def names(self, role: Role) -> tuple[Objective, ...]:
        """Return what counts of a replica: first what it minimises, then the rest."""
        wanted = dict.fromkeys((self.goal.objective, *self.shared))
        return tuple(name for name in wanted if name != OTHER_PHASE[role]) or ("time",)

    def goal_of(self, role: Role, name: Objective, upper: Mapping[Objective, float]) -> Goal:
        """Return the goal of one replica: its own bounds, and what it may take of the shared ones."""
        own = [q for q in self.goal.bounds if q not in self.shared and q != OTHER_PHASE[role]]
        goal = replace(self.goal, objective=name, max_devices=None)
        if name != self.goal.objective:
            goal = replace(goal, theta_s=0.0)
        for quantity in BOUND_FIELDS:
            limit = self.goal.bounds[quantity] if quantity in own else upper.get(quantity)
            goal = goal.with_bound(quantity, limit)
        return goal

    def part(self, name: Objective, value: float, batch: int, role: Role) -> float:
        """Return the part of a replica with so many requests, from the value of its pipeline.

        A bound of no seconds, which is all that is known when time is up early, bounds no rate.
        """
        if name == "throughput":
            return -batch / value if value > 0 else -float("inf")
        return value * self._weight(name, batch, role)

    def value(self, name: Objective, part: float, batch: int, role: Role) -> float:
        """Return the value of a pipeline from the replica's part; infinite where any will do."""
        if name == "throughput":
            return batch / -part if part < 0 else float("inf")
        return part / self._weight(name, batch, role)

    def _weight(self, name: Objective, batch: int, role: Role) -> float:
        if name not in SUMS:
            return 1.0
        # a pipeline that prefills alone makes one token of every request
        return batch / self.workload.batch / (self.workload.output_tokens if role == "prefill" else 1)

    def total(self, name: Objective, parts: Iterable[tuple[Role, float]]) -> float:
        """Return the score of a deployment from the parts of its replicas."""
        of_role: dict[Role, list[float]] = {}
        for role, part in parts:
            if name != OTHER_PHASE[role]:
                of_role.setdefault(role, []).append(part)
        of_pools = [sum(found) if name in SUMS else max(found) for found in of_role.values()]
        return max(of_pools) if name == "throughput" else sum(of_pools)

    def objective_of(self, score: float) -> float:
        """Return the objective of a score; of a rate, the seconds that a batch of all requests takes."""
        if self.goal.objective == "throughput":
            return self.workload.batch / -score if score < 0 else float("inf")
        return score
