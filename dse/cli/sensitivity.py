"""``dse sensitivity``: what each unit suffers from each precision."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.graph.units import Unit
    from dse.sensitivity.table import SensitivityTable


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    model: str = options.MODEL,
    metric: str = typer.Option(
        "kl",
        "--metric",
        help="kl or jsd (measured); variance, variance_stochastic, output_mse, first_order, fisher, "
        "hessian_trace, trace_error, obs_salience, obs_error, activation_norm, random.",
    ),
    compare: bool = typer.Option(
        False, "--compare", help="Every metric's rank correlation with measured KL instead of one table."
    ),
    sample: int | None = typer.Option(
        None, "--sample", min=3, help="Only so many units, drawn by the seed, not all of the model's."
    ),
    relative_error: float | None = typer.Option(
        None,
        "--relative-error",
        help="Of measured KL: stop each cell when its standard error is this share of it, e.g. 0.25; all "
        "precisions of a unit in one pass. Worth it from about 4096 tokens on.",
    ),
    precisions: str = options.PRECISIONS,
    granularity: str = options.GRANULARITY,
    runtime: str = options.RUNTIME,
    corpus: str | None = options.CORPUS,
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens."),
    sequence_length: int = options.SEQUENCE,
    bos: bool = options.BOS,
    device: str | None = options.DEVICE,
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
    quality = QualitySpec(corpus=corpus, sensitivity_tokens=tokens, sequence_length=sequence_length, bos=bos)
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)
    every = units_of(graph, granularity, ties)
    units = _drawn(every, sample, seed)

    from dse.sensitivity.measure import measure_sensitivity
    from dse.sensitivity.measure_sampled import measure_sampled
    from dse.sensitivity.metric import METRICS
    from studies.measuring import Bench, sensitivity_cache

    METRICS.get(metric)
    if relative_error is not None and (compare or metric != "kl"):
        raise ConfigError("--relative-error is for one table of measured KL (--metric kl)")
    if compare and granularity == "block" and len(units) < 3:
        raise ConfigError("a correlation over fewer than 3 units says nothing (try --granularity linear)")
    evaluator = Bench.of(source, graph, every, quality, seed, device).sensitivity_evaluator()
    if compare:
        with ConsoleProgress() as progress:
            tables = {}
            for name in ("kl", *(other for other in METRICS if other != "kl")):
                progress.step(f"measuring {name} of {len(units)} units at {len(choices)} precisions")
                tables[name] = measure_sensitivity(
                    name, evaluator, units, choices, cache=sensitivity_cache(), progress=progress.advance
                )
        _show_comparison(model, len(every), tables, as_json=as_json)
        return
    with ConsoleProgress() as progress:
        progress.step(f"measuring {metric} of {len(units)} units at {len(choices)} precisions")
        if relative_error is None:
            measured = measure_sensitivity(
                metric, evaluator, units, choices, cache=sensitivity_cache(), progress=progress.advance
            )
        else:
            measured = measure_sampled(
                evaluator,
                units,
                choices,
                relative_error,
                cache=sensitivity_cache(),
                progress=progress.advance,
            )
    if as_json:
        emit_json(measured.to_json())
        return
    table(
        f"{model}: {metric} in {measured.unit} ({measured.provenance}, {measured.n_tokens} tokens)",
        ("unit", *(precision.weights.name for precision in choices)),
        [
            (name, *(_cell(measured, row, column) for column in range(len(choices))))
            for row, name in enumerate(measured.units)
        ],
    )


def _cell(measured: SensitivityTable, row: int, column: int) -> str:
    """Return a penalty, with its standard error where it has one."""
    value = float(measured.penalty[row, column])
    error = 0.0 if measured.standard_error is None else float(measured.standard_error[row, column])
    return f"{value:.3g}" if error == 0 else f"{value:.2g} ± {error:.1g}"


def _drawn(units: tuple[Unit, ...], count: int | None, seed: int) -> tuple[Unit, ...]:
    """Return ``count`` units in their order; evenly spaced ones would all be the same linears of blocks."""
    if count is None or count >= len(units):
        return units
    return tuple(units[index] for index in sorted(Random(seed).sample(range(len(units)), count)))


def _show_comparison(model: str, n_units: int, tables: dict[str, SensitivityTable], *, as_json: bool) -> None:
    """Print Spearman's rho of every metric with measured KL: over all cells and over the units of a width."""
    from dse.sensitivity.correlation import rank_correlation, rank_correlation_by_precision

    measured = tables["kl"]
    rows = {
        name: {"all": rank_correlation(table_, measured), **rank_correlation_by_precision(table_, measured)}
        for name, table_ in tables.items()
        if name != "kl"
    }
    if as_json:
        emit_json(
            {
                "model": model,
                "reference": "kl",
                "n_tokens": measured.n_tokens,
                "units": list(measured.units),
                "n_units_of_model": n_units,
                "spearman": rows,
            }
        )
        return
    columns = list(next(iter(rows.values())))
    table(
        f"{model}: rank correlation with measured KL over {len(measured.units)} of {n_units} units "
        f"({measured.n_tokens} tokens)",
        ("metric", *(column.partition("/")[0] for column in columns)),
        [(name, *(_rho(row[column]) for column in columns)) for name, row in rows.items()],
    )


def _rho(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
