"""A recipe applied to a model: the assignment, prepared weights, measured quality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dse.emulate.compensate import WeightRecipe, apply_recipe
from dse.emulate.corpus import TokenSample
from dse.emulate.one_weight import OutlierStore
from dse.emulate.write import BlockWriter, check_empty, write_dequantized
from dse.errors import ConfigError
from dse.evaluate.block_by_block import quantize_block_by_block
from dse.evaluate.effective_bits import effective_bits
from dse.evaluate.quality import Quality
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit, units_of
from dse.plan import Assignment
from studies.measuring import Bench
from studies.progress import StudyProgress
from studies.recipes import Recipe


@dataclass(frozen=True)
class Quantized:
    """A quantized model's result.

    Attributes:
        recipe, assignment: what was done.
        measured, baseline: quality with and without.
        effective_bits, linear_effective_bits: stored bits per parameter, everything included.
        sample: what was measured on; dtype: of the forward passes; device: that ran them.
        calibration: hash of the calibration tokens, None where none were used.
        block_by_block: whether the weights stayed on disk.
    """

    recipe: Recipe
    assignment: Assignment
    measured: Quality
    baseline: Quality
    effective_bits: float
    linear_effective_bits: float
    sample: TokenSample
    dtype: str
    device: str
    calibration: str | None
    block_by_block: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dse evaluate`` and ``dse quantize``."""
        sample = self.sample
        return {
            **_numbers(self.measured),
            "baseline": _numbers(self.baseline),
            "effective_bits": self.effective_bits,
            "linear_effective_bits": self.linear_effective_bits,
            "n_tokens": self.measured.n_tokens,
            "sequence_length": self.measured.sequence_length,
            "bos": sample.bos,
            "corpus": sample.corpus,
            "corpus_hash": sample.corpus_hash,
            "calibration_hash": self.calibration,
            "dtype": self.dtype,
            "device": self.device,
            "block_by_block": self.block_by_block,
            "seed": sample.seed,
            "recipe": self.recipe.to_json(),
            "time_s": self.measured.time_s,
        }


def assignment_of(recipe: Recipe, graph: OperatorGraph) -> tuple[Assignment, tuple[Unit, ...]]:
    """Return the precision of every unit: blocks, or single linears where roles differ.

    Raises:
        ConfigError: a role that no linear has.
    """
    units = units_of(graph, "linear" if recipe.roles else "block")
    by_role = dict(recipe.roles)
    known = {op.rpartition(".")[2] for unit in units for op in unit.ops}
    for role in by_role:
        if role not in known:
            raise ConfigError(f"unknown role '{role}'", path="roles", value=role, allowed=known)
    items = []
    for unit in units:
        chosen = by_role.get(unit.name.rpartition(".")[2], recipe.precision)
        # The cache belongs to the whole model: an exception is about weights and activations.
        items.append((unit.name, replace(chosen, kv=recipe.precision.kv)))
    return Assignment(tuple(items)), units


def weight_recipe(recipe: Recipe, seed: int) -> WeightRecipe:
    """Return the weight part of a recipe.

    Raises:
        ConfigError: an unknown name, or a value that is not allowed.
    """
    fields = dict(recipe.weights)
    outliers = fields.pop("outliers", None)
    store = None
    if outliers is not None:
        try:
            store = OutlierStore(**outliers)
        except ConfigError as error:
            path = "outliers" if error.path is None else f"outliers.{error.path}"
            raise ConfigError(error.message, path=path, value=error.value, allowed=error.allowed) from error
    return WeightRecipe(**fields, outliers=store, seed=seed)


def quantize(
    bench: Bench,
    recipe: Recipe,
    assignment: Assignment,
    progress: StudyProgress,
    *,
    output: Path | None = None,
    block_by_block: bool = False,
) -> Quantized:
    """Apply a recipe with an assignment of the bench's units, and measure.

    Args:
        bench: model and corpus; recipe, assignment: what to do.
        progress: of the steps.
        output: folder for the quantized weights, expanded to the dtype, with the result as a record.
        block_by_block: leave the weights on disk and hold one block at a time.

    Raises:
        ConfigError: a format, an architecture or a corpus that a step cannot take; a folder that is not
            empty, or a model with online steps, which no plain checkpoint holds.
    """
    how = weight_recipe(recipe, bench.seed)
    if output is not None:
        check_empty(output)
        if how.transform == "quarot":
            raise ConfigError(
                "'quarot' turns activations while the model runs, which a checkpoint cannot hold "
                "(use 'rotate', which is offline, or leave --output out)",
                path="transform.kind",
            )
    calibrates = how.needs_calibration or recipe.policy.static_activations
    calibration = bench.calibration_sample(recipe.calibration_tokens) if calibrates else None
    run = _on_disk if block_by_block else _in_memory
    return run(bench, recipe, how, assignment, calibration, progress, output)


def _in_memory(
    bench: Bench,
    recipe: Recipe,
    how: WeightRecipe,
    assignment: Assignment,
    calibration: TokenSample | None,
    progress: StudyProgress,
    output: Path | None,
) -> Quantized:
    evaluator = bench.finalist_evaluator(recipe.policy, calibration)
    formats = evaluator.model.formats_of(assignment)
    progress.step("measuring full precision")
    baseline = evaluator.reference(progress.advance)
    extra_bits = 0
    if not how.is_plain:
        evaluator.hold_reference()
        progress.step(f"quantizing the weights ({how.transform}, {how.quantizer}, {how.fit})")
        prepared = apply_recipe(evaluator.model, formats, how, calibration, progress.advance)
        extra_bits = sum(prepared.extra_bits.values())
    progress.step("measuring the quantized model")
    measured = evaluator.evaluate(assignment, progress.advance)
    whole, linear = effective_bits(bench.graph, assignment, bench.units, extra_bits)
    used = None if calibration is None else calibration.hash
    model = evaluator.model
    result = Quantized(
        recipe,
        assignment,
        measured,
        baseline,
        whole,
        linear,
        evaluator.sample,
        model.dtype,
        model.device_label,
        used,
    )
    if output is not None:
        progress.step(f"writing {output}")
        write_dequantized(evaluator.model, formats, output, result.to_json())
    return result


def _on_disk(
    bench: Bench,
    recipe: Recipe,
    how: WeightRecipe,
    assignment: Assignment,
    calibration: TokenSample | None,
    progress: StudyProgress,
    output: Path | None,
) -> Quantized:
    model, sample = bench.streamed_model(), bench.evaluation_sample()
    writer = None if output is None else BlockWriter(model, output)
    progress.step(f"block by block: quantizing ({how.quantizer}, {how.fit}) and measuring")
    done = quantize_block_by_block(
        model,
        model.formats_of(assignment),
        how,
        sample,
        calibration=calibration,
        policy=recipe.policy,
        sink=None if writer is None else writer.add,
        progress=progress.advance,
    )
    whole, linear = effective_bits(bench.graph, assignment, bench.units, done.extra_bits)
    used = None if calibration is None else calibration.hash
    result = Quantized(
        recipe,
        assignment,
        done.measured,
        done.baseline,
        whole,
        linear,
        sample,
        model.dtype,
        model.device_label,
        used,
        block_by_block=True,
    )
    if writer is not None:
        progress.step(f"writing {output}")
        writer.finish(result.to_json())
    return result


def _numbers(quality: Quality) -> dict[str, float]:
    return {
        "perplexity": quality.perplexity,
        "kl_nats": quality.kl_nats,
        "top1_agreement_frac": quality.top1_agreement_frac,
    }
