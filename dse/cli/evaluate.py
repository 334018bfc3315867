"""``dse evaluate``: measured quality of the emulated quantized model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table

if TYPE_CHECKING:
    from dse.evaluate.quality import Quality


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: str = options.MODEL,
    plan: Path | None = typer.Option(None, "--plan", help="A plan.json whose precisions are measured."),
    weights: str = options.WEIGHTS,
    activations: str = options.ACTIVATIONS,
    kv: str = options.KV,
    quantizer: str = typer.Option("rtn", "--quantizer", help="rtn or gptq."),
    fit: str = typer.Option(
        "minmax", "--fit", help="Range fit: minmax, mse, percentile, act_clip, importance, salience."
    ),
    transform: str = typer.Option(
        "none", "--transform", help="none, awq, smooth, rotate (offline) or quarot (with online rotations)."
    ),
    calibration_tokens: int = typer.Option(
        8192, "--calibration-tokens", help="Tokens that quantizers and fits calibrate on."
    ),
    corpus: str | None = options.CORPUS,
    tokens: int = options.TOKENS,
    sequence_length: int = options.SEQUENCE,
    dtype: str = options.DTYPE,
    seed: int = options.SEED,
    as_json: bool = options.JSON,
) -> None:
    """Measure perplexity, KL and agreement of the emulated quantized model beside full precision."""
    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from dse.plan import Assignment
    from studies.catalogue import resolve_model
    from studies.schema import QualitySpec
    from studies.weights import with_weights

    parsed = None if plan is None else options.read_plan(plan)
    uniform = options.precision_of(weights, activations, kv)
    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    quality = QualitySpec(corpus=corpus, tokens=tokens, sequence_length=sequence_length, dtype=dtype)
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)
    units = units_of(graph, "block") if parsed is None else options.units_of_plan(parsed, graph)
    names = tuple(unit.name for unit in units)
    assignment = Assignment.uniform(names, uniform) if parsed is None else parsed.assignment

    from dse.emulate.compensate import WeightRecipe, apply_recipe
    from dse.evaluate.effective_bits import effective_bits
    from studies.measuring import Bench

    recipe = WeightRecipe(transform=transform, quantizer=quantizer, fit=fit, seed=seed)
    bench = Bench.of(source, graph, units, quality, seed)
    evaluator = bench.finalist_evaluator()
    with ConsoleProgress() as progress:
        if not recipe.is_plain:
            progress.step(f"quantizing the weights ({transform}, {quantizer}, {fit})")
            formats = evaluator.model.formats_of(assignment)
            calibration = bench.calibration_sample(calibration_tokens)
            apply_recipe(evaluator.model, formats, recipe, calibration, progress.advance)
        progress.step("measuring full precision")
        baseline = evaluator.reference(progress.advance)
        progress.step("measuring the quantized model")
        measured = evaluator.evaluate(assignment, progress.advance)
    whole, linear = effective_bits(graph, assignment, units)
    document = {
        "model": model,
        **_numbers(measured),
        "baseline": _numbers(baseline),
        "effective_bits": whole,
        "linear_effective_bits": linear,
        "n_tokens": measured.n_tokens,
        "sequence_length": measured.sequence_length,
        "corpus": evaluator.sample.corpus,
        "dtype": dtype,
        "quantizer": quantizer,
        "fit": fit,
        "transform": transform,
        "time_s": measured.time_s,
        "note": source.note,
    }
    if as_json:
        emit_json(document)
        return
    rows = [("full precision", "16.00", *_texts(baseline)), ("quantized", f"{linear:.2f}", *_texts(measured))]
    title = f"{model} on {evaluator.sample.corpus}: {measured.n_tokens} tokens, measured"
    table(title, ("", "linear bits", "perplexity", "KL nats", "top-1 agreement"), rows)
    if source.note:
        typer.echo(f"note: {source.note}")


def _numbers(quality: Quality) -> dict[str, float]:
    return {
        "perplexity": quality.perplexity,
        "kl_nats": quality.kl_nats,
        "top1_agreement_frac": quality.top1_agreement_frac,
    }


def _texts(quality: Quality) -> tuple[str, str, str]:
    return f"{quality.perplexity:.3f}", f"{quality.kl_nats:.5f}", f"{quality.top1_agreement_frac:.2%}"
