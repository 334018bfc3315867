"""Every split of a tiny cluster under bounds: what whole deployments come to in all quantities at once.

Plans are enumerated and priced by ``dse.evaluate``; deployments are put together by the definitions, one
replica after the other. Of equal splits only what is nowhere worse is kept. No code of the planner is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from dse.evaluate.cost_table import CostTable
from dse.evaluate.plan_cost import PlanCost, predict
from dse.graph.workload import Workload
from dse.partition.layout.inputs import part_of
from dse.plan import Plan
from tests.layout_oracle import TinyInstance, every_plan

QUANTITIES = ("time", "ttft", "tpot", "throughput", "energy", "cost")
ADDED = np.array([False, False, False, True, True, True])
STATIC_W = 50.0  # of every device of a tiny instance
Counts = tuple[int, ...]


@dataclass
class EveryBoundedDeployment:
    """Rows of quantities: seconds, minus requests per second, joules and dollars of the whole batch."""

    instance: TinyInstance
    names: tuple[str, ...]
    _plans: dict[object, np.ndarray] = field(default_factory=dict)
    _fronts: dict[object, np.ndarray] = field(default_factory=dict)

    @property
    def columns(self) -> list[int]:
        """Of the quantities that count."""
        return [QUANTITIES.index(name) for name in self.names]

    def best(self, objective: str, bounds: Mapping[str, float], pools: str, most: int | None) -> float | None:
        """The least objective within bounds, in the units of ``Goal``; None where nothing keeps them."""
        table = self.deployments(pools, most)
        for name, limit in bounds.items():
            table = table[table[:, QUANTITIES.index(name)] <= limit * (1 + 1e-9)]
        return float(table[:, QUANTITIES.index(objective)].min()) if len(table) else None

    def deployments(self, pools: str, most: int | None) -> np.ndarray:
        """Rows of deployments in the units of ``Goal``; of equal or worse ones some are left out."""
        workload = self.instance.workload
        whole = tuple(node.n_devices for node in self.instance.cluster.nodes)
        n_tokens = workload.batch * workload.output_tokens
        rows = []
        for counts in itertools.product(*(range(n + 1) for n in whole)):
            if sum(counts) > (most or sum(whole)):
                continue
            if pools != "separate":
                rows.append(self.front(counts, workload.batch, "both"))
            if pools != "same" and workload.output_tokens > 1:
                rows.append(self.pools(counts))
        table = np.concatenate([np.zeros((0, len(QUANTITIES))), *rows])
        table[:, 3] = -workload.batch / np.where(table[:, 3] < 0, table[:, 3], -1.0)
        table[:, 4] /= n_tokens
        table[:, 5] *= 1e6 / n_tokens
        return table

    def pools(self, counts: Counts) -> np.ndarray:
        """What a pool for each phase comes to on so many devices."""
        batch, found = self.instance.workload.batch, [np.zeros((0, len(QUANTITIES)))]
        for first in itertools.product(*(range(n + 1) for n in counts)):
            rest = tuple(a - b for a, b in zip(counts, first, strict=True))
            prefill, decode = self.front(first, batch, "prefill"), self.front(rest, batch, "decode")
            rows = (prefill[:, None, :] + decode[None, :, :]).reshape(-1, len(QUANTITIES))
            slower = np.maximum(prefill[:, None, 3], decode[None, :, 3]).reshape(-1)
            rows[:, 3] = slower
            found.append(rows)
        return np.concatenate(found)

    def front(self, counts: Counts, batch: int, role: str) -> np.ndarray:
        """What any number of replicas comes to on at most so many devices."""
        key = (counts, batch, role)
        if key not in self._fronts:
            rows = [np.zeros((0, len(QUANTITIES)))]
            for bundle in itertools.product(*(range(n + 1) for n in counts)):
                left = tuple(a - b for a, b in zip(counts, bundle, strict=True))
                if sum(bundle):
                    for size in range(1, batch + 1):
                        own = self.plans(bundle, size, role)
                        if size == batch:
                            rows.append(own)
                            continue
                        others = self.front(left, batch - size, role)
                        sums = own[:, None, :] + others[None, :, :]
                        largest = np.maximum(own[:, None, :], others[None, :, :])
                        rows.append(np.where(ADDED, sums, largest).reshape(-1, len(QUANTITIES)))
            self._fronts[key] = self._best_rows(np.concatenate(rows))
        return self._fronts[key]

    def plans(self, counts: Counts, batch: int, role: str) -> np.ndarray:
        """What one replica comes to."""
        names = [node.name for node in self.instance.cluster.nodes]
        key = (tuple(zip(names, counts, strict=True)), batch, role)
        if key not in self._plans:
            cluster = part_of(self.instance.cluster, dict(zip(names, counts, strict=True)))
            inputs, whole = self.instance.inputs, self.instance.workload
            output = 1 if role == "prefill" else whole.output_tokens
            workload = replace(whole, batch=batch, output_tokens=output)
            degrees = inputs.degrees(max(counts))
            table = inputs.table(cluster, workload, degrees)
            sizes = [size for size in range(1, batch + 1) if batch % size == 0]
            plans = every_plan(
                table, cluster, workload, degrees, sizes, self.instance.penalty, self.instance.max_penalty
            )
            rows = [self._row(plan, cost, table, workload, role) for plan, cost in plans]
            self._plans[key] = self._best_rows(np.array(rows).reshape(-1, len(QUANTITIES)))
        return self._plans[key]

    def _row(
        self, plan: Plan, cost: PlanCost, table: CostTable, workload: Workload, role: str
    ) -> list[float]:
        k, m = workload.batch // plan.prefill_micro_batch, workload.batch // plan.decode_micro_batch
        rounds = workload.output_tokens - 1
        prefill = [*cost.stage_prefill_s, *cost.hop_prefill_s]
        decode = [*cost.stage_decode_s, *cost.hop_decode_s]
        devices = [device for stage in plan.stages for device in stage.devices]
        watts = STATIC_W * len(devices)
        dynamic_j = self._dynamic_j(plan, cost, workload, watts)
        if role == "prefill":
            seconds, joules = self._handover(plan.prefill_micro_batch)
            prefill.append(seconds)
            dynamic_j += k * joules
        if role == "decode":
            alone = replace(workload, output_tokens=1)
            cluster = self.instance.cluster
            dynamic_j -= self._dynamic_j(plan, predict(plan, table, cluster, alone), alone, watts)
            k, prefill = 0, [0.0]
        if role == "prefill":
            decode = [0.0] * len(prefill)
        ttft = sum(prefill) + (k - 1) * max(prefill)
        tpot = max(sum(decode), m * max(decode))
        pairs = itertools.zip_longest(prefill, decode, fillvalue=0.0)
        busiest = max(k * p + rounds * m * d for p, d in pairs)
        period = max(busiest, sum(prefill) + rounds * sum(decode))
        total = ttft + rounds * tpot
        prices = [self.instance.cluster.spec_of(device).price_usd_per_h or 0.0 for device in devices]
        usd = sum(prices) / 3600 * total
        return [total, ttft, tpot, -workload.batch / period, dynamic_j + watts * total, usd]

    def _dynamic_j(self, plan: Plan, cost: PlanCost, workload: Workload, watts: float) -> float:
        return cost.energy_j_per_token * workload.batch * workload.output_tokens - watts * cost.total_s

    def _handover(self, size: int) -> tuple[float, float]:
        """Seconds and joules of the cache of so many prompts: 16 bits of keys and values of every head."""
        attention = next(op.attention for op in self.instance.inputs.graph.blocks[0].ops if op.attention)
        width = 2 * attention.n_kv_heads * attention.head_dim * 2.0
        moved = size * self.instance.workload.prompt_tokens * width * self.instance.inputs.n_layers
        link = self.instance.cluster.inter_link
        assert link is not None
        return float(p2p_time_s(moved, link)), float(link_energy_j(moved, link))

    def _best_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows that no other one equals or beats in everything that counts."""
        return rows[_undominated(rows[:, self.columns])]


def _undominated(rows: np.ndarray) -> Sequence[int]:
    kept: list[int] = []
    for i in np.lexsort(rows.T[::-1]):
        if not kept or not (rows[kept] <= rows[i]).all(axis=1).any():
            kept.append(int(i))
    return kept
