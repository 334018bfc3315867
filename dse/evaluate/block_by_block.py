"""Calibrate, quantize and measure a model whose weights do not fit into memory, one block after the other.

Streams of hidden states go through the blocks together: full precision, quantized, and calibration tokens
behind quantized blocks, behind transformed ones (static ranges) or behind those of the checkpoint (scales). A
block's weights are read once, used for all, and dropped. The numbers are those of the whole-model path
(``QualityEvaluator``, ``apply_recipe``) to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dse.emulate.block_transforms import transform_of
from dse.emulate.calibrate import BATCH_TOKENS, HiddenStream, observed, swapped
from dse.emulate.compensate import PreparedWeights, WeightRecipe, paths_by_block, quantize_linear
from dse.emulate.corpus import TokenSample
from dse.emulate.model import DTYPES, TensorFormats
from dse.emulate.runtime import applied_with
from dse.emulate.static_activations import Ranges, seen_ranges
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError
from dse.evaluate.quality import BATCH_TOKENS as EVALUATION_BATCH_TOKENS
from dse.evaluate.quality import Quality, of_reference, quality_of
from dse.evaluate.quality_scores import TokenScores, compare, reference_scores
from dse.formats.precision import NumberFormat
from dse.policy import RuntimePolicy

Progress = Callable[[int, int], None]
Sink = Callable[[str, Mapping[str, Tensor]], None]
"""(part of the model, all its tensors by parameter name, quantized ones expanded) -> None."""


@dataclass(frozen=True)
class StreamedResult:
    """Both qualities, and the bits that are stored beside the formats."""

    measured: Quality
    baseline: Quality
    extra_bits: int


def quantize_block_by_block(
    model: StreamedModel,
    formats: TensorFormats,
    recipe: WeightRecipe,
    sample: TokenSample,
    *,
    calibration: TokenSample | None = None,
    policy: RuntimePolicy | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> StreamedResult:
    """Return the quality of a quantized model and of its full-precision self.

    Args:
        model: its weights on disk; formats: what an assignment means.
        recipe: of the weights; "principal" reads them twice, as its basis looks at all blocks.
        sample: evaluation tokens; calibration: where recipe or policy need any.
        policy: of the runtime.
        sink: gets every part's tensors, e.g. to write them.
        progress: called with (blocks done, blocks in all).

    Raises:
        ConfigError: no calibration tokens for what needs some, or what the parts refuse.
    """
    held = policy or RuntimePolicy()
    if calibration is None and (recipe.needs_calibration or held.static_activations):
        raise ConfigError("this recipe or its static ranges need calibration tokens")
    start_s = time.perf_counter()
    with torch.inference_mode():
        walk = _Walk(model, formats, recipe, held, sample, calibration, sink)
        for index in range(len(model.layers)):
            walk.block(index)
            if progress is not None:
                progress(index + 1, len(model.layers))
        scores = walk.scores()
    time_s = time.perf_counter() - start_s
    measured, reference = ([pair[i] for pair in scores] for i in (0, 1))
    return StreamedResult(
        quality_of(measured, sample, time_s, model.folder.name),
        quality_of(reference, sample, time_s, model.folder.name),
        walk.extra_bits,
    )


class _Walk:
    """The streams on their way through the model."""

    def __init__(
        self,
        model: StreamedModel,
        formats: TensorFormats,
        recipe: WeightRecipe,
        policy: RuntimePolicy,
        sample: TokenSample,
        calibration: TokenSample | None,
        sink: Sink | None,
    ) -> None:
        """Begin before the first block."""
        self.model, self.formats, self.recipe, self.policy = model, formats, recipe, policy
        self.sink = sink
        self.extra_bits = 0
        self.paths = paths_by_block(model, dict(formats.weights))
        ids = None if calibration is None else model.tokens(calibration)
        self.transform = transform_of(model, recipe, dict(formats.weights), ids)
        with model.resident(model.before_blocks()):
            self.plain = HiddenStream.of(model, model.tokens(sample), EVALUATION_BATCH_TOKENS)
            self.transform.inputs()
            self.quantized = HiddenStream.of(model, model.tokens(sample), EVALUATION_BATCH_TOKENS)
            self.behind_quantized = self._calibration(ids, BATCH_TOKENS, recipe.weights_need_calibration)
            self.behind_exact = self._calibration(ids, 1, policy.static_activations)
            after = model.after_blocks()
            self._pass_on("embedding", model.held([n for n in model.before_blocks() if n not in after]))

    def _calibration(self, ids: Tensor | None, batch_tokens: int, needed: bool) -> HiddenStream | None:
        return HiddenStream.of(self.model, ids, batch_tokens) if needed and ids is not None else None

    def block(self, index: int) -> None:
        """Take all streams through one block."""
        model, layer = self.model, self.model.layers[index]
        prefix = model.block_path(index)
        with model.resident([prefix]):
            self.plain.advance(layer)
            with self.transform.block(index):
                made = self._quantized_weights(index, layer)
                ranges = self._ranges(index, layer)
                with applied_with(model, self.formats.under(prefix), self.policy, ranges, within=prefix):
                    self.quantized.advance(layer)
                with swapped(model, made):
                    if self.behind_quantized is not None:
                        self.behind_quantized.advance(layer)
                    self._pass_on(f"block-{index:03d}", model.held([prefix]))

    def _quantized_weights(self, index: int, layer: Any) -> dict[str, Tensor]:
        """Return the quantized weights of a block by path, which the model uses from now on."""
        model, paths, fmt_of = self.model, self.paths[index], dict(self.formats.weights)
        if self.recipe.is_plain:  # rounded where they are applied, as integer products need it
            return {} if self.sink is None else {path: self._rounded(path, fmt_of[path]) for path in paths}
        prepared = PreparedWeights()
        if self.behind_quantized is None:
            made = {
                path: quantize_linear(model, path, fmt_of[path], self.recipe, None, prepared)
                for path in paths
            }
        else:
            with observed(model, paths) as statistics:
                self.behind_quantized.through(layer)
            made = {
                path: quantize_linear(model, path, fmt_of[path], self.recipe, statistics.pop(path), prepared)
                for path in list(statistics)
            }
        model.prepare(prepared.values, "block", prepared.exact_columns)
        self.extra_bits += sum(prepared.extra_bits.values())
        return made

    def _rounded(self, path: str, fmt: NumberFormat) -> Tensor:
        linear, inputs_first = self.model.linear(path)
        return self.model.store.get(path, linear.weight, fmt, inputs_first=inputs_first).data

    def _ranges(self, index: int, layer: Any) -> Ranges | None:
        """Return the input ranges of a block's linears in full precision, where activations are static."""
        if self.behind_exact is None:
            return None
        prefix = self.model.block_path(index)
        with seen_ranges(self.model, self.model.linear_paths(prefix)) as ranges:
            self.behind_exact.advance(layer)
        return ranges

    def scores(self) -> list[tuple[TokenScores, TokenScores]]:
        """Return (quantized, full precision) of every batch, from what the last block gave."""
        model, found = self.model, []
        names = model.after_blocks()
        with model.resident(names):
            exact = model.held(names)
            self.transform.outputs()
            changed = model.held(names)
            self._pass_on("head", changed)
            for ids, x, y in zip(self.plain.ids, self.plain.hidden, self.quantized.hidden, strict=True):
                model.hold(exact)
                reference = reference_scores(model.logits_behind(x), ids, DTYPES[model.dtype])
                model.hold(changed)
                scores = compare(model.logits_behind(y), ids, reference)
                found.append((scores, of_reference(reference)))
        return found

    def _pass_on(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        if self.sink is not None:
            self.sink(part, tensors)
