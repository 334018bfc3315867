"""What a plan costs: its stages' times put together by the pipeline's algebra, memory, energy and money.

Intervals: 80 % of the kernels of one class lie inside theirs. The errors of a plan's kernels are not
independent (they share constants, clock and software), so they are combined as if all erred alike: every
stage at its low end, then every stage at its high end, each through the same algebra. That is the widest
that such errors allow; independent ones would leave a narrower interval. Transfers are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from cost_models.energy import co2e_g
from cost_models.memory import MemoryUse, kv_cache_bytes
from cost_models.money import usd_per_mtok
from cost_models.pipeline import PipelineTimes, pipeline_times
from cost_models.simulate import simulate_pipeline
from cost_models.work import Provenance
from dse.evaluate.cost_table import Array, CostTable
from dse.evaluate.stage_costs import DECODE, PREFILL, StageCosts, micro_indices, stage_costs, stage_type
from dse.graph.workload import Workload
from dse.plan import Plan
from hardware_specs.spec import Cluster


@dataclass(frozen=True)
class PlanCost:
    """Predicted cost of a plan. Dictionaries are keyed by device name (``node/index``).

    Attributes:
        stage_prefill_s, stage_decode_s: (S,) one micro-batch on each stage; hop_*: (S - 1,) between them.
        ttft_s: until every request has its first token; tpot_s: one decode round; total_s: the whole batch.
        throughput_tokens_per_s: generated tokens over total time.
        ttft_interval_s, tpot_interval_s, total_interval_s: (low, high) of the three, see the module.
        energy_j_per_token: dynamic energy of devices and links, and static energy of the plan's devices over
            the whole time, per generated token. ``energy_excludes`` maps devices to the parts of it that are
            unknown and counted as 0: "static", "memory", "compute".
        energy_j_per_request, co2e_g_per_request: per sequence; grams only where the grid's intensity is
            known.
        cost_usd_per_mtok: rent of the plan's devices per million generated tokens, None where unknown.
        memory_bytes: what each device holds; missing_bytes: by how much it exceeds the device, 0 if it fits.
    """

    stage_prefill_s: tuple[float, ...]
    stage_decode_s: tuple[float, ...]
    hop_prefill_s: tuple[float, ...]
    hop_decode_s: tuple[float, ...]
    ttft_s: float
    tpot_s: float
    total_s: float
    bubble_frac: float
    throughput_tokens_per_s: float
    ttft_interval_s: tuple[float, float]
    tpot_interval_s: tuple[float, float]
    total_interval_s: tuple[float, float]
    energy_j_per_token: float
    energy_j_per_request: float
    energy_excludes: dict[str, tuple[str, ...]] = field(hash=False)
    co2e_g_per_request: float | None
    cost_usd_per_mtok: float | None
    memory_bytes: dict[str, MemoryUse] = field(hash=False)
    missing_bytes: dict[str, float] = field(hash=False)
    provenance: Provenance

    @property
    def fits(self) -> bool:
        """Whether every device holds its part."""
        return not any(self.missing_bytes.values())

    @property
    def energy_excludes_static(self) -> tuple[str, ...]:
        """Devices whose static power is unknown."""
        return tuple(device for device, parts in self.energy_excludes.items() if "static" in parts)

    @property
    def memory_total_bytes(self) -> float:
        """Sum over the devices."""
        return sum(use.total for use in self.memory_bytes.values())


def predict(
    plan: Plan,
    table: CostTable,
    cluster: Cluster,
    workload: Workload,
    grid_g_per_kwh: float | None = None,
) -> PlanCost:
    """Return the predicted cost of serving one batch of the workload with a plan.

    The last micro-batch of a batch that its size does not divide is charged as a full one. Hops are stations
    of the pipeline, one micro-batch at a time (see ``pipeline_times``). ``grid_g_per_kwh`` are grams of CO2e
    per kWh of the grid, the cluster's own where None.

    Raises:
        ConfigError: the plan names units, micro-batches, devices or groups that the table or cluster lack,
            or puts a device into two stages.
        UnsupportedOnDevice: a unit's precision does not run on its device.
    """
    stages = stage_costs(plan, table, cluster)
    n_micro = _n_micro_batches(plan, table, workload)
    times = _times(stages.time_s, stages, n_micro, workload)
    ends = [_times(span_s, stages, n_micro, workload) for span_s in stages.span_s]
    runs = np.array([n_micro[PREFILL], n_micro[DECODE] * (workload.output_tokens - 1)])
    n_tokens = workload.batch * workload.output_tokens
    devices = [device for stage in plan.stages for device in stage.devices]
    types = [table.devices.index(stage_type(cluster, stage)) for stage in plan.stages]
    dynamic_j = float(runs @ (stages.energy_j.sum(axis=1) + stages.hop_j.sum(axis=1)))
    static_j = float(table.static_w[types].sum()) * times.total_s
    memory = _memory(plan, table, workload, stages, types)
    throughput = n_tokens / times.total_s
    energy_j = dynamic_j + static_j
    intensity = cluster.grid_g_per_kwh if grid_g_per_kwh is None else grid_g_per_kwh
    gaps = {
        device: table.energy_gaps[kind]
        for stage, kind in zip(plan.stages, types, strict=True)
        for device in stage.devices
        if table.energy_gaps[kind]
    }
    prices = [cluster.spec_of(device).price_usd_per_h for device in devices]
    known = [price for price in prices if price is not None]
    return PlanCost(
        stage_prefill_s=tuple(stages.time_s[PREFILL].tolist()),
        stage_decode_s=tuple(stages.time_s[DECODE].tolist()),
        hop_prefill_s=tuple(stages.hop_s[PREFILL].tolist()),
        hop_decode_s=tuple(stages.hop_s[DECODE].tolist()),
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        total_s=times.total_s,
        bubble_frac=times.bubble_frac,
        throughput_tokens_per_s=throughput,
        ttft_interval_s=(ends[0].ttft_s, ends[1].ttft_s),
        tpot_interval_s=(ends[0].tpot_s, ends[1].tpot_s),
        total_interval_s=(ends[0].total_s, ends[1].total_s),
        energy_j_per_token=energy_j / n_tokens,
        energy_j_per_request=energy_j / workload.batch,
        energy_excludes=gaps,
        co2e_g_per_request=None if intensity is None else float(co2e_g(energy_j / workload.batch, intensity)),
        cost_usd_per_mtok=usd_per_mtok(sum(known), throughput) if len(known) == len(prices) else None,
        memory_bytes=memory,
        missing_bytes={
            device: use.missing_bytes(cluster.capacity_bytes(device)) for device, use in memory.items()
        },
        provenance=table.provenance,
    )


def _n_micro_batches(plan: Plan, table: CostTable, workload: Workload) -> tuple[int, int]:
    """Return the passes of prefill and of a decode round."""
    n_prefill = ceil(workload.batch / plan.prefill_micro_batch) * table.n_chunks
    return n_prefill, ceil(workload.batch / plan.decode_micro_batch)


def _times(time_s: Array, stages: StageCosts, n_micro: tuple[int, int], workload: Workload) -> PipelineTimes:
    """Put (P, S) stage times together."""
    return pipeline_times(
        time_s[PREFILL],
        time_s[DECODE],
        stages.hop_s[PREFILL],
        stages.hop_s[DECODE],
        n_micro[PREFILL],
        n_micro[DECODE],
        workload.output_tokens,
    )


def plan_timeline(
    plan: Plan, table: CostTable, cluster: Cluster, workload: Workload, n_rounds: int = 3
) -> list[dict[str, Any]]:
    """Return when each device works on which micro-batch, in the prefill and the first decode rounds.

    Rows are {device, phase, micro_batch, start_s, end_s}; a transfer is a row whose device is
    ``first -> second``. Decode steps take their mean time.
    """
    stages = stage_costs(plan, table, cluster)
    names: list[str] = [plan.stages[0].devices[0]]
    for before, after in pairwise(plan.stages):
        names += [f"{before.devices[0]} -> {after.devices[0]}", after.devices[0]]
    intervals = simulate_pipeline(
        stages.time_s[PREFILL].tolist(),
        stages.time_s[DECODE].tolist(),
        stages.hop_s[PREFILL].tolist(),
        stages.hop_s[DECODE].tolist(),
        *_n_micro_batches(plan, table, workload),
        min(workload.output_tokens, n_rounds + 1),
    )
    return [
        {
            "device": names[interval.station],
            "phase": interval.phase,
            "micro_batch": interval.micro_batch,
            "start_s": interval.start_s,
            "end_s": interval.end_s,
        }
        for interval in intervals
    ]


def _memory(
    plan: Plan, table: CostTable, workload: Workload, stages: StageCosts, types: list[int]
) -> dict[str, MemoryUse]:
    """Return what each device holds: the cache of the whole batch at full length, with recurrent states.

    Devices that share layers hold equal parts of weights and cache, and whole activations; more of them than
    KV heads hold copies of the cache.
    """
    micro = micro_indices(plan, table)
    activations = float(max(table.activation_bytes[p, m] for p, m in enumerate(micro)))
    last = len(plan.stages) - 1
    memory: dict[str, MemoryUse] = {}
    for s, stage in enumerate(plan.stages):
        weights = float(stages.weight_bytes[s])
        weights += table.first_bytes * (s == 0) + table.last_bytes * (s == last)
        weights -= table.tied_bytes * (s == 0 == last)
        kv = kv_cache_bytes(workload.batch, workload.total_context, float(stages.kv_bytes_per_token[s]))
        kv += workload.batch * float(table.layer_state_bytes[slice(*stage.layers)].sum())
        share = 1.0 / len(stage.devices)
        for device in stage.devices:
            memory[device] = MemoryUse(
                weights=weights * share,
                kv=kv * share,
                activations=activations,
                reserve=float(table.reserve_bytes[types[s]]),
            )
    return memory
