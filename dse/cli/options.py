"""Options that several commands share, and how their texts become domain objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dse.formats.precision import Precision
    from dse.graph.workload import Workload

JSON = typer.Option(False, "--json", help="Print one JSON document to stdout and nothing else.")
MODEL = typer.Argument(..., help="Catalogue name, local Hugging Face folder, .gguf file or hub id.")
BATCH = typer.Option(1, "--batch", help="Sequences in the batch.")
PROMPT = typer.Option(512, "--prompt", help="Prompt tokens.")
OUTPUT = typer.Option(128, "--output", help="Output tokens.")
WEIGHTS = typer.Option("bf16", "--weights", help="Weight format, e.g. int4_g64_asym, fp8_e4m3, mxfp4, bf16.")
ACTIVATIONS = typer.Option("bf16", "--activations", help="Activation format, e.g. int8_token.")
KV = typer.Option("bf16", "--kv", help="KV-cache format, e.g. int8_head.")
CLUSTER = typer.Option(..., "--cluster", help="Cluster name, or a YAML file of your own.")
WORKLOAD = typer.Option("chat", "--workload", help="Workload name, or a YAML file of your own.")
RUNTIME = typer.Option("generic", "--runtime", help="Runtime profile that restricts the choices.")
GRANULARITY = typer.Option("block", "--granularity", help="block, sublayer or linear.")
PRECISIONS = typer.Option(
    "int3_g64_asym,int4_g64_asym,int6_g64_asym,int8_g64_asym,bf16",
    "--precisions",
    help="Comma-separated choices; each is WEIGHTS or WEIGHTS/ACTIVATIONS/KV.",
)
CORPUS = typer.Option(None, "--corpus", help="Text file; without it the embedded corpus is used.")
DTYPE = typer.Option("bfloat16", "--dtype", help="bfloat16 or float32, of the emulated forward passes.")
TOKENS = typer.Option(8192, "--tokens", help="Evaluation tokens.")
SEQUENCE = typer.Option(512, "--sequence-length", help="Tokens per sequence.")
SEED = typer.Option(0, "--seed", help="Seed of everything random.")


def precision_of(weights: str, activations: str, kv: str) -> Precision:
    """Return the precision named by three format options."""
    from dse.formats.grammar import parse_precision

    return parse_precision({"weights": weights, "activations": activations, "kv": kv})


def precisions_of(text: str) -> tuple[Precision, ...]:
    """Return the precisions of a comma-separated list."""
    from dse.formats.grammar import parse_precision

    return tuple(parse_precision(part.strip()) for part in text.split(",") if part.strip())


def workload_of(batch: int, prompt: int, output: int) -> Workload:
    """Return the workload of three number options."""
    from dse.graph.workload import Workload

    return Workload(batch=batch, prompt_tokens=prompt, output_tokens=output)
