"""Measured sensitivity as Jensen-Shannon divergence (AMQ, arXiv 2509.12019): symmetric and bounded by log 2.

JSD(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, mean per token in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.sensitivity.metric import METRICS


class MeasuredJSD:
    """Forward passes with one unit quantized."""

    unit = "nats"
    provenance = "measured"
    version = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _JSDMeasurement:  # noqa: ARG002
        """Run the full-precision model."""
        return _JSDMeasurement(evaluator)


class _JSDMeasurement:
    def __init__(self, evaluator: QualityEvaluator) -> None:
        self._model = evaluator.model
        self._batches: list[tuple[Tensor, Tensor, list[object]]] = []
        for ids in self._model.tokens(evaluator.sample).split(1):
            with torch.inference_mode(), self._model.recorded() as outputs:
                log_p = torch.log_softmax(self._model.logits(ids)[0].float(), -1)
            self._batches.append((ids, log_p, outputs))

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the mean divergence in nats."""
        formats = self._model.expand([(unit, precision)])
        if formats.is_reference:
            return 0.0
        total, n_tokens = 0.0, 0
        with self._model.applied(formats), torch.inference_mode():
            for ids, log_p, outputs in self._batches:
                with self._model.replayed(outputs[: formats.first_layer or 0]):
                    log_q = torch.log_softmax(self._model.logits(ids)[0].float(), -1)
                total += float(jensen_shannon(log_p, log_q).sum(dtype=torch.float64))
                n_tokens += ids.numel()
        return max(0.0, total / n_tokens)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the divergence (n,) in nats of distributions given as logarithms (n, V)."""
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).clamp(min=1e-38).log()
    return 0.5 * ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1))


METRICS.register("jsd")(MeasuredJSD())
