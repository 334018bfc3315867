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
from dse.partition.layout.fluid import fluid_bound_s
from dse.partition.layout.inputs import ModelInputs, part_of
from dse.partition.layout.pipeline import LayoutOptions, Pipeline, Role, best_pipeline, degrees_of
from dse.partition.problem import Array, Goal, Objective, Status
from dse.partition.solve import OPTIMAL_GAP_FRAC
from hardware_specs.spec import Cluster

MAX_SOLVES = 200  # pipelines that an exact search may ask for; beyond, replicas stay inside nodes
SUMS: tuple[Objective, ...] = ("throughput", "energy", "cost")
PER_REPLICA: tuple[Objective, ...] = ("ttft", "tpot", "time")
Counts = tuple[int, ...]


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
        n_bundles = int(np.prod([n + 1 for n in self.whole])) - 1
        n_most = min(self._most_replicas(), workload.batch)
        n_batches = workload.batch if n_most > 1 else 1
        self.alone = options.n_replicas == 1 and options.pools == "same"
        self.exact = self.alone or n_bundles * n_batches <= MAX_SOLVES
        self._check()

    def run(self) -> Deployment:
        """Search shared pools, separate ones, or both."""
        found: list[tuple[float, tuple[Replica, ...]]] = []
        bounds: list[float] = []
        if self.options.pools != "separate":
            found.append(self._together(proven=False))
            bounds.append(self._together(proven=True)[0] if self.exact else 0.0)
        if self.options.pools != "same" and self.workload.output_tokens > 1:
            for usable in self.inputs.by_kv_format:
                found.append(self._apart(usable, proven=False))
                bounds.append(self._apart(usable, proven=True)[0] if self.exact else 0.0)
        value, replicas = min(found, key=lambda entry: entry[0])
        bound = min(bounds) if self.exact else self._loose_bound()
        time_s = time.monotonic() - self.began
        if value == float("inf"):
            return Deployment((), "infeasible", None, 0.0, None, time_s, self.exact)
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
        if self.goal.max_devices is not None and (several or self.options.pools != "same"):
            raise ConfigError("does not go with replicas or pools yet", path="--max-devices")
        if self.options.pools != "same" and self.goal.objective in ("energy", "cost"):
            raise ConfigError(
                "separate pools are optimised for time, ttft, tpot and throughput only",
                path="--objective",
                value=self.goal.objective,
            )

    def _together(self, *, proven: bool) -> tuple[float, tuple[Replica, ...]]:
        part = self._best(self.whole, "both", None, proven=proven)
        return self._value(part.score), part.replicas

    def _apart(self, usable: NDArray[np.bool_], *, proven: bool) -> tuple[float, tuple[Replica, ...]]:
        """Return the best split of the devices into a pool for each phase."""
        best: tuple[float, tuple[Replica, ...]] = (float("inf"), ())
        for counts in self._splits():
            rest = tuple(n - c for n, c in zip(self.whole, counts, strict=True))
            prefill = self._best(counts, "prefill", usable, proven=proven)
            if self._value(prefill.score) >= best[0] and self.goal.objective != "tpot":
                continue
            decode = self._best(rest, "decode", usable, proven=proven)
            values = self._value(prefill.score), self._value(decode.score)
            if max(values) == float("inf"):
                continue
            value = {
                "time": sum(values),
                "throughput": max(values),
                "ttft": values[0],
                "tpot": values[1],
            }[self.goal.objective]
            if value < best[0]:
                best = value, prefill.replicas + decode.replicas
        return best

    def _splits(self) -> Iterator[Counts]:
        """Yield the devices of a prefill pool, leaving some for the decode."""
        ranges = [range(n + 1) if self.exact else (0, n) for n in self.whole]
        for counts in itertools.product(*ranges):
            if 0 < sum(counts) < sum(self.whole):
                yield counts

    def _best(self, counts: Counts, role: Role, usable: NDArray[np.bool_] | None, *, proven: bool) -> _Part:
        if self.exact:
            return self._partitioned(counts, role, usable, proven=proven)
        return self._inside_nodes(counts, role, usable)

    def _partitioned(
        self, counts: Counts, role: Role, usable: NDArray[np.bool_] | None, *, proven: bool
    ) -> _Part:
        """Return the best partition by dynamic programming over (devices left, requests left, replicas)."""
        memo: dict[tuple[Counts, int, int], _Part] = {}
        wanted = self.options.n_replicas

        def best(left: Counts, batch: int, n: int) -> _Part:
            key = (left, batch, n)
            if key in memo:
                return memo[key]
            found = NOTHING
            for bundle in itertools.product(*(range(c + 1) for c in left)):
                # the last replica leaves of what is left what it does not want
                if sum(bundle) == 0 or (n == 1 and bundle != left):
                    continue
                sizes = (batch,) if n == 1 else range(1, batch if wanted is not None else batch + 1)
                for size in sizes:
                    first = self._replica(bundle, size, role, usable, proven=proven)
                    if first.score == float("inf"):
                        continue
                    if size == batch:
                        found = min(found, first, key=lambda part: part.score)
                        continue
                    rest = best(tuple(a - b for a, b in zip(left, bundle, strict=True)), batch - size, n - 1)
                    found = min(found, self._joined(first, rest), key=lambda part: part.score)
            memo[key] = found
            return found

        return best(counts, self.workload.batch, wanted or self._most_replicas())

    def _inside_nodes(self, counts: Counts, role: Role, usable: NDArray[np.bool_] | None) -> _Part:
        """Return good replicas that stay inside nodes: one size of replica for every kind of node.

        The requests are shared out in proportion to the throughput of the replicas.
        """
        whole = self._replica(counts, self.workload.batch, role, usable, proven=False)
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
                self._replica(bundle, size, role, usable, proven=False)
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
        part = self._replica(bundle, batch, role, usable, proven=False)
        if part.score == float("inf"):
            return 0.0
        value = part.replicas[0].pipeline.value
        return 1.0 / value if self.goal.objective in SUMS else batch / value

    def _replica(
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
        value = pipeline.bound if proven and pipeline.value < float("inf") else pipeline.value
        if value == float("inf"):
            return NOTHING
        counts = {name: n for name, n in zip(self.names, bundle, strict=True) if n}
        return _Part(self._score(value, batch), (Replica(role, counts, batch, 1.0, pipeline),))

    def _pipeline(self, bundle: Counts, batch: int, role: Role, usable: NDArray[np.bool_] | None) -> Pipeline:
        devices = sorted((self.kinds[name], n) for name, n in zip(self.names, bundle, strict=True) if n)
        key = (tuple(devices), batch, role, None if usable is None else usable.tobytes())
        if key not in self.solved:
            counts = dict(zip(self.names, bundle, strict=True))
            self.solved[key] = best_pipeline(
                self.inputs,
                part_of(self.cluster, counts),
                replace(self.workload, batch=batch),
                self._goal_of(role),
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

    def _goal_of(self, role: Role) -> Goal:
        """Return the goal of one pool: the bound of the other phase is not its business."""
        goal, other = self.goal, {"prefill": "tpot", "decode": "ttft"}.get(role)
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

    def _score(self, value: float, batch: int) -> float:
        """Return what adds up (minus a rate, or a weighted mean), or what the slowest decides."""
        if self.goal.objective == "throughput":
            return -batch / value
        if self.goal.objective in SUMS:
            return value * batch / self.workload.batch
        return value

    def _joined(self, first: _Part, second: _Part) -> _Part:
        if float("inf") in (first.score, second.score):
            return NOTHING
        summed = self.goal.objective in SUMS
        score = first.score + second.score if summed else max(first.score, second.score)
        return _Part(score, first.replicas + second.replicas)

    def _value(self, score: float) -> float:
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

    def _most_replicas(self) -> int:
        if self.options.n_replicas is not None:
            return self.options.n_replicas
        return min(sum(self.whole), self.workload.batch)

    def _loose_bound(self) -> float:
        """Return a bound for all deployments that needs no partition."""
        return fluid_bound_s(self.inputs, self.cluster, self.workload, self.goal, self.options)


def in_proportion(total: int, rates: Sequence[float]) -> list[int]:
    """Return whole numbers of at least 1 that sum to ``total``, in proportion to the rates (largest rest)."""
    spare = total - len(rates)
    exact = [spare * rate / sum(rates) for rate in rates]
    parts = [int(x) for x in exact]
    by_rest = sorted(range(len(rates)), key=lambda i: parts[i] - exact[i])
    for i in by_rest[: spare - sum(parts)]:
        parts[i] += 1
    return [1 + part for part in parts]
