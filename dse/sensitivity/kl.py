"""Measured sensitivity: the KL divergence that quantizing one unit alone causes.

KL(full || quantized), mean per token in nats, which is the control that every indicator is compared with.

Tokens and dtype, on five blocks of the demo model against 1024 tokens in float32 (whose part they are, which
flatters them a little): 256 tokens in two
sequences give the cells within 8 to 15 % and Spearman 0.995, 512 tokens (two sequences of 256) within 3 to
7 % and 0.998. In bfloat16 a block at 8 bits reads 50 times too high and at 6 bits 4 times, more for early
blocks than for late ones, so that units are ordered wrongly; from 4 bits down it agrees.
"""

from __future__ import annotations

from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.sensitivity.metric import METRICS


class MeasuredKL:
    """Forward passes with one unit quantized."""

    unit = "nats"
    provenance = "measured"
    version = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _KLMeasurement:  # noqa: ARG002
        """Return the measurement; the reference pass happens with the first cell."""
        return _KLMeasurement(evaluator)


class _KLMeasurement:
    def __init__(self, evaluator: QualityEvaluator) -> None:
        self._evaluator = evaluator

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the mean KL in nats; a value below 0 is float rounding and counts as 0."""
        formats = self._evaluator.model.expand([(unit, precision)])
        if formats.is_reference:
            return 0.0
        return max(0.0, self._evaluator.measure(formats).kl_nats)


METRICS.register("kl")(MeasuredKL())
