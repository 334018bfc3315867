"""``dse quantize``: a recipe applied to a model: assignment, measured quality, and on demand the weights."""

from __future__ import annotations

from pathlib import Path

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.output import emit_json, table
from dse.cli.quality_options import MeasureOptions
from dse.cli.quality_output import show_quality
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "quantize", quantize)


def quantize(
    measure: MeasureOptions,
    model: str | None = typer.Argument(
        None, help="Local Hugging Face folder, .gguf file, hub id or demo model."
    ),
    recipe: str | None = typer.Option(
        None, "--recipe", "-r", help="Name of a recipe, or a YAML file; without it the recipes are listed."
    ),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Folder for the quantized weights, expanded to the dtype (safetensors)."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Apply a recipe to a model and measure what it costs in quality."""
    from studies.recipes import load_recipe

    if recipe is None:
        _list_recipes(as_json=as_json)
        return
    if model is None:
        raise ConfigError("name a model as well", path="MODEL")
    chosen = load_recipe(recipe)
    measure.check()

    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from studies.quantizing import assignment_of, weight_recipe
    from studies.quantizing import quantize as run

    weight_recipe(chosen, measure.seed)  # refuses names before a model is fetched
    source = measure.source(model)
    graph = load_graph(source)
    assignment, units = assignment_of(chosen, graph)
    with ConsoleProgress() as progress:
        bench = measure.bench(source, graph, units)
        streamed = measure.streams(bench)
        result = run(bench, chosen, assignment, progress, output=output, block_by_block=streamed)
    if as_json:
        document = {"model": model, **result.to_json(), "assignment": assignment.to_json()}
        if output is not None:
            document["output"] = {"folder": str(output), "weights": f"dequantized, {measure.dtype}"}
        emit_json(document | {"note": source.note})
        return
    show_quality(f"{model}, recipe {chosen.name}", result, source.note)
    if output is not None:
        typer.echo(f"wrote {output}: dequantized weights ({measure.dtype}) and quantization.json")


def _list_recipes(*, as_json: bool) -> None:
    from studies.recipes import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    if as_json:
        emit_json([recipe.to_json() | {"description": recipe.description} for recipe in recipes])
        return
    rows = [(recipe.name, recipe.precision.name, recipe.description) for recipe in recipes]
    table("Recipes", ("recipe", "weights/activations/kv", "what"), rows, numeric_from=9)
