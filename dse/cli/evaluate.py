"""``dse evaluate``: measured quality of the emulated quantized model."""

from __future__ import annotations

from pathlib import Path

import typer

from dse.cli import options, policy_options
from dse.cli.output import emit_json, note
from dse.cli.quality_output import show_quality
from dse.errors import ConfigError


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
    static_activations: bool = policy_options.STATIC,
    integer_products: bool = policy_options.INTEGER,
    at: list[str] = policy_options.AT,
    kv_window: int = policy_options.WINDOW,
    kv_sinks: int = policy_options.SINKS,
    keys_per_channel: int = policy_options.KEYS,
    queries: str | None = policy_options.QUERIES,
    probabilities: str | None = policy_options.PROBABILITIES,
    softmax_bits: int | None = policy_options.SOFTMAX,
    corpus: str | None = options.CORPUS,
    tokens: int = options.TOKENS,
    sequence_length: int = options.SEQUENCE,
    bos: bool = options.BOS,
    dtype: str = options.DTYPE,
    block_by_block: bool | None = options.BLOCKS,
    device: str | None = options.DEVICE,
    seed: int = options.SEED,
    as_json: bool = options.JSON,
) -> None:
    """Measure perplexity, KL and agreement of the emulated quantized model beside full precision."""
    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from dse.plan import Assignment
    from studies.catalogue import resolve_model
    from studies.recipes import Recipe
    from studies.schema import QualitySpec
    from studies.weights import with_weights

    parsed = None if plan is None else options.read_plan(plan)
    uniform = options.precision_of(weights, activations, kv)
    policy = policy_options.policy_of(
        static_activations=static_activations,
        integer_products=integer_products,
        at=at,
        window=kv_window,
        sinks=kv_sinks,
        key_group=keys_per_channel,
        queries=queries,
        probabilities=probabilities,
        softmax_bits=softmax_bits,
    )
    if parsed is not None and not parsed.runtime_policy.is_default:
        if not policy.is_default:
            raise ConfigError("the plan has a runtime policy of its own; leave those options out")
        policy = parsed.runtime_policy
    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    quality = QualitySpec(corpus=corpus, tokens=tokens, sequence_length=sequence_length, bos=bos, dtype=dtype)
    recipe = Recipe(
        name="flags",
        precision=uniform,
        weights={"transform": transform, "quantizer": quantizer, "fit": fit},
        policy=policy,
        calibration_tokens=calibration_tokens,
    )

    from studies.quantizing import quantize, weight_recipe

    weight_recipe(recipe, seed)
    source = with_weights(resolve_model(model), note, block_by_block=block_by_block)
    graph = load_graph(source)
    units = units_of(graph, "block") if parsed is None else options.units_of_plan(parsed, graph)
    names = tuple(unit.name for unit in units)
    assignment = Assignment.uniform(names, uniform) if parsed is None else parsed.assignment

    from studies.measuring import Bench

    with ConsoleProgress() as progress:
        bench = Bench.of(source, graph, units, quality, seed, device)
        streamed = bench.exceeds_memory if block_by_block is None else block_by_block
        result = quantize(bench, recipe, assignment, progress, block_by_block=streamed)
    if as_json:
        document = {"model": model, **result.to_json(), "note": source.note}
        document.pop("recipe")
        emit_json(
            document
            | {"quantizer": quantizer, "fit": fit, "transform": transform, "runtime": policy.to_json()}
        )
        return
    show_quality(model, result, source.note)
