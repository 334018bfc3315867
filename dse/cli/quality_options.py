"""Groups of options of commands that run emulated models: how they are measured, and how weights are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.output import note

if TYPE_CHECKING:
    from dse.formats.precision import Precision
    from dse.graph.operator import OperatorGraph
    from dse.graph.source import ModelSource
    from dse.graph.units import Unit
    from dse.policy import RuntimePolicy
    from studies.measuring import Bench
    from studies.recipes import Recipe


@dataclass(frozen=True)
class MeasureOptions:
    """On which text, where and how a model is run."""

    corpus: str | None = options.CORPUS
    tokens: int = options.TOKENS
    sequence_length: int = options.SEQUENCE
    bos: bool = options.BOS
    dtype: str = options.DTYPE
    block_by_block: bool | None = options.BLOCKS
    device: str | None = options.DEVICE
    seed: int = options.SEED

    def check(self) -> None:
        """Refuse sizes that cannot be, before a model is fetched.

        Raises:
            ConfigError: fewer tokens than one sequence.
        """
        options.check_sizes(tokens=self.tokens, sequence_length=self.sequence_length)

    def source(self, model: str) -> ModelSource:
        """Return a model with its weights.

        Raises:
            ConfigError: no such model, or it has none.
        """
        from studies.catalogue import resolve_model
        from studies.weights import with_weights

        return with_weights(resolve_model(model), note, block_by_block=self.block_by_block)

    def bench(self, source: ModelSource, graph: OperatorGraph, units: tuple[Unit, ...]) -> Bench:
        """Return what evaluators are made from.

        Raises:
            ConfigError: the corpus cannot be read or is empty; no such device.
        """
        from studies.measuring import Bench
        from studies.schema import QualitySpec

        quality = QualitySpec(
            corpus=self.corpus,
            tokens=self.tokens,
            sequence_length=self.sequence_length,
            bos=self.bos,
            dtype=self.dtype,
        )
        return Bench.of(source, graph, units, quality, self.seed, self.device)

    def streams(self, bench: Bench) -> bool:
        """Return whether the weights stay on disk."""
        return bench.exceeds_memory if self.block_by_block is None else self.block_by_block


@dataclass(frozen=True)
class WeightOptions:
    """How weights are brought into their formats."""

    quantizer: str = typer.Option("rtn", "--quantizer", help="rtn or gptq.")
    fit: str = typer.Option(
        "minmax", "--fit", help="Range fit: minmax, mse, percentile, act_clip, importance, salience."
    )
    transform: str = typer.Option(
        "none", "--transform", help="none, awq, smooth, rotate (offline) or quarot (with online rotations)."
    )
    calibration_tokens: int = typer.Option(
        8192, "--calibration-tokens", help="Tokens that quantizers and fits calibrate on."
    )

    def to_json(self) -> dict[str, str]:
        """Return the three ways by name."""
        return {"quantizer": self.quantizer, "fit": self.fit, "transform": self.transform}

    def recipe(self, precision: Precision, policy: RuntimePolicy) -> Recipe:
        """Return them as a recipe."""
        from studies.recipes import Recipe

        return Recipe(
            name="flags",
            precision=precision,
            weights=self.to_json(),
            policy=policy,
            calibration_tokens=self.calibration_tokens,
        )
