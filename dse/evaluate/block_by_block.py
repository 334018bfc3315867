"""Calibrate, quantize and measure a model whose weights do not fit into memory, one block after the other.

Three streams of hidden states go through the blocks together: full precision, quantized, and the calibration
tokens behind quantized blocks. A block's weights are read once, used for all three, and dropped. The numbers
are those of the whole-model path (``QualityEvaluator``, ``apply_recipe``) to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dse.emulate.calibrate import BATCH_TOKENS, InputStatistics, first_inputs, observed, run_block, swapped
from dse.emulate.compensate import PreparedWeights, WeightRecipe, paths_by_block, quantize_linear
from dse.emulate.corpus import TokenSample
from dse.emulate.model import DTYPES, TensorFormats
from dse.emulate.runtime import applied_with
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError
from dse.evaluate.quality import BATCH_TOKENS as EVALUATION_BATCH_TOKENS
from dse.evaluate.quality import Quality, of_reference, quality_of
from dse.evaluate.quality_scores import TokenScores, compare, reference_scores
from dse.policy import RuntimePolicy

Progress = Callable[[int, int], None]
BlockSink = Callable[[int, Mapping[str, Tensor]], None]
"""(block, all its tensors by parameter name, quantized ones expanded) -> None."""


@dataclass(frozen=True)
class StreamedResult:
    """Both qualities, and the bits that are stored beside the formats."""

    measured: Quality
    baseline: Quality
    extra_bits: int


@dataclass
class _Stream:
    """Hidden states of batches of sequences, and the other arguments of the blocks."""

    ids: list[Tensor]
    hidden: list[Tensor]
    options: list[dict[str, Any]]

    def through(self, layer: Any) -> list[Tensor]:
        return [run_block(layer, x, rest) for x, rest in zip(self.hidden, self.options, strict=True)]


def quantize_block_by_block(
    model: StreamedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    sample: TokenSample,
    *,
    calibration: TokenSample | None = None,
    policy: RuntimePolicy | None = None,
    sink: BlockSink | None = None,
    progress: Progress | None = None,
) -> StreamedResult:
    """Return the quality of a quantized model and of its full-precision self.

    Args:
        model: its weights on disk; formats: what an assignment means.
        recipe: without a transform, which would change blocks across the model.
        sample: evaluation tokens; calibration: where the recipe needs any.
        policy: of the runtime, without static ranges.
        sink: gets every block's tensors, e.g. to write them.
        progress: called with (blocks done, blocks in all).

    Raises:
        ConfigError: a recipe or policy that needs the whole model at once.
    """
    _check(recipe, policy, calibration)
    start_s = time.perf_counter()
    paths = paths_by_block(model, dict(formats.weights))
    prepared = PreparedWeights()
    with torch.inference_mode():
        with model.resident(model.outside_blocks()):
            plain = _stream(model, sample, EVALUATION_BATCH_TOKENS)
            tokens = None if calibration is None else _stream(model, calibration, BATCH_TOKENS)
        quantized = _Stream(plain.ids, list(plain.hidden), plain.options)
        for index, layer in enumerate(model.layers):
            block = model.graph.block_of_layer[index].prefix.format(layer=index)
            with model.resident([block]):
                made = _quantized_block(model, paths[index], formats, recipe, tokens, layer, prepared)
                plain.hidden = plain.through(layer)
                model.prepare(prepared.values, "block", prepared.exact_columns)
                with applied_with(model, _of_block(formats, block), policy or RuntimePolicy()):
                    quantized.hidden = quantized.through(layer)
                if tokens is not None:
                    with swapped(model, made):
                        tokens.hidden = tokens.through(layer)
                if sink is not None:
                    with swapped(model, made):
                        sink(index, {f"{block}.{name}": x for name, x in layer.state_dict().items()})
                prepared.values.clear()
            if progress is not None:
                progress(index + 1, len(model.layers))
        scores = _scores(model, plain, quantized)
    time_s = time.perf_counter() - start_s
    measured, reference = ([pair[i] for pair in scores] for i in (0, 1))
    return StreamedResult(
        quality_of(measured, sample, time_s, model.folder.name),
        quality_of(reference, sample, time_s, model.folder.name),
        sum(prepared.extra_bits.values()),
    )


def _check(recipe: WeightRecipe, policy: RuntimePolicy | None, calibration: TokenSample | None) -> None:
    if recipe.transform != "none":
        raise ConfigError(
            f"transform '{recipe.transform}' needs the whole model in memory, so it cannot go block by block",
            value=recipe.transform,
        )
    if policy is not None and (policy.static_activations or policy.phases):
        raise ConfigError("static ranges and phases need the whole model in memory")
    if recipe.needs_calibration and calibration is None:
        raise ConfigError("this recipe needs calibration tokens")


def _stream(model: StreamedModel, sample: TokenSample, batch_tokens: int) -> _Stream:
    batches = list(model.tokens(sample).split(max(1, batch_tokens // sample.sequence_length)))
    return _Stream(batches, *first_inputs(model, model.layers[0], batches))


def _quantized_block(
    model: StreamedModel,
    paths: list[str],
    formats: TensorFormats,
    recipe: WeightRecipe,
    tokens: _Stream | None,
    layer: Any,
    prepared: PreparedWeights,
) -> dict[str, Tensor]:
    """Return the quantized weights of one block by path, noted in ``prepared``."""
    fmt_of = dict(formats.weights)
    statistics: dict[str, InputStatistics] = {}
    if tokens is not None and recipe.weights_need_calibration:
        with observed(model, paths) as statistics:
            tokens.through(layer)
    made = {}
    for path in paths:
        entry = statistics.pop(path, None)
        made[path] = quantize_linear(model, path, fmt_of[path], recipe, entry, prepared)
    return made


def _of_block(formats: TensorFormats, block: str) -> TensorFormats:
    parts = {
        role: tuple(item for item in getattr(formats, role) if item[0].startswith(f"{block}."))
        for role in ("weights", "activations", "kv")
    }
    return TensorFormats(**parts, first_layer=formats.first_layer)


def _scores(
    model: StreamedModel, plain: _Stream, quantized: _Stream
) -> list[tuple[TokenScores, TokenScores]]:
    """Return (quantized, full precision) of every batch, from what the last block gave."""
    found = []
    n_layers = len(model.layers)
    with model.resident(model.outside_blocks()):
        for ids, x, y in zip(plain.ids, plain.hidden, quantized.hidden, strict=True):
            with model.replayed([x] * n_layers):
                reference = reference_scores(model.logits(ids), ids, DTYPES[model.dtype])
            with model.replayed([y] * n_layers):
                found.append((compare(model.logits(ids), ids, reference), of_reference(reference)))
    return found
