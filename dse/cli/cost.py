"""``dse cost``: latency, energy and memory of a model on a device, or of a plan on its cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.cost_options import DeviceOptions, WorkOptions
from dse.cli.cost_text import plan_document, show_document, show_plan_cost
from dse.cli.groups import add_command
from dse.cli.output import emit_json
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.evaluate.plan_cost import PlanCost
    from dse.graph.operator import OperatorGraph
    from hardware_specs.spec import Cluster


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "cost", cost)


def cost(
    work: WorkOptions,
    formats: options.Formats,
    devices: DeviceOptions,
    times: options.LayerTimeOptions,
    model: str = options.MODEL,
    device: str | None = typer.Option(None, "--device", help="Device name, or a YAML file of your own."),
    cluster: str | None = typer.Option(
        None, "--cluster", help="Price a plan's stages on this cluster (with --plan)."
    ),
    source: int | None = options.SOURCE,
    grid: float | None = options.GRID,
    as_json: bool = options.JSON,
) -> None:
    """Price a model on a device (or a group of equal ones), or a plan on its cluster."""
    from dse.evaluate.cost_document import cost_document
    from hardware_specs.loader import load_cluster, load_device

    if (device is None) == (cluster is None):
        raise ConfigError("give either --device, or --cluster with --plan", path="--device")
    if cluster is not None:
        if formats.plan is None:
            raise ConfigError("a cluster needs the plan that says which devices do what", path="--plan")
        devices.refuse()
        where, graph = load_cluster(cluster), options.load_graph_of(model, source)
        found = _on_cluster(graph, where, formats.plan, work, times, grid)
        if as_json:
            emit_json(plan_document(found))
        else:
            show_plan_cost(found, f"{graph.model} on {where.name}")
        return
    if times.layer_times is not None:
        raise ConfigError("measured layer times need --cluster and --plan", path="--layer-times")
    spec = load_device(str(device))
    workload, setting = work.workload(), devices.setting(spec, work.extras(), grid)
    graph = options.load_graph_of(model, source)
    precision, units = formats.of(graph)
    document = cost_document(graph, spec, precision, workload, units, setting)
    if as_json:
        emit_json(document)
    else:
        many = "" if devices.tensor_parallel == 1 else f"{devices.tensor_parallel} x "
        show_document(document, f"{model} on {many}{spec.name}")


def _on_cluster(
    graph: OperatorGraph,
    cluster: Cluster,
    plan: Path,
    work: WorkOptions,
    times: options.LayerTimeOptions,
    grid: float | None,
) -> PlanCost:
    from dse.evaluate.price_plan import price_plan

    parsed = options.read_plan(plan)
    return price_plan(
        parsed,
        graph,
        options.units_of_plan(parsed, graph),
        cluster,
        work.workload(),
        extras=work.extras(),
        times=times.times(),
        times_tokens=times.layer_time_tokens,
        grid_g_per_kwh=grid,
    )
