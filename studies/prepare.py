"""From the names in a study to the objects that the search works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_table import CostTable
from dse.evaluate.kernel_path import supports
from dse.evaluate.layer_times import LayerTimes, read_layer_times, with_layer_times
from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision
from dse.graph.cache import load_graph
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.units import Unit, units_of
from hardware_specs.loader import load_cluster, load_runtime
from hardware_specs.spec import Cluster, RuntimeProfile
from studies.catalogue import resolve_model
from studies.schema import Study
from studies.weights import with_weights

TENSORS: tuple[Literal["weights", "activations", "kv"], ...] = ("weights", "activations", "kv")


@dataclass(frozen=True)
class Prepared:
    """The resolved inputs of a search.

    Attributes:
        precisions: the choices that the runtime allows and that at least one device can run.
        dropped: {device, precision, reason} of what is ruled out; the device is "(runtime)" where the
            runtime profile rules it out everywhere.
    """

    source: ModelSource
    graph: OperatorGraph
    cluster: Cluster
    runtime: RuntimeProfile
    units: tuple[Unit, ...]
    precisions: tuple[Precision, ...]
    table: CostTable
    dropped: tuple[dict[str, str], ...]


def prepare(study: Study, progress: Callable[[str], None], *, weights: bool = True) -> Prepared:
    """Resolve the names of a study, trace the model and fill the cost table.

    Args:
        study: the inputs.
        progress: called with a short text before each slow step.
        weights: whether the model's weights are needed.

    Raises:
        ConfigError: a name is unknown, or no choice is left; the text says which and why.
    """
    cluster, runtime = load_cluster(study.cluster), load_runtime(study.runtime)
    wanted = tuple(dict.fromkeys(parse_precision(text) for text in (*study.precisions, *study.uniform)))
    precisions, dropped = usable_precisions(wanted, cluster, runtime)
    source = resolve_model(study.model)
    if weights:
        source = with_weights(source, progress)
    progress(f"tracing {study.model}")
    graph = load_graph(source)
    check_context(graph, study)
    units = units_of(graph, study.granularity, runtime.ties)
    micro_batches, times = divisors(study.workload.batch), None
    if study.layer_times is not None:
        times = LayerTimes(read_layer_times(Path(study.layer_times)), study.layer_time_model)
        micro_batches = times.covered_sizes(micro_batches)
    progress("pricing every operator on every device")
    table = build_cost_table(
        graph,
        units,
        precisions,
        cluster.specs,
        study.workload,
        micro_batches,
        runtime=runtime,
    )
    if times is not None:
        table = with_layer_times(table, times, study.workload, study.layer_time_tokens)
    return Prepared(source, graph, cluster, runtime, units, precisions, table, dropped)


def usable_precisions(
    wanted: tuple[Precision, ...], cluster: Cluster, runtime: RuntimeProfile
) -> tuple[tuple[Precision, ...], tuple[dict[str, str], ...]]:
    """Return the precisions that the runtime and some device allow, and what is ruled out and why.

    Raises:
        ConfigError: nothing is left.
    """
    dropped: list[dict[str, str]] = []
    kept: list[Precision] = []
    for precision in wanted:
        names = precision.to_json()
        refused = [
            f"{tensor} in {names[tensor]}" for tensor in TENSORS if not runtime.allows(tensor, names[tensor])
        ]
        if refused:
            reason = f"{runtime.name} does not load {', '.join(refused)}"
            dropped.append({"device": "(runtime)", "precision": precision.name, "reason": reason})
            continue
        reasons = {name: supports(spec, precision) for name, spec in cluster.specs.items()}
        dropped += [
            {"device": name, "precision": precision.name, "reason": reason}
            for name, reason in reasons.items()
            if reason is not None
        ]
        if None in reasons.values():
            kept.append(precision)
    if not kept:
        why = "; ".join(f"{row['precision']} on {row['device']}: {row['reason']}" for row in dropped)
        raise ConfigError(f"no precision is left: {why}", path="precisions")
    return tuple(kept), tuple(dropped)


def check_context(graph: OperatorGraph, study: Study) -> None:
    """Refuse a workload that is longer than the model's context."""
    limit, wanted = graph.max_context, study.workload.total_context
    if limit is not None and wanted > limit:
        raise ConfigError(
            f"prompt and output together are {wanted} tokens, but {graph.model} ends at {limit}",
            path="workload",
            value=wanted,
        )


def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of a number, ascending: the candidate micro-batch sizes."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)
