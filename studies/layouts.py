"""A layout of a whole cluster: tensor parallelism, chunks, replicas and pools, and what they do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dse.errors import NoFeasiblePlan
from dse.evaluate.plan_cost import PlanCost, predict
from dse.partition.branch import Limits
from dse.partition.layout.deployment import Deployment, Replica
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.ledger import Ledger
from dse.partition.layout.pipeline import LayoutOptions, degrees_of
from dse.partition.layout.replicas import best_deployment
from dse.partition.objective import stage_use
from dse.partition.problem import Goal, Objective
from dse.plan import Plan
from dse.sensitivity.table import SensitivityTable
from studies.arrange import Arranger
from studies.prepare import Prepared
from studies.schema import Study

GAP_FRAC = 1e-3  # improvements below this are not looked for: groupings are many and alike


@dataclass(frozen=True)
class PlannedReplica:
    """One pipeline of a layout: its plan, its part of every batch and of the load, the phases it serves."""

    plan: Plan
    replica: Replica
    cost: PlanCost | None


@dataclass(frozen=True)
class PlannedLayout:
    """A layout with its proof; ``predicted`` is of all replicas together."""

    deployment: Deployment
    replicas: tuple[PlannedReplica, ...]
    predicted: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the plan document: that of the replica with the largest share, and all of them."""
        first = max(self.replicas, key=lambda entry: entry.replica.share_frac)
        found = self.deployment
        return {
            **first.plan.to_json(),
            "replicas": [self._replica(entry) for entry in self.replicas],
            "pools": "separate" if found.separate else "same",
            "predicted": self.predicted,
            "solver": {
                "status": found.status,
                "value": found.value,
                "bound": found.bound,
                "gap_frac": found.gap_frac,
                "time_s": found.time_s,
                "binding": first.replica.pipeline.solution.binding,
                "penalty": max(e.replica.pipeline.solution.penalty or 0.0 for e in self.replicas),
                "all_partitions": found.exact,
            },
        }

    def _replica(self, entry: PlannedReplica) -> dict[str, Any]:
        solution = entry.replica.pipeline.solution
        return {
            **entry.plan.to_json(),
            "role": entry.replica.role,
            "batch": entry.replica.batch,
            "share_frac": entry.replica.share_frac,
            "value": solution.value,
            "binding": solution.binding,
        }


def plan_layout(
    study: Study,
    prepared: Prepared,
    sensitivity: SensitivityTable,
    goal: Goal,
    options: LayoutOptions,
    time_limit_s: float,
) -> PlannedLayout:
    """Return the best layout.

    Raises:
        NoFeasiblePlan: none fits.
    """
    arranger = Arranger(study, prepared, sensitivity)
    inputs = ModelInputs(
        prepared.graph,
        prepared.units,
        prepared.precisions,
        sensitivity,
        prepared.runtime,
        arranger.searched,
    )
    limits = Limits(time_s=time_limit_s, gap_frac=GAP_FRAC)
    found = best_deployment(inputs, prepared.cluster, study.workload, goal, options, limits)
    if found.value is None:
        raise NoFeasiblePlan(
            f"{study.model} does not fit {study.cluster} in any of the layouts asked for"
            + ("" if found.exact else " that the search looked at; more time may find one")
        )
    taken: set[str] = set()
    replicas: list[PlannedReplica] = []
    for replica in found.replicas:
        planned = _planned(replica, inputs, prepared, study, taken, options)
        taken.update(device for stage in planned.plan.stages for device in stage.devices)
        replicas.append(planned)
    return PlannedLayout(found, tuple(replicas), _predicted(replicas, study, prepared))


def _planned(
    replica: Replica,
    inputs: ModelInputs,
    prepared: Prepared,
    study: Study,
    taken: set[str],
    options: LayoutOptions,
) -> PlannedReplica:
    problem, arrangement = replica.pipeline.problem, replica.pipeline.solution.arrangement
    assert problem is not None
    assert arrangement is not None
    plan = problem.plan_from(arrangement, model=study.model, granularity=study.granularity, taken=taken)
    if replica.role != "both" or plan.offloaded_layers:
        return PlannedReplica(plan, replica, None)
    workload = replace(study.workload, batch=replica.batch)
    degrees = degrees_of(inputs, prepared.cluster, options)
    table = inputs.table(prepared.cluster, workload, degrees, replica.pipeline.n_chunks)
    return PlannedReplica(plan, replica, predict(plan, table, prepared.cluster, workload))


