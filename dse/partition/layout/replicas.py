"""Replicas and pools: which devices serve together, how many requests each gets, and who does which phase.

A batch is split over replicas; each is a pipeline of its own with all layers. Throughput adds up, TTFT, TPOT
and the time of the batch are those of the slowest replica, energy and cost per token are means weighted by
the requests. With separate pools a prefill hands its cache over a link, which is a station after its last
stage, so that transfers run beside the prefill of the next micro-batch; a request's first token is counted
when its cache has arrived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from dse.errors import ConfigError
from dse.graph.workload import Workload
from dse.partition.branch import Limits
from dse.partition.groups import node_kinds
from dse.partition.layout.bounded import BoundedSearch, needs_accounts
from dse.partition.layout.columns import ColumnSearch
from dse.partition.layout.deployment import NOTHING, Deployment, Part, Replica
from dse.partition.layout.fluid import fluid_bound_s
from dse.partition.layout.inputs import ModelInputs, part_of
from dse.partition.layout.inside_nodes import NodeByNode
from dse.partition.layout.ledger import SUMS, Ledger
from dse.partition.layout.pipeline import LayoutOptions, Pipeline, Role, best_pipeline, degrees_of
from dse.partition.layout.shares import Counts
from dse.partition.problem import Array, Goal, Status
from dse.partition.solve import OPTIMAL_GAP_FRAC
from hardware_specs.spec import Cluster

MAX_WORK = 3e7  # sums of one pass over devices and requests; beyond, replicas stay inside nodes


def best_deployment(
    inputs: ModelInputs,
    cluster: Cluster,
    workload: Workload,
    goal: Goal,
    options: LayoutOptions,
    limits: Limits,
) -> Deployment:
    """Return the best replicas and pools.

    Raises:
        ConfigError: what pools do not have.
    """
    return DeploymentSearch(inputs, cluster, workload, goal, options, limits).run()


class DeploymentSearch:
    """One search; pipelines are solved once for equal devices, batch and role."""

    def __init__(
        self,
        inputs: ModelInputs,
        cluster: Cluster,
        workload: Workload,
        goal: Goal,
        options: LayoutOptions,
        limits: Limits,
    ) -> None:
        self.inputs, self.cluster, self.workload = inputs, cluster, workload
        self.goal, self.options, self.limits = goal, options, limits
        self.names = tuple(node.name for node in cluster.nodes)
        self.whole = tuple(node.n_devices for node in cluster.nodes)
        self.kinds = node_kinds(cluster)
        degrees_of(inputs, cluster, options)
        self.began = time.monotonic()
        self._ledger = Ledger(goal, workload, separate=False)
        self.solved: dict[object, Pipeline] = {}
        n_bundles = int(np.prod([n + 1 for n in self.whole]))
        self.alone = options.n_replicas == 1 and options.pools == "same"
        self.exact = self.alone or n_bundles**2 * workload.batch**2 <= MAX_WORK
        self._check()

    def run(self) -> Deployment:
        """Search shared pools, separate ones, or both."""
        if self.exact and not self.alone:
            accounts = needs_accounts(
                self.goal, several=self.options.n_replicas != 1, separate=self.options.pools != "same"
            )
            score, bound, replicas = (BoundedSearch if accounts else ColumnSearch)(self).run()
            value = self.value_of(score)
            bound = min(self.value_of(bound), value)
        else:
            part = NodeByNode(self).run()
            value, replicas = self.value_of(part.score), part.replicas
            bound = self._loose_bound()
            if self.alone and replicas:
                bound = replicas[0].pipeline.bound
        time_s = time.monotonic() - self.began
        if value == float("inf"):
            return Deployment((), "infeasible", None, 0.0, None, time_s, self.exact and bound == value)
        bound = min(bound, value)
        gap_frac = (value - bound) / abs(value) if value != bound else 0.0
        status: Status = "optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible"
        return Deployment(self._shared_out(replicas), status, value, bound, gap_frac, time_s, self.exact)

    def _check(self) -> None:
        if self.options.pools == "separate" and self.workload.output_tokens == 1:
            raise ConfigError("one output token leaves nothing to decode", path="--pools")

    def replica(
        self,
        bundle: Counts,
        batch: int,
        role: Role,
        usable: NDArray[np.bool_] | None,
        *,
        proven: bool = False,
        goal: Goal | None = None,
    ) -> Part:
        """Return one replica on so many devices of each node, by default for the goal of its role."""
        pipeline = self.pipeline(bundle, batch, role, usable, goal or self.goal_of(role))
        value = pipeline.bound if proven else pipeline.value
        if value == float("inf"):
            return NOTHING
        return Part(self.score_of(value, batch, role), (self.as_replica(bundle, batch, role, pipeline),))

    def as_replica(self, bundle: Counts, batch: int, role: Role, pipeline: Pipeline) -> Replica:
        """Return a replica with so many devices of each node."""
        counts = {name: n for name, n in zip(self.names, bundle, strict=True) if n}
        return Replica(role, counts, batch, 1.0, pipeline)

    def alike(self, bundle: Counts) -> tuple[tuple[int, int], ...]:
        """Return what two sets of devices share where one does for the other."""
        return tuple(sorted((self.kinds[name], n) for name, n in zip(self.names, bundle, strict=True) if n))

    def pipeline(
        self, bundle: Counts, batch: int, role: Role, usable: NDArray[np.bool_] | None, goal: Goal
    ) -> Pipeline:
        """Return the best pipeline on so many devices of each node, solved once."""
        key = (self.alike(bundle), batch, role, None if usable is None else usable.tobytes(), goal)
        if key not in self.solved:
            counts = dict(zip(self.names, bundle, strict=True))
            self.solved[key] = best_pipeline(
                self.inputs,
                part_of(self.cluster, counts),
                replace(self.workload, batch=batch),
                goal,
                self.options,
                self._limits_left(bundle),
                role=role,
                handover=None if role != "prefill" else self._handover,
                kv_groups=None if usable is None else (usable,),
                with_energy="energy" in self.goal.quantities or role != "both",
            )
        return self.solved[key]

    def work_bound_s(self, bundle: Counts, batch: int, role: Role, goal: Goal) -> float:
        """Return a bound on pipelines on so many devices of each node from their work; 0 when time is up."""
        if not self.time_left():
            return 0.0
        cluster = part_of(self.cluster, dict(zip(self.names, bundle, strict=True)))
        workload = replace(self.workload, batch=batch)
        return fluid_bound_s(self.inputs, cluster, workload, goal, self.options, role)

    def _handover(self, sizes: Sequence[int], usable: NDArray[np.bool_], passes: int) -> tuple[Array, Array]:
        """Return (P,) seconds and joules that the cache of one pass of a micro-batch takes to the other pool.

        One link carries it: the network where there are several nodes, whatever the pools are.
        """
        table = self.inputs.table(self.cluster, self.workload)
        per_token = np.where(usable, table.unit_kv_bytes_per_token, 0.0).max(axis=1).sum()
        link = self.cluster.inter_link if len(self.whole) > 1 else self.cluster.nodes[0].intra_link
        if link is None:
            raise ConfigError("has no link that a cache could take between two pools", path="--pools")
        moved = np.array(sizes) * self.workload.prompt_tokens * float(per_token) / passes
        return (
            np.asarray(p2p_time_s(moved, link), dtype=np.float64),
            np.asarray(link_energy_j(moved, link), dtype=np.float64),
        )

    def goal_of(self, role: Role) -> Goal:
        """Return the goal of one pool: the bound of the other phase is not its business."""
        goal = self.goal if self.alone else replace(self.goal, max_devices=None)
        other = {"prefill": "tpot", "decode": "ttft"}.get(role)
        if role == "prefill":
            goal = replace(goal, max_tpot_s=None)
        if role == "decode":
            goal = replace(goal, max_ttft_s=None)
        return replace(goal, objective="time") if goal.objective == other else goal

    def _limits_left(self, bundle: Counts) -> Limits:
        """Return the limits of one pipeline: the one on all devices is the hardest."""
        if self.limits.time_s is None:
            return self.limits
        left = max(0.0, self.limits.time_s - (time.monotonic() - self.began))
        part = 1.0 if self.alone else 0.5 if bundle == self.whole else 0.125
        return replace(self.limits, time_s=max(0.2, part * left))

    def score_of(self, value: float, batch: int, role: Role = "both") -> float:
        """Return what adds up (minus a rate, or a weighted mean), or what the slowest decides."""
        return self._ledger.part(self.goal.objective, value, batch, role)

    def of_pools(self, prefill: float, decode: float) -> float:
        """Return the score of both pools; a batch is prefilled first, then decoded."""
        if float("inf") in (prefill, decode):
            return float("inf")
        return self._ledger.total(self.goal.objective, (("prefill", prefill), ("decode", decode)))

    def value_of(self, score: float) -> float:
        """Return the objective of a score; of a rate, the seconds that a batch of all requests takes."""
        return self._ledger.objective_of(score)

    def _shared_out(self, replicas: tuple[Replica, ...]) -> tuple[Replica, ...]:
        """Return the replicas with their share of the load: requests, over the time they take for them."""
        by_speed = "throughput" in self.goal.quantities
        rates = [r.batch / r.quantity("throughput") if by_speed else float(r.batch) for r in replicas]
        totals = {
            role: sum(rate for r, rate in zip(replicas, rates, strict=True) if r.role == role)
            for role in ("both", "prefill", "decode")
        }
        return tuple(
            replace(r, share_frac=rate / totals[r.role]) for r, rate in zip(replicas, rates, strict=True)
        )

    @property
    def summed(self) -> bool:
        """Whether scores of replicas add up, instead of the largest one deciding."""
        return self.goal.objective in SUMS

    def time_left(self) -> bool:
        """Whether the time limit allows more."""
        limit = self.limits.time_s
        return limit is None or time.monotonic() - self.began < limit

    def seconds_left(self) -> float | None:
        """What the time limit leaves."""
        limit = self.limits.time_s
        return None if limit is None else max(0.1, limit - (time.monotonic() - self.began))

    def _loose_bound(self) -> float:
        """Return a bound for all deployments that needs no partition."""
        return fluid_bound_s(self.inputs, self.cluster, self.workload, self.goal, self.options)
