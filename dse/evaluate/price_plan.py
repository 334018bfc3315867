"""Pricing a given plan on its cluster, with the cost models or with measured layer times."""

from __future__ import annotations

from dse.evaluate.beside import NO_EXTRAS, Extras
from dse.evaluate.build import build_cost_table
from dse.evaluate.layer_times import LayerTimes, with_layer_times
from dse.evaluate.plan_cost import PlanCost, predict
from dse.evaluate.tensor_parallel import group_of_cluster
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from dse.plan import Plan
from hardware_specs.spec import Cluster, RuntimeProfile


def price_plan(
    plan: Plan,
    graph: OperatorGraph,
    units: tuple[Unit, ...],
    cluster: Cluster,
    workload: Workload,
    runtime: RuntimeProfile | None = None,
    extras: Extras = NO_EXTRAS,
    times: LayerTimes | None = None,
    times_tokens: float | None = None,
    grid_g_per_kwh: float | None = None,
) -> PlanCost:
    """Return what serving one batch of the workload with a plan costs.

    Args:
        plan, graph, units: the plan, its model and the units that it decides.
        cluster: holds the plan's devices.
        workload, runtime, extras: as for ``build_cost_table``.
        times: measured layer times instead of the cost models' (one unit per layer); ``times_tokens`` are the
            cached positions of the decode step that stands for all.
        grid_g_per_kwh: of the grid, the cluster's own where None.

    Raises:
        ConfigError, UnsupportedOnDevice: as for ``predict``, ``build_cost_table`` and ``with_layer_times``.
    """
    precisions = tuple(dict.fromkeys(precision for _, precision in plan.assignment.items))
    groups = {}
    for stage in plan.stages:
        if len(stage.devices) > 1:
            group = group_of_cluster(cluster, stage.devices)
            groups[group.name] = group
    sizes = sorted({plan.prefill_micro_batch, plan.decode_micro_batch})
    table = build_cost_table(
        graph,
        units,
        precisions,
        cluster.specs,
        workload,
        sizes,
        tuple(groups.values()),
        runtime,
        extras=extras,
    )
    if times is not None:
        table = with_layer_times(table, times, workload, times_tokens)
    return predict(plan, table, cluster, workload, grid_g_per_kwh)
