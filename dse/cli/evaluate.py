"""``dse evaluate``: measured quality of the emulated quantized model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.output import emit_json
from dse.cli.policy_options import PolicyOptions
from dse.cli.quality_options import MeasureOptions, WeightOptions
from dse.cli.quality_output import show_quality
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.plan import Plan
    from dse.policy import RuntimePolicy


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "evaluate", evaluate)


def evaluate(
    formats: options.Formats,
    weights: WeightOptions,
    runtime: PolicyOptions,
    measure: MeasureOptions,
    model: str = options.MODEL,
    as_json: bool = options.JSON,
) -> None:
    """Measure perplexity, KL and agreement of the emulated quantized model beside full precision."""
    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from dse.plan import Assignment

    plan = None if formats.plan is None else options.read_plan(formats.plan)
    uniform, policy = formats.uniform(), _policy(plan, runtime)
    recipe = weights.recipe(uniform, policy)
    measure.check()

    from studies.quantizing import quantize, weight_recipe

    weight_recipe(recipe, measure.seed)  # refuses names before a model is fetched
    source = measure.source(model)
    graph = load_graph(source)
    if plan is None:
        units = units_of(graph, "block")
        assignment = Assignment.uniform(tuple(unit.name for unit in units), uniform)
    else:
        units, assignment = options.units_of_plan(plan, graph), plan.assignment
    with ConsoleProgress() as progress:
        bench = measure.bench(source, graph, units)
        result = quantize(bench, recipe, assignment, progress, block_by_block=measure.streams(bench))
    if as_json:
        document = {"model": model, **result.to_json(), "note": source.note}
        document.pop("recipe")
        emit_json(document | weights.to_json() | {"runtime": policy.to_json()})
        return
    show_quality(model, result, source.note)


def _policy(plan: Plan | None, runtime: PolicyOptions) -> RuntimePolicy:
    """Return the plan's policy where it has one, else that of the options.

    Raises:
        ConfigError: both say something.
    """
    policy = runtime.policy()
    if plan is None or plan.runtime_policy.is_default:
        return policy
    if not policy.is_default:
        raise ConfigError("the plan has a runtime policy of its own; leave those options out")
    return plan.runtime_policy
