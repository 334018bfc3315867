"""Options that several commands share, and how their texts become domain objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dse.evaluate.layer_times import LayerTimes, Method
    from dse.formats.precision import Precision
    from dse.graph.operator import OperatorGraph
    from dse.graph.units import Unit
    from dse.plan import Plan

JSON = typer.Option(False, "--json", help="Print one JSON document to stdout and nothing else.")
MODEL = typer.Argument(..., help="Catalogue name, local Hugging Face folder, .gguf file or hub id.")
BATCH = typer.Option(1, "--batch", help="Sequences in the batch.")
PROMPT = typer.Option(512, "--prompt", help="Prompt tokens.")
SOURCE = typer.Option(
    None,
    "--source",
    min=1,
    help="Tokens that the encoder of an encoder-decoder reads; default: the model's own.",
)
OUTPUT = typer.Option(128, "--output", help="Output tokens.")
WEIGHTS = typer.Option("bf16", "--weights", help="Weight format, e.g. int4_g64_asym, fp8_e4m3, mxfp4, bf16.")
ACTIVATIONS = typer.Option("bf16", "--activations", help="Activation format, e.g. int8_token.")
KV = typer.Option("bf16", "--kv", help="KV-cache format, e.g. int8_head.")
CLUSTER = typer.Option(..., "--cluster", help="Cluster name, or a YAML file of your own.")
WORKLOAD = typer.Option("chat", "--workload", help="Workload name, or a YAML file of your own.")
RUNTIME = typer.Option("generic", "--runtime", help="Runtime profile that restricts the choices.")
GRANULARITY = typer.Option("block", "--granularity", help="block, sublayer, expert or linear.")
PRECISIONS = typer.Option(
    "int3_g64_asym,int4_g64_asym,int6_g64_asym,int8_g64_asym,bf16",
    "--precisions",
    help="Comma-separated choices; each is WEIGHTS or WEIGHTS/ACTIVATIONS/KV.",
)
CORPUS = typer.Option(
    None,
    "--corpus",
    help="Text file, or hf:OWNER/NAME[:CONFIG[:SPLIT]]; without it the embedded corpus is used.",
)
BOS = typer.Option(
    False, "--bos", help="Begin every sequence with the tokenizer's beginning-of-sequence token."
)
BLOCKS = typer.Option(
    None,
    "--block-by-block/--in-memory",
    help="Leave the weights on disk and hold one block at a time; decided by size where not given.",
)
DTYPE = typer.Option("bfloat16", "--dtype", help="bfloat16 or float32, of the emulated forward passes.")
DEVICE = typer.Option(
    None,
    "--device",
    envvar="DSE_DEVICE",
    help="Where emulated models run: cpu, cuda or cuda:1. By default CUDA where there is one.",
)
TOKENS = typer.Option(8192, "--tokens", help="Evaluation tokens.")
SEQUENCE = typer.Option(512, "--sequence-length", help="Tokens per sequence.")
GRID = typer.Option(
    None, "--grid-intensity", min=0, help="Grams of CO2e per kWh of the grid (the cluster's own, if it says)."
)
SEED = typer.Option(0, "--seed", help="Seed of everything random.")


@dataclass(frozen=True)
class Formats:
    """One precision for all units, or those of a plan."""

    plan: Path | None = typer.Option(None, "--plan", help="A plan.json whose precisions are used.")
    weights: str = WEIGHTS
    activations: str = ACTIVATIONS
    kv: str = KV

    def uniform(self) -> Precision:
        """Return the precision that the three format options name."""
        from dse.formats.grammar import parse_precision

        return parse_precision({"weights": self.weights, "activations": self.activations, "kv": self.kv})

    def of(self, graph: OperatorGraph) -> tuple[Precision | Mapping[str, Precision], tuple[Unit, ...]]:
        """Return one precision and no units, or the precisions of a plan by name and its units.

        Raises:
            ConfigError: the plan cannot be read, or is of another model.
        """
        if self.plan is None:
            return self.uniform(), ()
        plan = read_plan(self.plan)
        return plan.assignment.by_unit, units_of_plan(plan, graph)


@dataclass(frozen=True)
class LayerTimeOptions:
    """Measured layer times in place of the cost models'."""

    layer_times: Path | None = typer.Option(
        None, "--layer-times", help="Measured layer times (CSV or JSON) instead of the cost models'."
    )
    layer_time_model: str = typer.Option(
        "table",
        "--layer-time-model",
        help="table takes them as they are; regression is LLM-PQ's latency model.",
    )
    layer_time_tokens: float | None = typer.Option(
        None,
        "--layer-time-tokens",
        help="Cached positions of the decode step that stands for all: prompt and half of the output by "
        "default.",
    )

    def method(self) -> Method:
        """Return the way of using them.

        Raises:
            ConfigError: unknown name.
        """
        from dse.evaluate.layer_times import METHODS

        name = self.layer_time_model
        for known in METHODS:
            if known == name:
                return known
        raise ConfigError(f"unknown model '{name}'", path="--layer-time-model", value=name, allowed=METHODS)

    def times(self) -> LayerTimes | None:
        """Return the times, None without a file.

        Raises:
            ConfigError: an unknown model, or a file that cannot be used.
        """
        from dse.evaluate.layer_times import LayerTimes, read_layer_times

        if self.layer_times is None:
            return None
        return LayerTimes(read_layer_times(self.layer_times), self.method())


