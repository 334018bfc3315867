"""The contract of a sensitivity metric. A metric is one module of this package that registers one object."""

from __future__ import annotations

from typing import Protocol

from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.registry import Registry


class Measurement(Protocol):
    """A metric bound to a model and its calibration tokens."""

    def penalty(self, unit: Unit, precision: Precision) -> float:
        """Return the penalty of quantizing ``unit`` alone; 0 for full precision."""


class SensitivityMetric(Protocol):
    """How much a unit suffers from a precision, in one number.

    Attributes:
        unit: "nats" or "arbitrary"; provenance: "measured" or "analytic".
        version: part of the cache key; raised when the meaning of the number changes.
    """

    @property
    def unit(self) -> str:
        """Unit of the penalty."""

    @property
    def provenance(self) -> str:
        """Where the number comes from."""

    @property
    def version(self) -> int:
        """Version of the number's meaning."""

    def prepare(self, evaluator: QualityEvaluator, units: tuple[Unit, ...]) -> Measurement:
        """Return a measurement. Only called when some cell is not in the cache; may run the model."""


METRICS: Registry[SensitivityMetric] = Registry("sensitivity metric")
"""Sensitivity metrics by name."""
