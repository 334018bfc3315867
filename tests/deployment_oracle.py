"""Every split of a tiny cluster's devices and requests into replicas and pools, with the plans of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from cost_models.collectives import p2p_time_s
from dse.partition.layout.inputs import part_of
from tests.layout_oracle import TinyInstance, every_plan, period_s, value_of


@dataclass(frozen=True)
class EveryDeployment:
    """Values of a batch on so many devices of each node, by enumeration."""

    instance: TinyInstance
    objective: str

    @cached_property
    def _values(self) -> dict[object, float | None]:
        return {}

    def value(self, counts: tuple[int, ...], batch: int, role: str) -> float | None:
        """The least value of one pipeline of a role; None where none fits."""
        key = (counts, batch, role)
        if key not in self._values:
            self._values[key] = self._least(counts, batch, role)
        return self._values[key]

    def _least(self, counts: tuple[int, ...], batch: int, role: str) -> float | None:
        whole = self.instance
        names = [node.name for node in whole.cluster.nodes]
        cluster = part_of(whole.cluster, dict(zip(names, counts, strict=True)))
        output = 1 if role == "prefill" else whole.workload.output_tokens
        workload = replace(whole.workload, batch=batch, output_tokens=output)
        degrees = whole.inputs.degrees(max(counts))
        table = whole.inputs.table(cluster, workload, degrees)
        sizes = [size for size in range(1, batch + 1) if batch % size == 0]
        best: float | None = None
        plans = every_plan(table, cluster, workload, degrees, sizes, whole.penalty, whole.max_penalty)
        for plan, cost in plans:
            k, m = batch // plan.prefill_micro_batch, batch // plan.decode_micro_batch
            if role == "prefill":
                stations = [*cost.stage_prefill_s, *cost.hop_prefill_s]
                stations.append(self._handover_s(plan.prefill_micro_batch))
                value = sum(stations) + (k - 1) * max(stations)
                if self.objective == "throughput":
                    value = max(k * max(stations), sum(stations))
            elif role == "decode":
                stations = [*cost.stage_decode_s, *cost.hop_decode_s]
                value = (workload.output_tokens - 1) * max(sum(stations), m * max(stations))
                if self.objective == "tpot":
                    value = max(sum(stations), m * max(stations))
            elif self.objective == "throughput":
                value = period_s(cost, plan, workload)
            else:
                value = value_of(self.objective, cost, plan, workload)
            best = value if best is None else min(best, value)
        return best

    def _handover_s(self, size: int) -> float:
        """The cache of so many prompts over the network; 16 bits of keys and values of every head."""
        attention = next(op.attention for op in self.instance.inputs.graph.blocks[0].ops if op.attention)
        width = 2 * attention.n_kv_heads * attention.head_dim * 2.0
        layers = self.instance.inputs.n_layers
        moved = size * self.instance.workload.prompt_tokens * width * layers
        assert self.instance.cluster.inter_link is not None
        return float(p2p_time_s(moved, self.instance.cluster.inter_link))

    def splits(
        self, counts: tuple[int, ...], batch: int, n: int
    ) -> Iterator[list[tuple[tuple[int, ...], int]]]:
        """Every list of n (devices, requests) that takes at most so many devices and all requests."""
        if n == 0:
            if batch == 0:
                yield []
            return
        for bundle in itertools.product(*(range(c + 1) for c in counts)):
            if not sum(bundle):
                continue
            left = tuple(a - b for a, b in zip(counts, bundle, strict=True))
            for size in range(1, batch + 1):
                for rest in self.splits(left, batch - size, n - 1):
                    yield [(bundle, size), *rest]

    def replicas(self, counts: tuple[int, ...], role: str, n_most: int) -> float | None:
        """The least value of up to so many replicas of a role."""
        batch = self.instance.workload.batch
        best: float | None = None
        for n in range(1, n_most + 1):
            for parts in self.splits(counts, batch, n):
                values = [self.value(bundle, size, role) for bundle, size in parts]
                if None in values:
                    continue
                known = [value for value in values if value is not None]
                sizes = [size for _, size in parts]
                if self.objective == "throughput":
                    total = batch / sum(b / v for b, v in zip(sizes, known, strict=True))
                elif self.objective in ("cost", "energy"):
                    total = sum(b * v for b, v in zip(sizes, known, strict=True)) / batch
                else:
                    total = max(known)
                best = total if best is None else min(best, total)
        return best

    def pools(self, n_most: int) -> float | None:
        """The least value with a pool for each phase."""
        whole = tuple(node.n_devices for node in self.instance.cluster.nodes)
        best: float | None = None
        for counts in itertools.product(*(range(n + 1) for n in whole)):
            rest = tuple(a - b for a, b in zip(whole, counts, strict=True))
            if not sum(counts) or not sum(rest):
                continue
            prefill, decode = self.replicas(counts, "prefill", n_most), self.replicas(rest, "decode", n_most)
            if prefill is None or decode is None:
                continue
            of = {
                "time": prefill + decode,
                "throughput": max(prefill, decode),
                "ttft": prefill,
                "tpot": decode,
            }
            value = of[self.objective]
            best = value if best is None else min(best, value)
        return best
