"""Indicators from gradients of the next-token loss, one backward pass per calibration sequence d.

With g_d = dLoss_d / dW and D = Q(W) - W, over the linears of a unit:

- first_order: sum_d |<g_d, D>| (LLM-MQ: the magnitude is taken of each sequence's inner product).
- fisher: sum_d sum g_d^2 D^2 / 2, the diagonal of the empirical Fisher matrix (SqueezeLLM, arXiv 2306.07629).

Gradients are not kept: all units are scored for one format in one sweep over the sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dse.content import content_hash
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import NumberFormat, Precision
from dse.graph.units import Unit
from dse.quantize.fake import fake_quantize
from dse.sensitivity.inputs import weight_of
from dse.sensitivity.metric import METRICS


@dataclass
class GradientScores:
    """Of one format: <g_d, D> of each sequence and sum_d sum g_d^2 D^2 / 2, by path."""

    products: dict[str, list[float]] = field(default_factory=dict)
    fisher: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GradientIndicator:
    """First order, or Fisher."""

    order: int
    unit: str = "arbitrary"
    provenance: str = "analytic"
    version: int = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _GradientMeasurement:
        """Return the measurement; a format's sweep happens with its first cell."""
        return _GradientMeasurement(evaluator, units, self.order)


class _GradientMeasurement:
    def __init__(self, evaluator: QualityEvaluator, units: tuple[Unit, ...], order: int) -> None:
        self._model = evaluator.model
        self._ids = self._model.tokens(evaluator.sample)
        self._paths = tuple(dict.fromkeys(self._model.path(u.layer, op) for u in units for op in u.ops))
        self._order = order
        key = content_hash(["gradients", evaluator.model.hash, list(self._paths)])
        self._scores: dict[str, GradientScores] = evaluator.derived.setdefault(key, {})

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the indicator of the unit."""
        fmt = precision.weights
        if fmt.is_float:
            return 0.0
        if fmt.name not in self._scores:
            self._scores[fmt.name] = gradient_scores(self._model, self._paths, self._ids, fmt)
        scores = self._scores[fmt.name]
        paths = [self._model.path(unit.layer, op) for op in unit.ops]
        if self._order == 2:
            return sum(scores.fisher[path] for path in paths)
        per_sequence = zip(*(scores.products[path] for path in paths), strict=True)
        return sum(abs(sum(products)) for products in per_sequence)


def gradient_scores(
    model: EmulatedModel, paths: tuple[str, ...], ids: Tensor, fmt: NumberFormat
) -> GradientScores:
    """Return the scores of linears at one format over sequences ``ids`` (n, length)."""
    scores = GradientScores({path: [] for path in paths}, dict.fromkeys(paths, 0.0))
    deltas: dict[str, Tensor] = {}
    for path in paths:
        weight = weight_of(model, path)
        delta = fake_quantize(weight, fmt) - weight
        deltas[path] = (delta.t() if model.linear(path)[1] else delta).to(torch.bfloat16)
    for sequence in ids.split(1):
        with _with_gradients(model, paths):
            logits = model.module(input_ids=sequence, use_cache=False).logits[0, :-1].float()
            torch.nn.functional.cross_entropy(logits, sequence[0, 1:]).backward()
            for path in paths:
                gradient = model.linear(path)[0].weight.grad
                assert gradient is not None
                product = gradient.float() * deltas[path]
                scores.products[path].append(float(product.sum(dtype=torch.float64)))
                scores.fisher[path] += 0.5 * float(product.square().sum(dtype=torch.float64))
    return scores


@contextmanager
def _with_gradients(model: EmulatedModel, paths: tuple[str, ...]) -> Iterator[None]:
    weights = [model.linear(path)[0].weight for path in paths]
    try:
        for weight in weights:
            weight.requires_grad_(requires_grad=True)
        with torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(requires_grad=False)


METRICS.register("first_order")(GradientIndicator(1))
METRICS.register("fisher")(GradientIndicator(2))
