"""``dse trace``: the operator graph as a table, JSON, GraphML or HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.cli.groups import add_command
from dse.cli.options import BATCH, JSON, MODEL, PROMPT, SOURCE, Formats, load_graph_of
from dse.cli.output import emit_json, fold_layers, note, si, table
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.graph.operator import OperatorGraph


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "trace", trace)


def trace(
    formats: Formats,
    model: str = MODEL,
    batch: int = BATCH,
    prompt: int = PROMPT,
    context: int | None = typer.Option(
        None, help="Positions attended to in a decode step; default PROMPT + 1."
    ),
    source: int | None = SOURCE,
    output: Path | None = typer.Option(
        None, "-o", "--out", help="Write the graph: .html, .json or .graphml."
    ),
    device: str | None = typer.Option(
        None, "--device", help="With an .html file: adds time, energy and bits on this device."
    ),
    runtime: str | None = typer.Option(
        None, "--runtime", help="With --device: a runtime profile whose fused kernels are priced as one."
    ),
    as_json: bool = JSON,
) -> None:
    """Trace a model into its operator graph."""
    from dse.graph.summary import trace_document
    from dse.graph.workload import Workload

    Workload(batch=batch, prompt_tokens=prompt, output_tokens=1)  # refuses what cannot be
    if output is not None and output.suffix not in {".html", ".json", ".graphml"}:
        raise ConfigError("the file must end in .html, .json or .graphml", file=str(output))
    if device is not None and (output is None or output.suffix != ".html"):
        raise ConfigError("needs '-o FILE.html' (as a table: dse cost)", path="--device", value=device)
    graph = load_graph_of(model, source)
    document = trace_document(graph, batch, prompt, context)
    if output is not None:
        if output.suffix == ".html":
            _write_page(graph, output, document["shape"], device, formats, runtime)
        elif output.suffix == ".json":
            from dse.content import write_atomic

            write_atomic(output, json.dumps(document, indent=1) + "\n")
        else:
            from dse.graph.view import write_graphml

            write_graphml(graph, output)
        note(f"wrote {output}")
    if as_json:
        emit_json(document)
    elif output is None:
        totals = document["totals"]
        title = (
            f"{document['model']}: {graph.n_layers} layers, {si(totals['parameters'], '')} parameters, "
            f"prefill {si(totals['prefill_flop'], 'FLOP')}, "
            f"decode {si(totals['decode_flop'], 'FLOP')} a step, "
            f"KV cache {si(totals['kv_bytes_per_token'], 'B')} a token"
        )
        rows = [
            (
                name,
                str(count),
                op["kind"],
                si(op["parameters"], ""),
                si(op["flop"], "FLOP"),
                si(op["read_bytes"], "B"),
                si(op["write_bytes"], "B"),
            )
            for name, count, op in fold_layers(document["operators"], ("kind", "parameters", "flop"))
        ]
        columns = ("operator", "n", "kind", "parameters", "FLOP", "read", "write")
        table(title, columns, rows, numeric_from=3)


def _write_page(
    graph: OperatorGraph,
    path: Path,
    shape: dict[str, int],
    device: str | None,
    formats: Formats,
    runtime: str | None,
) -> None:
    from reports.graph_costs import graph_costs
    from reports.graph_page import write_graph_page

    sizes = (shape["batch"], shape["prompt"], shape["context"])
    costs = None
    if device is not None:
        from hardware_specs.loader import load_device, load_runtime

        serving = None if runtime is None else load_runtime(runtime)
        precision, units = formats.of(graph)
        costs = graph_costs(graph, load_device(device), precision, units, *sizes, serving)
    write_graph_page(graph, path, *sizes, costs)
