"""LLM-PQ's variance indicator: omega(unit, b) = sum over its linears o of D_o * S_o(b)^2 * G(X_o).

Source: LLM-PQ, arXiv 2403.01136, section on the indicator. D_o is the number of input columns (the summed
terms of one output), S_o(b) the quantization step of the weight, X_o the linear's input:

- deterministic rounding: |error| <= S/2, so G(X) = Var[X] / 4
- stochastic rounding: the error's second moment is S^2 / 6 on average, so G(X) = (E[X]^2 + Var[X]) / 6

The published step is per tensor, (max W - min W) / (2^(b-1) - 1), which on a grid of 2^b codes is about
twice the real one. Here S is the step that the format really has: for integers S^2 is the mean of the squared
scales of the tensor (one for "tensor", one per row or group). Other kinds have no single step; there S^2 =
12 * mean squared rounding error, the step of a uniform grid with that error.
E and Var are over all elements of the input, in one calibration forward pass of the full-precision model.

The indicator looks at weights only: activation and cache formats do not change it. Its scale is arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from dse.emulate.model import EmulatedModel
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import NumberFormat, Precision
from dse.graph.units import Unit
from dse.quantize.fake import fake_quantize, quantize_codes
from dse.sensitivity.metric import METRICS

Rounding = Literal["deterministic", "stochastic"]


@dataclass
class InputMoments:
    """Running sums over the elements of a linear's input."""

    n: int = 0
    total: float = 0.0
    total_square: float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in x, any shape."""
        values = x.double()
        self.n += values.numel()
        self.total += float(values.sum())
        self.total_square += float(values.square().sum())

    @property
    def mean(self) -> float:
        """E[X]."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Var[X] = E[X^2] - E[X]^2."""
        return max(0.0, self.total_square / self.n - self.mean**2)


def input_factor(moments: InputMoments, rounding: Rounding) -> float:
    """Return G(X), see the module's docstring."""
    if rounding == "deterministic":
        return moments.variance / 4.0
    return (moments.mean**2 + moments.variance) / 6.0


def step_square(weight: Tensor, fmt: NumberFormat) -> float:
    """Return S^2 of a weight (outputs, inputs) under a format; 0 for "float" formats."""
    if fmt.is_float:
        return 0.0
    if fmt.kind == "int":
        return float(quantize_codes(weight, fmt).scale.double().square().mean())
    source = weight.float()
    return 12.0 * float((fake_quantize(source, fmt) - source).double().square().mean())


def collect_moments(evaluator: QualityEvaluator, paths: tuple[str, ...]) -> dict[str, InputMoments]:
    """Return the moments of the inputs of linears, by module path, over the evaluator's tokens."""
    model = evaluator.model
    moments = {path: InputMoments() for path in paths}
    hooks = [
        model.linear(path)[0].register_forward_pre_hook(partial(_observe, entry))
        for path, entry in moments.items()
    ]
    try:
        for ids in model.tokens(evaluator.sample).split(1):
            model.logits(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _observe(moments: InputMoments, _: nn.Module, args: tuple[Any, ...]) -> None:
    moments.add(args[0])


@dataclass(frozen=True)
class VarianceIndicator:
    """The indicator with one kind of rounding."""

    rounding: Rounding
    unit: str = "arbitrary"
    provenance: str = "analytic"
    version: int = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _VarianceMeasurement:
        """Run the calibration pass."""
        model = evaluator.model
        paths = dict.fromkeys(model.path(unit.layer, op) for unit in units for op in unit.ops)
        return _VarianceMeasurement(model, collect_moments(evaluator, tuple(paths)), self.rounding)


class _VarianceMeasurement:
    def __init__(self, model: EmulatedModel, moments: dict[str, InputMoments], rounding: Rounding) -> None:
        self._model = model
        self._moments = moments
        self._rounding = rounding

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return omega."""
        omega = 0.0
        for op in unit.ops:
            path = self._model.path(unit.layer, op)
            linear, inputs_first = self._model.linear(path)
            weight = linear.weight.t() if inputs_first else linear.weight
            factor = input_factor(self._moments[path], self._rounding)
            omega += weight.shape[1] * step_square(weight, precision.weights) * factor
        return omega


METRICS.register("variance")(VarianceIndicator("deterministic"))
METRICS.register("variance_stochastic")(VarianceIndicator("stochastic"))
