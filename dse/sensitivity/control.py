"""The control: random penalties, equal for equal seeds. A metric that ranks no better says nothing."""

from __future__ import annotations

from dse.content import content_hash
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.sensitivity.metric import METRICS


class RandomControl:
    """Uniform numbers in [0, 1) from the seed, the unit and the precision."""

    unit = "arbitrary"
    provenance = "analytic"
    version = 1

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> _Random:  # noqa: ARG002
        """Return the generator of the sample's seed."""
        return _Random(evaluator.sample.seed)


class _Random:
    def __init__(self, seed: int) -> None:
        self._seed = seed

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the unit's random number."""
        if precision.weights.is_float:
            return 0.0
        return int(content_hash([self._seed, unit.layer, list(unit.ops), precision.name])[:8], 16) / 2.0**32


METRICS.register("random")(RandomControl())
