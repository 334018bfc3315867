"""``dse cost``: latency, energy and memory of a model on a device, or of a plan on its cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from dse.cli import options
from dse.cli.cost_text import plan_document, show_document, show_plan_cost
from dse.cli.output import emit_json
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.evaluate.beside import Extras
    from dse.evaluate.cost_document import Setting
    from dse.evaluate.layer_times import LayerTimes
    from dse.evaluate.tensor_parallel import TensorGroup
    from dse.formats.precision import Precision
    from dse.graph.operator import OperatorGraph
    from dse.graph.workload import Workload
    from hardware_specs.spec import HardwareSpec


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("cost")(cost)


def cost(
    model: str = options.MODEL,
    device: str | None = typer.Option(None, "--device", help="Device name, or a YAML file of your own."),
    cluster: str | None = typer.Option(
        None, "--cluster", help="Price a plan's stages on this cluster (with --plan)."
    ),
    plan: Path | None = typer.Option(None, "--plan", help="A plan.json whose precisions are used."),
    weights: str = options.WEIGHTS,
    activations: str = options.ACTIVATIONS,
    kv: str = options.KV,
    batch: int = options.BATCH,
    prompt: int = options.PROMPT,
    output: int = options.OUTPUT,
    source: int | None = options.SOURCE,
    tensor_parallel: int = typer.Option(
        1, "--tensor-parallel", min=1, help="Devices that share every layer."
    ),
    nodes: int = typer.Option(1, "--nodes", min=1, help="Machines that they are in."),
    transform: str = typer.Option(
        "none", "--transform", help="none, awq, smooth, rotate or quarot, whose online rotations cost time."
    ),
    outliers: str | None = typer.Option(
        None,
        "--outliers",
        help="Kept beside quantized weights: csr:0.5%, bitmap:10%, columns:1%, low_rank:16.",
    ),
    offload: list[str] = typer.Option(
        [], "--offload", help="Weights that do not fit lie in host or ssd, as in ssd:3.5GB/s; repeatable."
    ),
    hits: str = typer.Option(
        "",
        "--hits",
        help="Hit rates of expert or neuron caches: of the device, then of each level but the last.",
    ),
    runtime: str | None = typer.Option(
        None, "--runtime", help="Runtime profile: what it fuses is one kernel, its host time counts."
    ),
    overlap: float = typer.Option(
        1.0, "--overlap", min=0, max=1, help="Share of the transfers that run beside other layers."
    ),
    layer_times: Path | None = options.LAYER_TIMES,
    layer_time_model: str = options.LAYER_TIME_MODEL,
    layer_time_tokens: float | None = options.LAYER_TIME_TOKENS,
    grid: float | None = options.GRID,
    as_json: bool = options.JSON,
) -> None:
    """Price a model on a device (or a group of equal ones), or a plan on its cluster."""
    from dse.evaluate.beside import Extras, parse_outliers

    if (device is None) == (cluster is None):
        raise ConfigError("give either --device, or --cluster with --plan", path="--device")
    workload = options.workload_of(batch, prompt, output)
    extras = Extras(transform, None if outliers is None else parse_outliers(outliers))
    if cluster is not None:
        if plan is None:
            raise ConfigError("a cluster needs the plan that says which devices do what", path="--plan")
        if offload or hits or tensor_parallel > 1 or runtime is not None:
            raise ConfigError("--offload, --tensor-parallel, --runtime belong to --device", path="--cluster")
        times = options.layer_times_of(layer_times, layer_time_model)
        measured = _Measured(times, layer_time_tokens)
        graph = options.load_graph_of(model, source)
        _price_on_cluster(graph, cluster, plan, workload, extras, measured, grid, as_json=as_json)
        return
    if layer_times is not None:
        raise ConfigError("measured layer times need --cluster and --plan", path="--layer-times")
    from dse.evaluate.cost_document import Setting
    from dse.evaluate.offload import parse_offload
    from hardware_specs.loader import load_device, load_runtime

    spec = load_device(str(device))
    ways = parse_offload(spec, offload, hits, overlap)
    serving = None if runtime is None else load_runtime(runtime)
    setting = Setting(grid, _group(spec, tensor_parallel, nodes), extras, ways, serving)
    document = _price_on_device(
        options.load_graph_of(model, source),
        spec,
        plan,
        options.precision_of(weights, activations, kv),
        workload,
        setting,
    )
    if as_json:
        emit_json(document)
    else:
        many = "" if tensor_parallel == 1 else f"{tensor_parallel} x "
        show_document(document, f"{model} on {many}{spec.name}")


class _Measured(NamedTuple):
    """Measured layer times, and the cached positions of the decode step that stands for all."""

    times: LayerTimes | None
    tokens: float | None


def _price_on_cluster(
    graph: OperatorGraph,
    cluster: str,
    plan: Path,
    workload: Workload,
    extras: Extras,
    measured: _Measured,
    grid: float | None,
    *,
    as_json: bool,
) -> None:
    from dse.evaluate.price_plan import price_plan
    from hardware_specs.loader import load_cluster

    parsed, where = options.read_plan(plan), load_cluster(cluster)
    found = price_plan(
        parsed,
        graph,
        options.units_of_plan(parsed, graph),
        where,
        workload,
        extras=extras,
        times=measured.times,
        times_tokens=measured.tokens,
        grid_g_per_kwh=grid,
    )
    if as_json:
        emit_json(plan_document(found))
    else:
        show_plan_cost(found, f"{graph.model} on {where.name}")


def _price_on_device(
    graph: OperatorGraph,
    spec: HardwareSpec,
    plan: Path | None,
    uniform: Precision,
    workload: Workload,
    setting: Setting,
) -> dict[str, Any]:
    from dse.evaluate.cost_document import cost_document

    if plan is None:
        return cost_document(graph, spec, uniform, workload, setting=setting)
    parsed = options.read_plan(plan)
    units = options.units_of_plan(parsed, graph)
    return cost_document(graph, spec, parsed.assignment.by_unit, workload, units, setting)


def _group(spec: HardwareSpec, degree: int, nodes: int) -> TensorGroup | None:
    """Return the group of equal devices, joined by their own links."""
    from dse.evaluate.tensor_parallel import TensorGroup

    if degree == 1:
        return None
    inner, outer = spec.link("scale_up") or spec.link("host"), spec.link("scale_out")
    if inner is None:
        raise ConfigError(f"{spec.name} has no link to other devices", path="--tensor-parallel")
    if inner.max_devices is not None and degree // nodes > inner.max_devices:
        raise ConfigError(
            f"{inner.name} joins at most {inner.max_devices} devices; give --nodes",
            path="--tensor-parallel",
            value=degree,
        )
    return TensorGroup(spec, degree, inner, nodes, outer)