def _predicted(replicas: Sequence[PlannedReplica], study: Study, prepared: Prepared) -> dict[str, Any]:
    """Return what a layout does: latencies of the slowest replica, throughputs added, means by requests.

    Energy and cost count a replica's devices while they work on a batch; ``steady_usd_per_mtok`` is the rent
    of all of them at the throughput of the slower pool.
    """
    latency, rates = _latencies(replicas), _rates(replicas, study)
    devices = [device for r in replicas for stage in r.plan.stages for device in stage.devices]
    prices = [prepared.cluster.spec_of(device).price_usd_per_h for device in devices]
    known = [price for price in prices if price is not None]
    usd_per_h = sum(known) if len(known) == len(prices) else None
    steady = min(rates.values())
    total_s = latency["ttft_s"] + (study.workload.output_tokens - 1) * latency["tpot_s"]
    costs = [r.cost for r in replicas if r.cost is not None]
    if len(costs) == len(replicas):
        total_s = max(cost.total_s for cost in costs)
    predicted: dict[str, Any] = {
        **latency,
        "total_s": total_s,
        "throughput_tokens_per_s": study.workload.batch * study.workload.output_tokens / total_s,
        "steady_tokens_per_s": steady,
        "devices": len(devices),
        "usd_per_h": usd_per_h,
        "energy_j_per_token": _mean(replicas, study, "energy"),
        "cost_usd_per_mtok": None if usd_per_h is None else _mean(replicas, study, "cost"),
        "steady_usd_per_mtok": None if usd_per_h is None else usd_per_h / 3600 / steady * 1e6,
        "memory_bytes": {device: size for r in replicas for device, size in _memory_bytes(r).items()},
    }
    if len(costs) == len(replicas):
        predicted["provenance"] = costs[0].provenance
    return predicted


def _mean(replicas: Sequence[PlannedReplica], study: Study, name: Objective) -> float | None:
    """Return the energy or cost of a token, None where that of some replica is unknown."""
    separate = any(entry.replica.role != "both" for entry in replicas)
    ledger = Ledger(Goal(objective=name), study.workload, separate)
    parts = []
    for entry in replicas:
        value = _own(entry, name)
        if value is None:
            return None
        parts.append((entry.replica.role, ledger.part(name, value, entry.replica.batch, entry.replica.role)))
    return ledger.total(name, parts)


def _own(entry: PlannedReplica, name: Objective) -> float | None:
    if entry.cost is not None:
        return entry.cost.energy_j_per_token if name == "energy" else entry.cost.cost_usd_per_mtok
    problem = entry.replica.pipeline.problem
    if name == "energy" and (problem is None or problem.problem.energy is None):
        return None
    return entry.replica.quantity(name)


def _memory_bytes(entry: PlannedReplica) -> dict[str, float]:
    if entry.cost is not None:
        return {device: use.total - use.reserve for device, use in entry.cost.memory_bytes.items()}
    problem, arrangement = entry.replica.pipeline.problem, entry.replica.pipeline.solution.arrangement
    assert problem is not None
    assert arrangement is not None
    sizes = stage_use(problem.problem, arrangement).memory_bytes
    return {
        device: float(size) / len(stage.devices)
        for stage, size in zip(entry.plan.stages, sizes, strict=True)
        for device in stage.devices
    }


def _latencies(replicas: Sequence[PlannedReplica]) -> dict[str, float]:
    found = {"ttft_s": 0.0, "tpot_s": 0.0}
    for entry in replicas:
        if entry.replica.role != "decode":
            found["ttft_s"] = max(found["ttft_s"], entry.replica.quantity("ttft"))
        if entry.replica.role != "prefill":
            found["tpot_s"] = max(found["tpot_s"], entry.replica.quantity("tpot"))
    return found


def _rates(replicas: Sequence[PlannedReplica], study: Study) -> dict[str, float]:
    """Return generated tokens per second in steady state, by role."""
    rates: dict[str, float] = {}
    for entry in replicas:
        tokens = entry.replica.batch * study.workload.output_tokens
        own = tokens / entry.replica.quantity("throughput")
        rates[entry.replica.role] = rates.get(entry.replica.role, 0.0) + own
    return rates
