"""Replicas inside nodes, and pools of whole nodes, where there are too many partitions to consider all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dse.partition.layout.deployment import NOTHING, Part
from dse.partition.layout.ledger import SUMS, Ledger
from dse.partition.layout.pipeline import Role
from dse.partition.layout.shares import Counts, in_proportion
from dse.partition.problem import Goal, Objective

if TYPE_CHECKING:
    from dse.partition.layout.replicas import DeploymentSearch

MAX_FILLS = 24
POOL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of what pools share, given to the prefill


class NodeByNode:
    """Tries deployments whose replicas stay inside nodes, and pools of whole nodes.

    Every replica keeps the shared bounds by itself, and of what pools share each gets some share.
    """

    def __init__(self, search: DeploymentSearch) -> None:
        self.search = search
        self.goal, self.options, self.batch = search.goal, search.options, search.workload.batch

    def run(self) -> Part:
        """Return the best one."""
        return min(self._tried(), key=lambda found: found.score)

    def _tried(self) -> Iterator[Part]:
        search = self.search
        for used in self._used():
            if self.options.pools != "separate":
                yield self._inside_nodes(used, "both", None, search.goal_of("both"))
            if self.options.pools == "same" or search.workload.output_tokens == 1:
                continue
            for usable, counts in itertools.product(
                search.inputs.by_kv_format, itertools.product(*((0, n) if n else (0,) for n in used))
            ):
                if not 0 < sum(counts) < sum(used):
                    continue
                rest = tuple(n - c for n, c in zip(used, counts, strict=True))
                for share in self._shares_of_prefill():
                    prefill = self._inside_nodes(
                        counts, "prefill", usable, self._goal_in_pool("prefill", share)
                    )
                    decode = self._inside_nodes(
                        rest, "decode", usable, self._goal_in_pool("decode", 1 - share)
                    )
                    score = search.of_pools(prefill.score, decode.score)
                    yield Part(score, prefill.replicas + decode.replicas)

    def _used(self) -> Iterator[Counts]:
        """Yield devices of every node within the limit on all, kinds of nodes filled one after the other."""
        most, search = self.goal.max_devices, self.search
        if search.alone or most is None or most >= sum(search.whole):
            yield search.whole
            return
        nodes = list(zip(search.names, search.whole, strict=True))
        for order in itertools.islice(itertools.permutations(set(search.kinds.values())), MAX_FILLS):
            left, used = most, dict.fromkeys(search.names, 0)
            for name, n in sorted(nodes, key=lambda node: order.index(search.kinds[node[0]])):
                used[name] = min(n, left)
                left -= used[name]
            yield tuple(used.values())

    def _shares_of_prefill(self) -> tuple[float, ...]:
        """Return which shares of what pools share the prefill may take."""
        return POOL_SHARES if {"time", "energy", "cost"} & set(self.goal.bounds) else (0.5,)

    def _goal_in_pool(self, role: Role, share: float) -> Goal:
        """Return the goal of one pool with its share of what pools share."""
        ledger = Ledger(self.goal, self.search.workload, separate=True)
        upper: dict[Objective, float] = {
            name: self.goal.bounds["throughput"]
            if name == "throughput"
            else ledger.value(name, share * limit, self.batch, role)
            for name, limit in ledger.shared.items()
        }
        return ledger.goal_of(role, ledger.names(role)[0], upper)

    def _inside_nodes(self, counts: Counts, role: Role, usable: NDArray[np.bool_] | None, goal: Goal) -> Part:
        """Return good replicas that stay inside nodes: one size of replica for every kind of node.

        The requests are shared out in proportion to the throughput of the replicas.
        """
        whole = self.search.replica(counts, self.batch, role, usable, goal=goal)
        found = whole if self.options.n_replicas in (None, 1) else NOTHING
        if self.options.n_replicas == 1:
            return found
        kinds: dict[int, list[int]] = {}
        for index, (name, count) in enumerate(zip(self.search.names, counts, strict=True)):
            if count:
                kinds.setdefault(self.search.kinds[name], []).append(index)
        choices = [[0, *(s for s in (1, 2, 4, 8, 16) if s <= counts[nodes[0]])] for nodes in kinds.values()]
        ranked: list[tuple[float, tuple[int, ...]]] = []
        for sizes in itertools.product(*choices):
            bundles = self._bundles(sizes, list(kinds.values()), counts)
            if not 1 < len(bundles) <= self.batch or len(bundles) != (
                self.options.n_replicas or len(bundles)
            ):
                continue
            even = max(1, self.batch // len(bundles))
            even = 1 << (even.bit_length() - 1)
            rates = [self._rate(bundle, even, role, usable, goal) for bundle in bundles]
            if min(rates) > 0:
                ranked.append((-sum(rates), sizes))
        for _, sizes in sorted(ranked)[:3]:
            bundles = self._bundles(sizes, list(kinds.values()), counts)
            even = 1 << (max(1, self.batch // len(bundles)).bit_length() - 1)
            rates = [self._rate(bundle, even, role, usable, goal) for bundle in bundles]
            parts = [
                self.search.replica(bundle, size, role, usable, goal=goal)
                for bundle, size in zip(bundles, in_proportion(self.batch, rates), strict=True)
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

    def _rate(
        self, bundle: Counts, batch: int, role: Role, usable: NDArray[np.bool_] | None, goal: Goal
    ) -> float:
        part = self.search.replica(bundle, batch, role, usable, goal=goal)
        if part.score == float("inf"):
            return 0.0
        value = part.replicas[0].pipeline.value
        return 1.0 / value if self.goal.objective in SUMS else batch / value

    def _joined(self, first: Part, second: Part) -> Part:
        if float("inf") in (first.score, second.score):
            return NOTHING
        score = first.score + second.score if self.search.summed else max(first.score, second.score)
        return Part(score, first.replicas + second.replicas)
