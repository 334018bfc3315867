"""Replicas and pools: which devices serve together, how many requests each gets, and who does which phase.

A batch is split over replicas; each is a pipeline of its own with all layers. Throughput adds up, TTFT, TPOT
and the time of the batch are those of the slowest replica, energy and cost per token are means weighted by
the requests. With separate pools a prefill hands its cache over a link, which is a station after its last
stage, so that transfers run beside the prefill of the next micro-batch; a request's first token is counted
when its cache has arrived.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.collectives import p2p_time_s
from dse.errors import ConfigError
from dse.graph.workload import Workload
from dse.partition.branch import Limits
from dse.partition.groups import node_kinds
from dse.partition.layout.columns import ColumnSearch
from dse.partition.layout.fluid import fluid_bound_s
from dse.partition.layout.inputs import ModelInputs, part_of
from dse.partition.layout.pipeline import LayoutOptions, Pipeline, Role, best_pipeline, degrees_of
from dse.partition.layout.shares import Counts, in_proportion
from dse.partition.problem import Array, Goal, Objective, Status
from dse.partition.solve import OPTIMAL_GAP_FRAC
from hardware_specs.spec import Cluster

MAX_WORK = 3e7  # sums of one pass over devices and requests; beyond, replicas stay inside nodes
SUMS: tuple[Objective, ...] = ("throughput", "energy", "cost")
PER_REPLICA: tuple[Objective, ...] = ("ttft", "tpot", "time")


@dataclass(frozen=True)
class Replica:
    """A pipeline of a deployment: devices taken of every node, requests of every batch, share of the load."""

    role: Role
    counts: dict[str, int]
    batch: int
    share_frac: float
    pipeline: Pipeline


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
class _Part:
    """Some replicas of one role: what they come to (to be minimised) and what is proven."""

    score: float
    replicas: tuple[Replica, ...]


NOTHING = _Part(float("inf"), ())


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
        ConfigError: a bound is asked for that replicas or pools share, or what pools do not have.
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
        self.solved: dict[object, Pipeline] = {}
        n_bundles = int(np.prod([n + 1 for n in self.whole]))
        self.alone = options.n_replicas == 1 and options.pools == "same"
        self.exact = self.alone or n_bundles**2 * workload.batch**2 <= MAX_WORK
        self._check()

    def run(self) -> Deployment:
        """Search shared pools, separate ones, or both."""
        if self.exact and not self.alone:
            score, bound, replicas = ColumnSearch(self).run()
            value = self.value_of(score)
            bound = min(self.value_of(bound), value)
        else:
            part = min(self._restricted(), key=lambda found: found.score)
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
        several = self.options.n_replicas != 1
        for name in self.goal.bounds:
            if self.options.pools != "same" and name not in ("ttft", "tpot"):
                raise ConfigError(f"a bound on {name} cannot be kept by separate pools yet", path="--pools")
            if several and name not in PER_REPLICA:
                raise ConfigError(f"a bound on {name} cannot be kept by replicas yet", path="--replicas")
        if self.options.pools == "separate" and self.workload.output_tokens == 1:
            raise ConfigError("one output token leaves nothing to decode", path="--pools")
        if self.goal.max_devices is not None and not self.exact:
            raise ConfigError(
                "does not go with replicas or pools of a cluster with so many nodes", path="--max-devices"
            )
        if self.options.pools != "same" and self.goal.objective in ("energy", "cost"):
            raise ConfigError(
                "separate pools are optimised for time, ttft, tpot and throughput only",
                path="--objective",
                value=self.goal.objective,
            )

    def _restricted(self) -> Iterator[_Part]:
        """Yield deployments whose replicas stay inside nodes, and pools of whole nodes."""
        if self.options.pools != "separate":
            yield self._inside_nodes(self.whole, "both", None)
        if self.options.pools == "same" or self.workload.output_tokens == 1:
            return
        for usable in self.inputs.by_kv_format:
            for counts in itertools.product(*((0, n) for n in self.whole)):
                if not 0 < sum(counts) < sum(self.whole):
                    continue
                rest = tuple(n - c for n, c in zip(self.whole, counts, strict=True))
                prefill = self._inside_nodes(counts, "prefill", usable)
                decode = self._inside_nodes(rest, "decode", usable)
                score = self.of_pools(prefill.score, decode.score)
                yield _Part(score, prefill.replicas + decode.replicas)

    def of_pools(self, prefill: float, decode: float) -> float:
        """Return the score of both pools; a batch is prefilled first, then decoded."""
        if float("inf") in (prefill, decode):
            return float("inf")
        return {
            "time": prefill + decode,
            "throughput": max(prefill, decode),
            "ttft": prefill,
            "tpot": decode,
        }[self.goal.objective]

    def _inside_nodes(self, counts: Counts, role: Role, usable: NDArray[np.bool_] | None) -> _Part:
        """Return good replicas that stay inside nodes: one size of replica for every kind of node.

        The requests are shared out in proportion to the throughput of the replicas.
        """
        whole = self.replica(counts, self.workload.batch, role, usable, proven=False)
        found = whole if self.options.n_replicas in (None, 1) else NOTHING
        if self.options.n_replicas == 1:
            return found
        kinds: dict[int, list[int]] = {}
        for index, (name, count) in enumerate(zip(self.names, counts, strict=True)):
            if count:
                kinds.setdefault(self.kinds[name], []).append(index)
        choices = [[0, *(s for s in (1, 2, 4, 8, 16) if s <= counts[nodes[0]])] for nodes in kinds.values()]
        ranked: list[tuple[float, tuple[int, ...]]] = []
        for sizes in itertools.product(*choices):
            bundles = self._bundles(sizes, list(kinds.values()), counts)
            if not 1 < len(bundles) <= self.workload.batch or len(bundles) != (
                self.options.n_replicas or len(bundles)
            ):
                continue
            even = max(1, self.workload.batch // len(bundles))
            even = 1 << (even.bit_length() - 1)
            rates = [self._rate(bundle, even, role, usable) for bundle in bundles]
            if min(rates) > 0:
                ranked.append((-sum(rates), sizes))
        for _, sizes in sorted(ranked)[:3]:
            bundles = self._bundles(sizes, list(kinds.values()), counts)
            even = 1 << (max(1, self.workload.batch // len(bundles)).bit_length() - 1)
            rates = [self._rate(bundle, even, role, usable) for bundle in bundles]
            parts = [
                self.replica(bundle, size, role, usable, proven=False)
                for bundle, size in zip(bundles, in_proportion(self.workload.batch, rates), strict=True)
            ]
            total = parts[0]
            for part in parts[1:]:
                total = self._joined(total, part)
            found = min(found, total, key=lambda part: part.score)
        return found

    def _bundles(self, sizes: Sequence[int], nodes: list[list[int]], counts: Counts) -> list[Counts]:
        return [
            tuple(size if i == index else 0 for i in range(len(counts)))
            for size, indices in zip(sizes, nodes, strict=True)
            if size
            for index in indices
            for _ in range(counts[index] // size)
        ]

    def _rate(self, bundle: Counts, batch: int, role: Role, usable: NDArray[np.bool_] | None) -> float:
        part = self.replica(bundle, batch, role, usable, proven=False)
        if part.score == float("inf"):
            return 0.0
        value = part.replicas[0].pipeline.value
        return 1.0 / value if self.goal.objective in SUMS else batch / value

    def replica(
        self,
        bundle: Counts,
        batch: int,
        role: Role,
        usable: NDArray[np.bool_] | None,
        *,
        proven: bool,
    ) -> _Part:
        """Return one replica on so many devices of each node."""
        pipeline = self._pipeline(bundle, batch, role, usable)
        value = pipeline.bound if proven else pipeline.value
        if value == float("inf"):
            return NOTHING
        counts = {name: n for name, n in zip(self.names, bundle, strict=True) if n}
        return _Part(self.score_of(value, batch), (Replica(role, counts, batch, 1.0, pipeline),))

    def _pipeline(self, bundle: Counts, batch: int, role: Role, usable: NDArray[np.bool_] | None) -> Pipeline:
        devices = sorted((self.kinds[name], n) for name, n in zip(self.names, bundle, strict=True) if n)
        key = (tuple(devices), batch, role, None if usable is None else usable.tobytes())
        if key not in self.solved:
            counts = dict(zip(self.names, bundle, strict=True))
            self.solved[key] = best_pipeline(
                self.inputs,
                part_of(self.cluster, counts),
                replace(self.workload, batch=batch),
                self.goal_of(role),
                self.options,
                self._limits_left(bundle),
                role=role,
                handover_s=None if role != "prefill" else self._handover_s,
                kv_groups=None if usable is None else (usable,),
            )
        return self.solved[key]

    def _handover_s(self, sizes: Sequence[int], usable: NDArray[np.bool_], passes: int) -> Array:
        """Return (P,) the time that the cache of one pass of a micro-batch takes to the other pool.

        One link carries it: the network where there are several nodes, whatever the pools are.
        """
        table = self.inputs.table(self.cluster, self.workload)
        per_token = np.where(usable, table.unit_kv_bytes_per_token, 0.0).max(axis=1).sum()
        link = self.cluster.inter_link if len(self.whole) > 1 else self.cluster.nodes[0].intra_link
        if link is None:
            raise ConfigError("has no link that a cache could take between two pools", path="--pools")
        moved = np.array(sizes) * self.workload.prompt_tokens * float(per_token) / passes
        return np.asarray(p2p_time_s(moved, link), dtype=np.float64)

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

    def score_of(self, value: float, batch: int) -> float:
        """Return what adds up (minus a rate, or a weighted mean), or what the slowest decides."""
        if self.goal.objective == "throughput":
            return -batch / value
        if self.goal.objective in SUMS:
            return value * batch / self.workload.batch
        return value

    def _joined(self, first: _Part, second: _Part) -> _Part:
        if float("inf") in (first.score, second.score):
            return NOTHING
        score = first.score + second.score if self.summed else max(first.score, second.score)
        return _Part(score, first.replicas + second.replicas)

    def value_of(self, score: float) -> float:
        """Return the objective of a score; of a rate, the seconds that a batch of all requests takes."""
        if self.goal.objective == "throughput":
            return self.workload.batch / -score if score < 0 else float("inf")
        return score

    def _shared_out(self, replicas: tuple[Replica, ...]) -> tuple[Replica, ...]:
        """Return the replicas with their share of the load: requests, over the time they take for them."""
        throughput = self.goal.objective == "throughput"
        rates = [r.batch / r.pipeline.value if throughput else float(r.batch) for r in replicas]
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

    def _loose_bound(self) -> float:
        """Return a bound for all deployments that needs no partition."""
        return fluid_bound_s(self.inputs, self.cluster, self.workload, self.goal, self.options)
