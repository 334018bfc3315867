"""A layout of a whole cluster: tensor parallelism, chunks, replicas and pools, and what they do together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dse.errors import NoFeasiblePlan
from dse.evaluate.plan_cost import PlanCost, predict
from dse.partition.branch import Limits
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.pipeline import LayoutOptions, degrees_of
from dse.partition.layout.replicas import Deployment, Replica, best_deployment
from dse.partition.objective import quantity
from dse.partition.problem import Goal
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
    """Return what a layout does: latencies of the slowest replica, throughputs added, means by requests."""
    latency, rates = _latencies(replicas), _rates(replicas, study)
    devices = [device for r in replicas for stage in r.plan.stages for device in stage.devices]
    prices = [prepared.cluster.spec_of(device).price_usd_per_h for device in devices]
    known = [price for price in prices if price is not None]
    usd_per_h = sum(known) if len(known) == len(prices) else None
    steady = min(rates.values())
    predicted: dict[str, Any] = {
        **latency,
        "steady_tokens_per_s": steady,
        "devices": len(devices),
        "usd_per_h": usd_per_h,
        "energy_j_per_token": None,
        "cost_usd_per_mtok": None if usd_per_h is None else usd_per_h / 3600 / steady * 1e6,
        "memory_bytes": {},
    }
    costs = [(r.replica.batch, r.cost) for r in replicas if r.cost is not None]
    if len(costs) == len(replicas):
        batch = study.workload.batch
        total_s = max(cost.total_s for _, cost in costs)
        usd = [cost.cost_usd_per_mtok for _, cost in costs]
        predicted["total_s"] = total_s
        predicted["throughput_tokens_per_s"] = batch * study.workload.output_tokens / total_s
        predicted["energy_j_per_token"] = sum(b * cost.energy_j_per_token for b, cost in costs) / batch
        predicted["cost_usd_per_mtok"] = (
            sum(b * price for (b, _), price in zip(costs, usd, strict=True) if price is not None) / batch
            if None not in usd
            else None
        )
        predicted["memory_bytes"] = {
            device: use.total - use.reserve for _, cost in costs for device, use in cost.memory_bytes.items()
        }
        predicted["provenance"] = costs[0][1].provenance
    else:
        predicted["total_s"] = latency["ttft_s"] + (study.workload.output_tokens - 1) * latency["tpot_s"]
        predicted["throughput_tokens_per_s"] = (
            study.workload.batch * study.workload.output_tokens / predicted["total_s"]
        )
    return predicted


def _latencies(replicas: Sequence[PlannedReplica]) -> dict[str, float]:
    found = {"ttft_s": 0.0, "tpot_s": 0.0}
    for entry in replicas:
        problem, arrangement = entry.replica.pipeline.problem, entry.replica.pipeline.solution.arrangement
        assert problem is not None
        assert arrangement is not None
        if entry.replica.role != "decode":
            found["ttft_s"] = max(found["ttft_s"], quantity(problem.problem, Goal(), arrangement, "ttft"))
        if entry.replica.role != "prefill":
            found["tpot_s"] = max(found["tpot_s"], quantity(problem.problem, Goal(), arrangement, "tpot"))
    return found


def _rates(replicas: Sequence[PlannedReplica], study: Study) -> dict[str, float]:
    """Return generated tokens per second in steady state, by role."""
    rates: dict[str, float] = {}
    for entry in replicas:
        problem, arrangement = entry.replica.pipeline.problem, entry.replica.pipeline.solution.arrangement
        assert problem is not None
        assert arrangement is not None
        period_s = quantity(problem.problem, Goal(), arrangement, "throughput")
        tokens = entry.replica.batch * study.workload.output_tokens
        rates[entry.replica.role] = rates.get(entry.replica.role, 0.0) + tokens / period_s
    return rates
