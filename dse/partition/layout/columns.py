"""Replicas and pools over all partitions of the devices and the requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dse.partition.layout.fluid import fluid_bound_s
from dse.partition.layout.inputs import part_of
from dse.partition.layout.pipeline import Role
from dse.partition.layout.shares import Counts, Shares, bundles_of, splits, within
from dse.partition.problem import Array

if TYPE_CHECKING:
    from dse.partition.layout.deployment import Replica
    from dse.partition.layout.replicas import DeploymentSearch


@dataclass(frozen=True, eq=False)
class _Pool:
    """Replicas of one role, with the choices of one cache format."""

    role: Role
    usable: NDArray[np.bool_] | None


_Form = tuple[tuple[_Pool, Counts], ...]


class ColumnSearch:
    """Replicas and pools over all partitions, pricing a replica only where it could be part of the best.

    Every column (devices, requests, role) has a bound: that of the devices' work at first, then the exact
    solve's. The best deployment by bounds is found by dynamic programming, its columns are priced, and so on
    until it consists of priced ones: then nothing is better (column generation by complete enumeration).
    """

    def __init__(self, search: DeploymentSearch) -> None:
        self.search = search
        self.goal, self.options, self.batch = search.goal, search.options, search.workload.batch
        self.bundles = [bundle for bundle in bundles_of(search.whole) if sum(bundle)]
        self.lower: dict[_Pool, dict[Counts, Array]] = {}
        self.tier: dict[tuple[_Pool, Counts, int], int] = {}
        self.priced: dict[_Pool, dict[Counts, Array]] = {}
        self.pools = self._pools()
        whole = within(search.whole, self.goal.max_devices)
        parts = splits(search.whole, self.goal.max_devices)
        self.forms: list[_Form] = [
            form
            for pools in self.pools
            for form in (
                [((pools[0], c),) for c in whole]
                if len(pools) == 1
                else [((pools[0], a), (pools[1], b)) for a, b in parts]
            )
        ]

    def run(self) -> tuple[float, float, tuple[Replica, ...]]:
        """Return score, bound and replicas."""
        self._seed()
        while self.search.time_left():
            shares = self._shares(self.lower)
            form = min(self.forms, key=lambda form: self._score(form, shares), default=None)
            if form is None or self._score(form, shares) == float("inf"):
                break
            picked = [(pool, bundle, size) for pool, c in form for bundle, size in shares[pool].taken(c)]
            again = [column for column in dict.fromkeys(picked) if self.tier.get(column, 0) < 2]
            if not again:
                break
            for column in again:
                if self.search.time_left():
                    self._raise(column)
        return self._answer()

    def _answer(self) -> tuple[float, float, tuple[Replica, ...]]:
        lower, priced = self._shares(self.lower), self._shares(self.priced)
        bound = min((self._score(form, lower) for form in self.forms), default=float("inf"))
        form = min(self.forms, key=lambda form: self._score(form, priced), default=None)
        if form is None or (score := self._score(form, priced)) == float("inf"):
            return float("inf"), bound, ()
        replicas = [
            replica
            for pool, c in form
            for bundle, size in priced[pool].taken(c)
            for replica in self.search.replica(bundle, size, pool.role, pool.usable, proven=False).replicas
        ]
        return score, bound, tuple(replicas)

    def _pools(self) -> list[tuple[_Pool, ...]]:
        found: list[tuple[_Pool, ...]] = []
        if self.options.pools != "separate":
            found.append((_Pool("both", None),))
        if self.options.pools != "same" and self.search.workload.output_tokens > 1:
            found += [
                (_Pool("prefill", usable), _Pool("decode", usable))
                for usable in self.search.inputs.by_kv_format
            ]
        for pools in found:
            for pool in pools:
                bounds = [self._work(self.search.whole, size, pool.role) for size in range(1, self.batch + 1)]
                self.lower[pool] = {bundle: np.array([np.inf, *bounds]) for bundle in self.bundles}
                empty = np.full(self.batch + 1, np.inf)
                self.priced[pool] = {bundle: empty.copy() for bundle in self.bundles}
        return found

    def _seed(self) -> None:
        """Price all devices for all requests."""
        for pools in self.pools:
            if pools[0].role == "both" and self.options.n_replicas in (None, 1):
                for counts in within(self.search.whole, self.goal.max_devices)[:1]:
                    column = pools[0], counts, self.batch
                    self.tier[column] = 1
                    self._raise(column)

    def _raise(self, column: tuple[_Pool, Counts, int]) -> None:
        """Bound a column by the work of its own devices; the second time, price it."""
        pool, bundle, size = column
        tier = self.tier[column] = self.tier.get(column, 0) + 1
        if tier == 1:
            bound = self._work(bundle, size, pool.role)
        else:
            proven, priced = (
                self.search.replica(bundle, size, pool.role, pool.usable, proven=proven).score
                for proven in (True, False)
            )
            self.priced[pool][bundle][size] = priced
            bound = proven
        self.lower[pool][bundle][size] = max(self.lower[pool][bundle][size], bound)

    def _work(self, bundle: Counts, size: int, role: Role) -> float:
        """Return the score that the work of a replica alone allows at best; nothing when time is up."""
        search = self.search
        if not search.time_left():
            return -np.inf
        cluster = part_of(search.cluster, dict(zip(search.names, bundle, strict=True)))
        workload = replace(search.workload, batch=size)
        bound = fluid_bound_s(search.inputs, cluster, workload, search.goal_of(role), search.options, role)
        return search.score_of(bound, size) if bound > 0 else -np.inf

    def _shares(self, columns: dict[_Pool, dict[Counts, Array]]) -> dict[_Pool, Shares]:
        return {
            pool: Shares(scores, self.batch, self.options.n_replicas, self.search.summed)
            for pool, scores in columns.items()
        }

    def _score(self, form: _Form, shares: dict[_Pool, Shares]) -> float:
        scores = [shares[pool].score(counts) for pool, counts in form]
        return scores[0] if len(scores) == 1 else self.search.of_pools(*scores)
