"""Groups of options of ``dse cost``: the work, and the device or devices that do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.evaluate.beside import Extras
    from dse.evaluate.cost_document import Setting
    from dse.evaluate.tensor_parallel import TensorGroup
    from dse.graph.workload import Workload
    from hardware_specs.spec import HardwareSpec


@dataclass(frozen=True)
class WorkOptions:
    """What is computed, beside the model."""

    batch: int = options.BATCH
    prompt: int = options.PROMPT
    output: int = options.OUTPUT
    transform: str = typer.Option(
        "none", "--transform", help="none, awq, smooth, rotate or quarot, whose online rotations cost time."
    )
    outliers: str | None = typer.Option(
        None,
        "--outliers",
        help="Kept beside quantized weights: csr:0.5%, bitmap:10%, columns:1%, low_rank:16.",
    )

    def workload(self) -> Workload:
        """Return the batch and its lengths."""
        from dse.graph.workload import Workload

        return Workload(batch=self.batch, prompt_tokens=self.prompt, output_tokens=self.output)

    def extras(self) -> Extras:
        """Return what a quantization method adds.

        Raises:
            ConfigError: a name or text that is not allowed.
        """
        from dse.evaluate.beside import Extras, parse_outliers

        return Extras(self.transform, None if self.outliers is None else parse_outliers(self.outliers))


@dataclass(frozen=True)
class DeviceOptions:
    """A device or a group of equal ones, and how they are served."""

    tensor_parallel: int = typer.Option(1, "--tensor-parallel", min=1, help="Devices that share every layer.")
    nodes: int = typer.Option(1, "--nodes", min=1, help="Machines that they are in.")
    offload: list[str] = typer.Option(
        [], "--offload", help="Weights that do not fit lie in host or ssd, as in ssd:3.5GB/s; repeatable."
    )
    hits: str = typer.Option(
        "",
        "--hits",
        help="Hit rates of expert or neuron caches: of the device, then of each level but the last.",
    )
    overlap: float = typer.Option(
        1.0, "--overlap", min=0, max=1, help="Share of the transfers that run beside other layers."
    )
    runtime: str | None = typer.Option(
        None, "--runtime", help="Runtime profile: what it fuses is one kernel, its host time counts."
    )

    def setting(self, spec: HardwareSpec, extras: Extras, grid: float | None) -> Setting:
        """Return how a device serves, in a grid of so many g of CO2e per kWh.

        Raises:
            ConfigError: a name or value that is not allowed, or devices that are not joined.
        """
        from dse.evaluate.cost_document import Setting
        from dse.evaluate.offload import parse_offload
        from hardware_specs.loader import load_runtime

        ways = parse_offload(spec, self.offload, self.hits, self.overlap)
        serving = None if self.runtime is None else load_runtime(self.runtime)
        return Setting(grid, _group(spec, self.tensor_parallel, self.nodes), extras, ways, serving)

    def refuse(self) -> None:
        """Refuse what a plan already says, or its cluster.

        Raises:
            ConfigError: any of it is given.
        """
        if self.offload or self.hits or self.tensor_parallel > 1 or self.runtime is not None:
            raise ConfigError("--offload, --tensor-parallel, --runtime belong to --device", path="--cluster")


def _group(spec: HardwareSpec, degree: int, nodes: int) -> TensorGroup | None:
    """Return the group of equal devices, joined by their own links."""
    from dse.evaluate.tensor_parallel import TensorGroup

    if degree == 1:
        return None
    inner, outer = spec.link("scale_up") or spec.link("host"), spec.link("scale_out")
    if inner is None:
        raise ConfigError(f"{spec.name} has no link to other devices", path="--tensor-parallel")
    if inner.max_devices is not None and degree // nodes > inner.max_devices:
        raise ConfigError(
            f"{inner.name} joins at most {inner.max_devices} devices; give --nodes",
            path="--tensor-parallel",
            value=degree,
        )
    return TensorGroup(spec, degree, inner, nodes, outer)
