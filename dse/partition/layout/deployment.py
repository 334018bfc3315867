"""Replicas and what they are together."""

from __future__ import annotations

from dataclasses import dataclass

from dse.partition.layout.pipeline import Pipeline, Role
from dse.partition.objective import quantity
from dse.partition.problem import Goal, Objective, Status


@dataclass(frozen=True)
class Replica:
    """A pipeline of a deployment: devices taken of every node, requests of every batch, share of the load."""

    role: Role
    counts: dict[str, int]
    batch: int
    share_frac: float
    pipeline: Pipeline

    def quantity(self, name: Objective) -> float:
        """Return what the replica costs in a quantity, see ``dse.partition.objective.quantity``."""
        problem, arrangement = self.pipeline.problem, self.pipeline.solution.arrangement
        if problem is None or arrangement is None:
            raise ValueError("the replica has no plan")
        return quantity(problem.problem, Goal(), arrangement, name)


@dataclass(frozen=True)
class Deployment:
    """Replicas with the objective of all together, and the bound for every other deployment.

    ``exact``: whether all partitions of the devices were considered; else those that keep a replica inside a
    node and treat equal nodes alike, while the bound still holds for all.
    """

    replicas: tuple[Replica, ...]
    status: Status
    value: float | None
    bound: float
    gap_frac: float | None
    time_s: float
    exact: bool

    @property
    def separate(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return any(replica.role != "both" for replica in self.replicas)


@dataclass(frozen=True)
class Part:
    """Some replicas of one role: what they come to (to be minimised) and what is proven."""

    score: float
    replicas: tuple[Replica, ...]


NOTHING = Part(float("inf"), ())
