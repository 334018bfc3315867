"""``dse sensitivity``: what each unit suffers from each precision."""

from __future__ import annotations

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    model: str = options.MODEL,
    metric: str = typer.Option("kl", "--metric", help="kl (measured), variance or variance_stochastic."),
    precisions: str = options.PRECISIONS,
    granularity: str = options.GRANULARITY,
    runtime: str = options.RUNTIME,
    corpus: str | None = options.CORPUS,
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens."),
    sequence_length: int = options.SENSITIVITY_SEQUENCE,
    seed: int = options.SEED,
    as_json: bool = options.JSON,
) -> None:
    """Measure the penalty of every unit at every precision, each quantized alone."""
    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from hardware_specs.loader import load_runtime
    from studies.catalogue import resolve_model
    from studies.schema import QualitySpec
    from studies.weights import with_weights

    choices = options.precisions_of(precisions)
    ties = load_runtime(runtime).ties
    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    quality = QualitySpec(
        corpus=corpus, sensitivity_tokens=tokens, sensitivity_sequence_length=sequence_length
    )
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)
    units = units_of(graph, granularity, ties)

    from dse.sensitivity.measure import measure_sensitivity
    from dse.sensitivity.metric import METRICS
    from studies.measuring import Bench, sensitivity_cache

    METRICS.get(metric)
    evaluator = Bench.of(source, graph, units, quality, seed).sensitivity_evaluator()
    with ConsoleProgress() as progress:
        progress.step(f"measuring {metric} of {len(units)} units at {len(choices)} precisions")
        measured = measure_sensitivity(
            metric, evaluator, units, choices, cache=sensitivity_cache(), progress=progress.advance
        )
    if as_json:
        emit_json(measured.to_json())
        return
    table(
        f"{model}: {metric} in {measured.unit} ({measured.provenance}, {measured.n_tokens} tokens)",
        ("unit", *(precision.weights.name for precision in choices)),
        [
            (name, *(f"{value:.3g}" for value in row))
            for name, row in zip(measured.units, measured.penalty, strict=True)
        ],
    )
