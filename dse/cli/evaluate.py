"""``dse evaluate``: measured quality of the emulated quantized model."""

from __future__ import annotations

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.output import emit_json, note
from dse.cli.policy_options import PolicyOptions
from dse.cli.quality_output import show_quality
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "evaluate", evaluate)


def evaluate(
    formats: options.Formats,
    runtime: PolicyOptions,
    model: str = options.MODEL,
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

    parsed = None if formats.plan is None else options.read_plan(formats.plan)
    uniform, policy = formats.uniform(), runtime.policy()
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
