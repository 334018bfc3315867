"""Indicators from what each linear reads in one calibration pass of the full-precision model.

With x the inputs of a linear over N tokens, H = 2/N sum x^T x, D = W - Q(W), per unit the sum over its
linears of:

- output_mse: mean over tokens and outputs of (D x)^2, relative to the mean of (W x)^2.
- hessian_trace: tr(H) / columns (APTQ, arXiv 2402.14866). Knows no precision: it ranks units only.
- trace_error: tr(H) / columns * ||D||^2 (HAWQ-V2's trace times error, arXiv 1911.03852).
- obs_salience: sum of w^2 / U_jj^2, H^-1 = U^T U (SliM-LLM, arXiv 2405.14917). Ranks units only.
- obs_error: sum of D^2 / U_jj^2, the same with the error in place of the weight (SpQR, arXiv 2306.03078).
- activation_norm: mean over tokens of |x|^2 (CMPQ's score, squared). Ranks units only.

Activation and cache formats do not change these; scales are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dse.content import content_hash
from dse.emulate.calibrate import InputStatistics, observed_inputs
from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import NumberFormat, Precision
from dse.graph.units import Unit
from dse.quantize.fake import fake_quantize
from dse.quantize.gptq import inverse_factor
from dse.sensitivity.metric import METRICS

Score = Callable[[Tensor, NumberFormat, "LinearInputs"], float]
"""(weight (R, C) float32, its format, what it reads) -> penalty."""


@dataclass(frozen=True)
class InputIndicator:
    """An indicator that needs input statistics."""

    score: Score
    unit: str = "arbitrary"
    provenance: str = "analytic"
    version: int = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _InputMeasurement:
        """Run the calibration pass."""
        model = evaluator.model
        paths = tuple(dict.fromkeys(model.path(unit.layer, op) for unit in units for op in unit.ops))
        key = content_hash(["inputs", model.hash, list(paths)])
        if key not in evaluator.derived:
            evaluator.derived[key] = _observed(evaluator, paths)
        return _InputMeasurement(model, evaluator.derived[key], self.score)


class LinearInputs:
    """Statistics of what a linear reads, and what metrics need of the inverse of its Hessian."""

    def __init__(self, statistics: InputStatistics) -> None:
        self.statistics = statistics

    @cached_property
    def conditional_variance(self) -> Tensor:
        """U_jj^2 (C,) float64, H^-1 = U^T U; the factorisation is done once."""
        upper, _ = inverse_factor(self.statistics.hessian.double())
        return upper.diagonal().square()


def _observed(evaluator: QualityEvaluator, paths: tuple[str, ...]) -> dict[str, LinearInputs]:
    """Return the inputs of linears over the evaluator's tokens; linears that read one tensor share them."""
    with observed_inputs(evaluator.model, paths) as found:
        for part in evaluator.model.tokens(evaluator.sample).split(1):
            evaluator.model.logits(part)
    shared = {id(entry[0]): LinearInputs(entry[0]) for entry in found.values()}
    return {path: shared[id(entry[0])] for path, entry in found.items()}


class _InputMeasurement:
    def __init__(self, model: EmulatedModel, inputs: dict[str, LinearInputs], score: Score) -> None:
        self._model, self._inputs, self._score = model, inputs, score

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the sum over the unit's linears."""
        if precision.weights.is_float:
            return 0.0
        return sum(
            self._score(weight_of(self._model, path), precision.weights, self._inputs[path])
            for path in (self._model.path(unit.layer, op) for op in unit.ops)
        )


def weight_of(model: EmulatedModel, path: str) -> Tensor:
    """Return the weight (outputs, inputs) of a linear in float32."""
    linear, inputs_first = model.linear(path)
    return (linear.weight.t() if inputs_first else linear.weight).detach().float()


def output_mse(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:
    """Return tr(D M D^T) / tr(W M W^T), M the second moments of the inputs."""
    moments = inputs.statistics.moments
    delta = fake_quantize(weight, fmt) - weight
    full = float(((weight @ moments) * weight).sum())
    return float(((delta @ moments) * delta).sum()) / max(full, 1e-30)


def _mean_trace(inputs: LinearInputs) -> float:
    return float(inputs.statistics.hessian.diagonal().double().mean())


def _trace(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:  # noqa: ARG001
    return _mean_trace(inputs)


def trace_error(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:
    """Return tr(H) / columns * ||D||^2."""
    return _mean_trace(inputs) * float((fake_quantize(weight, fmt) - weight).double().square().sum())


def _per_column(values: Tensor, inputs: LinearInputs) -> float:
    return float((values.double().square().sum(0) / inputs.conditional_variance).sum())


def _salience(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:  # noqa: ARG001
    return _per_column(weight, inputs)


def _obs_error(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:
    return _per_column(fake_quantize(weight, fmt) - weight, inputs)


def _activation_norm(weight: Tensor, fmt: NumberFormat, inputs: LinearInputs) -> float:  # noqa: ARG001
    seen = inputs.statistics
    return float(seen.moments.diagonal().double().sum()) / max(seen.n_tokens, 1)


METRICS.register("output_mse")(InputIndicator(output_mse))
METRICS.register("hessian_trace")(InputIndicator(_trace))
METRICS.register("trace_error")(InputIndicator(trace_error))
METRICS.register("obs_salience")(InputIndicator(_salience))
METRICS.register("obs_error")(InputIndicator(_obs_error))
METRICS.register("activation_norm")(InputIndicator(_activation_norm))
