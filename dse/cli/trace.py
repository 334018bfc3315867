"""``dse trace``: the operator graph as a table, JSON, GraphML or HTML."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from dse.cli.options import BATCH, JSON, MODEL, PROMPT
from dse.cli.output import emit_json, fold_layers, note, si, table
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("trace")(trace)


def trace(
    model: str = MODEL,
    batch: int = BATCH,
    prompt: int = PROMPT,
    context: int | None = typer.Option(
        None, help="Positions attended to in a decode step; default PROMPT + 1."
    ),
    output: Path | None = typer.Option(
        None, "-o", "--out", help="Write the graph: .html, .json or .graphml."
    ),
    as_json: bool = JSON,
) -> None:
    """Trace a model into its operator graph."""
    from dse.graph.cache import load_graph
    from dse.graph.summary import trace_document
    from dse.graph.workload import Workload
    from studies.catalogue import resolve_model

    Workload(batch=batch, prompt_tokens=prompt, output_tokens=1)  # refuses what cannot be
    if output is not None and output.suffix not in {".html", ".json", ".graphml"}:
        raise ConfigError("the file must end in .html, .json or .graphml", file=str(output))
    graph = load_graph(resolve_model(model))
    document = trace_document(graph, batch, prompt, context)
    if output is not None:
        from dse.content import write_atomic
        from dse.graph.view import write_graphml

        if output.suffix == ".html":
            from reports.graph_page import write_graph_page

            write_graph_page(graph, output, batch, prompt, context)
        elif output.suffix == ".json":
            write_atomic(output, json.dumps(document, indent=1) + "\n")
        else:
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
