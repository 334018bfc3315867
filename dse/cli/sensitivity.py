"""``dse sensitivity``: what each unit suffers from each precision."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.output import emit_json, note, table
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.evaluate.quality import QualityEvaluator
    from dse.formats.precision import Precision
    from dse.graph.units import Unit
    from dse.sensitivity.table import SensitivityTable
    from studies.schema import QualitySpec


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "sensitivity", sensitivity)


@dataclass(frozen=True)
class MetricOptions:
    """What is measured, and of how many units."""

    metric: str = typer.Option(
        "kl",
        "--metric",
        help="kl or jsd (measured); variance, variance_stochastic, output_mse, first_order, fisher, "
        "hessian_trace, trace_error, obs_salience, obs_error, activation_norm, random.",
    )
    compare: bool = typer.Option(
        False, "--compare", help="Every metric's rank correlation with measured KL instead of one table."
    )
    sample: int | None = typer.Option(
        None, "--sample", min=3, help="Only so many units, drawn by the seed, not all of the model's."
    )
    relative_error: float | None = typer.Option(
        None,
        "--relative-error",
        help="Of measured KL: stop each cell when its standard error is this share of it, e.g. 0.25; all "
        "precisions of a unit in one pass. Worth it from about 4096 tokens on.",
    )

    def check(self, granularity: str, n_units: int) -> None:
        """Refuse what cannot be measured together.

        Raises:
            ConfigError: no such metric, or options that exclude each other.
        """
        from dse.sensitivity.measure import registered_metrics

        registered_metrics().get(self.metric)
        if self.relative_error is not None and (self.compare or self.metric != "kl"):
            raise ConfigError("--relative-error is for one table of measured KL (--metric kl)")
        if self.compare and granularity == "block" and n_units < 3:
            raise ConfigError("a correlation over fewer than 3 units says nothing (try --granularity linear)")

    def measure(
        self, evaluator: QualityEvaluator, units: tuple[Unit, ...], precisions: tuple[Precision, ...]
    ) -> SensitivityTable:
        """Return the table of the metric, finished cells read from the cache."""
        from dse.cli.progress import ConsoleProgress
        from dse.sensitivity.measure import measure_sensitivity
        from dse.sensitivity.measure_sampled import measure_sampled
        from studies.measuring import sensitivity_cache

        cache = sensitivity_cache()
        with ConsoleProgress() as progress:
            progress.step(f"measuring {self.metric} of {len(units)} units at {len(precisions)} precisions")
            advance = progress.advance
            if self.relative_error is None:
                return measure_sensitivity(
                    self.metric, evaluator, units, precisions, cache=cache, progress=advance
                )
            error = self.relative_error
            return measure_sampled(evaluator, units, precisions, error, cache=cache, progress=advance)


@dataclass(frozen=True)
class CalibrationOptions:
    """The text on which each unit is quantized alone, and where."""

    corpus: str | None = options.CORPUS
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens.")
    sequence_length: int = options.SEQUENCE
    bos: bool = options.BOS
    device: str | None = options.DEVICE
    seed: int = options.SEED

    def quality(self) -> QualitySpec:
        """Return them as a study has them.

        Raises:
            ConfigError: fewer tokens than one sequence.
        """
        from studies.schema import QualitySpec

        options.check_sizes(tokens=self.tokens, sequence_length=self.sequence_length)
        return QualitySpec(
            corpus=self.corpus,
            sensitivity_tokens=self.tokens,
            sequence_length=self.sequence_length,
            bos=self.bos,
        )


def sensitivity(
    what: MetricOptions,
    text: CalibrationOptions,
    model: str = options.MODEL,
    precisions: str = options.PRECISIONS,
    granularity: str = options.GRANULARITY,
    runtime: str = options.RUNTIME,
    as_json: bool = options.JSON,
) -> None:
    """Measure the penalty of every unit at every precision, each quantized alone."""
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from hardware_specs.loader import load_runtime
    from studies.catalogue import resolve_model
    from studies.weights import with_weights

    choices = options.precisions_of(precisions)
    ties = load_runtime(runtime).ties
    quality = text.quality()
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)
    every = units_of(graph, granularity, ties)
    units = _drawn(every, what.sample, text.seed)
    what.check(granularity, len(units))

    from studies.measuring import Bench

    evaluator = Bench.of(source, graph, every, quality, text.seed, text.device).sensitivity_evaluator()
    if what.compare:
        _show_comparison(model, len(every), _all_metrics(evaluator, units, choices), as_json=as_json)
    elif as_json:
        emit_json(what.measure(evaluator, units, choices).to_json())
    else:
        _show_table(model, what.measure(evaluator, units, choices))


def _all_metrics(
    evaluator: QualityEvaluator, units: tuple[Unit, ...], precisions: tuple[Precision, ...]
) -> dict[str, SensitivityTable]:
    """Return the table of every metric, measured KL first."""
    from dse.sensitivity.measure import registered_metrics

    names = ("kl", *(other for other in registered_metrics() if other != "kl"))
    return {
        name: MetricOptions(name, False, None, None).measure(evaluator, units, precisions) for name in names
    }


def _show_table(model: str, measured: SensitivityTable) -> None:
    table(
        f"{model}: {measured.metric} in {measured.unit} ({measured.provenance}, {measured.n_tokens} tokens)",
        ("unit", *(precision.weights.name for precision in measured.precisions)),
        [
            (name, *(_cell(measured, row, column) for column in range(len(measured.precisions))))
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