def precisions_of(text: str) -> tuple[Precision, ...]:
    """Return the precisions of a comma-separated list."""
    from dse.formats.grammar import parse_precision

    return tuple(parse_precision(part.strip()) for part in text.split(",") if part.strip())


def load_graph_of(model: str, source_tokens: int | None = None) -> OperatorGraph:
    """Return the operator graph of a model, of an encoder-decoder for an input of ``source_tokens``.

    Raises:
        ConfigError: no such model, it cannot be traced, or it has no encoder to read a source.
    """
    from dataclasses import replace

    from dse.graph.cache import load_graph
    from studies.catalogue import resolve_model

    graph = load_graph(resolve_model(model))
    if source_tokens is None:
        return graph
    if graph.source_tokens is None:
        raise ConfigError(f"'{model}' is no encoder-decoder", path="--source", value=source_tokens)
    return load_graph(replace(resolve_model(model), source_tokens=source_tokens))


def read_plan(path: Path) -> Plan:
    """Return the plan of a ``plan.json``.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or is not a plan.
    """
    import json

    from dse.plan import Plan

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except ValueError as error:
        raise ConfigError(f"is not JSON ({error})", file=str(path)) from error
    if not isinstance(document, dict):
        raise ConfigError("is not a plan: it must be one JSON object", file=str(path))
    try:
        return Plan.from_json(document)
    except ConfigError as error:
        raise ConfigError(error.message, file=str(path), path=error.path, value=error.value) from error


def units_of_plan(plan: Plan, graph: OperatorGraph) -> tuple[Unit, ...]:
    """Return the units that a plan decides; tied linears are known from their joined names.

    Raises:
        ConfigError: the plan is of another model or granularity.
    """
    from dse.graph.units import units_of

    roles = [name.rpartition(".")[2].split("+") for name in plan.assignment.by_unit]
    ties = tuple(sorted({tuple(group) for group in roles if len(group) > 1}))
    units = units_of(graph, plan.granularity, ties)
    wanted = {unit.name for unit in units}
    for name in plan.assignment.by_unit:
        if name not in wanted:
            raise ConfigError(
                f"the plan assigns '{name}', which this model does not have", value=name, allowed=wanted
            )
    for name in sorted(wanted - plan.assignment.by_unit.keys()):
        raise ConfigError(f"the plan says nothing of '{name}'", path="assignment")
    return units


def check_sizes(*, tokens: int, sequence_length: int) -> None:
    """Refuse sample sizes that cannot be.

    Raises:
        ConfigError: a sequence shorter than 2 tokens, or fewer tokens than one sequence.
    """
    if sequence_length < 2:
        raise ConfigError(f"must be at least 2, but got {sequence_length}", path="--sequence-length")
    if tokens < sequence_length:
        raise ConfigError(
            f"must be at least one sequence ({sequence_length}), but got {tokens}", path="--tokens"
        )
