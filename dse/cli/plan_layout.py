"""Options and output of ``dse plan`` for whole layouts: tensor parallelism, chunks, replicas and pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from dse.cli.output import si, table
from dse.errors import ConfigError
from dse.partition.serving import deployment_flags

if TYPE_CHECKING:
    from dse.graph.workload import Workload
    from dse.partition.layout.pipeline import LayoutOptions
    from studies.layouts import PlannedLayout

SMALLEST_CHUNK = 64
POOL_NAMES = ("same", "separate", "auto")


@dataclass(frozen=True)
class WholeLayout:
    """What a layout may decide beside bits, partition and micro-batches."""

    tensor_parallel: str = typer.Option(
        "1",
        "--tensor-parallel",
        help="Devices of a node that share a stage: auto (best per stage), or 1,2,4...",
    )
    replicas: str = typer.Option(
        "1", "--replicas", help="Pipelines that share the requests: auto, or a number."
    )
    pools: str = typer.Option(
        "same",
        "--pools",
        help="Whether prefill and decode share devices: same, separate, auto.",
    )
    chunk: str = typer.Option(
        "off", "--chunk", help="Tokens of a prompt in one pass (chunked prefill): off, auto, or 128,256..."
    )
    offload: str | None = typer.Option(
        None,
        "--offload",
        help="Where weights of layers may lie outside the devices: host, ssd, host:25GB/s...",
    )

    def options(self, workload: Workload) -> LayoutOptions | None:
        """Return what a layout may decide; None where everything is at its default.

        Raises:
            ConfigError: a value that is none of the allowed ones.
        """
        from dse.partition.layout.pipeline import LayoutOptions

        pools, degrees, replicas = self.pools, self.tensor_parallel, self.replicas
        if pools not in POOL_NAMES:
            raise ConfigError(
                "unknown choice of pools", path="--pools", value=pools, allowed=list(POOL_NAMES)
            )
        found = LayoutOptions(
            degrees=None if degrees == "auto" else _numbers(degrees, "--tensor-parallel", "auto"),
            n_chunks=_chunks(self.chunk, workload.prompt_tokens),
            n_replicas=None if replicas == "auto" else _numbers(replicas, "--replicas", "auto")[0],
            pools="separate" if pools == "separate" else "auto" if pools == "auto" else "same",
            offload=self.offload,
        )
        return None if found == LayoutOptions() else found


def _numbers(text: str, option: str, *words: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        allowed = [*words, "whole numbers of at least 1"]
        raise ConfigError("is not a number", path=option, value=text, allowed=allowed)
    return tuple(sorted(set(numbers)))


def _chunks(text: str, prompt_tokens: int) -> tuple[int, ...]:
    """Return how many passes a prompt may take."""
    if text == "off":
        return (1,)
    if text == "auto":
        return tuple(n for n in (1, 2, 4, 8) if n == 1 or prompt_tokens / n >= SMALLEST_CHUNK)
    sizes = _numbers(text, "--chunk", "off", "auto")
    return tuple(sorted({-(-prompt_tokens // size) for size in sizes}))


def layout_document(found: PlannedLayout, workload: Workload) -> dict[str, Any]:
    """Return the JSON document of a layout."""
    return {**found.document(), "serving": _flags(found, workload)}


def show_layout(found: PlannedLayout, workload: Workload, what: str) -> None:
    """Print a layout for people."""
    predicted, deployment = found.predicted, found.deployment
    energy, cost = predicted["energy_j_per_token"], predicted["cost_usd_per_mtok"]
    typer.echo(
        f"TTFT {si(predicted['ttft_s'], 's')}, TPOT {si(predicted['tpot_s'], 's')}, "
        f"{predicted['throughput_tokens_per_s']:.1f} tokens/s, "
        f"{predicted['steady_tokens_per_s']:.1f} in steady state, on {predicted['devices']} devices"
        + ("" if energy is None else f", {si(energy, 'J')} a token")
        + ("" if cost is None else f", {cost:.2f} USD per million tokens")
    )
    rows = []
    for number, entry in enumerate(found.replicas, start=1):
        replica, plan = entry.replica, entry.plan
        chunks = f", {plan.prefill_chunks} chunks" if plan.prefill_chunks > 1 else ""
        for stage in plan.stages:
            first, end = stage.layers
            outside = sum(first <= layer < end for layer in plan.offloaded_layers)
            last = "" if len(stage.devices) == 1 else f" to {stage.devices[-1]}"
            rows.append(
                (
                    f"{number} ({replica.role}, {replica.share_frac:.0%} of the load)",
                    f"{stage.devices[0]}{last}",
                    f"{first}-{end - 1}" + (f" ({outside} offloaded)" if outside else ""),
                    f"prefill {plan.prefill_micro_batch}{chunks}, decode {plan.decode_micro_batch}",
                )
            )
    table("Layout", ("replica", "devices", "layers", "micro-batches"), rows, numeric_from=4)
    gap = "unknown" if deployment.gap_frac is None else f"{deployment.gap_frac:.2g}"
    typer.echo(
        f"{deployment.status}: {deployment.value:.4f} {what}, bound {deployment.bound:.4f}, gap {gap}, "
        f"solved in {deployment.time_s:.2f} s"
    )
    if not deployment.exact:
        typer.echo("too many ways to share the devices out: replicas were kept inside nodes; the bound holds")
    flags = _flags(found, workload)
    for line in flags:
        typer.echo(f"serve with: {line}")
    if not flags:
        typer.echo(
            "serve with: no flags known: vLLM has one tensor-parallel size for all stages, and streams no "
            "chosen layers"
        )
    if deployment.separate:
        typer.echo(
            "separate pools: a proxy sends a request to the prefill pool first, then to the decode pool"
        )
    for number, entry in enumerate(found.replicas, start=1):
        typer.echo(f"what limits {number}: {entry.replica.pipeline.solution.binding}")


def _flags(found: PlannedLayout, workload: Workload) -> list[str]:
    plans = [entry.plan for entry in found.replicas]
    roles = [entry.replica.role for entry in found.replicas]
    return deployment_flags(plans, roles, workload.prompt_tokens)
