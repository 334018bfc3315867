"""Fill a sensitivity table cell by cell; finished cells stay on disk, so nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dse.sensitivity.control
import dse.sensitivity.divergence
import dse.sensitivity.gradients
import dse.sensitivity.inputs
import dse.sensitivity.variance  # noqa: F401  (registers its metrics)
from dse.content import canonical_json, content_hash, write_atomic
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.registry import Registry
from dse.sensitivity.metric import METRICS, Measurement, SensitivityMetric
from dse.sensitivity.table import SensitivityTable

Progress = Callable[[int, int], None]


def registered_metrics() -> Registry[SensitivityMetric]:
    """Return every metric by name; only here are the modules imported that bring them."""
    return METRICS


def measure_sensitivity(
    metric: str,
    evaluator: QualityEvaluator,
    units: tuple[Unit, ...],
    precisions: tuple[Precision, ...],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Return the penalty of every unit at every precision, each quantized alone.

    Args:
        metric: a registered name, see ``registered_metrics``.
        evaluator: model and calibration tokens; for "kl" a float32 model with ``keep_prefix`` (bfloat16 has a
            noise floor above the effect of 8 bits).
        units: rows; precisions: columns.
        cache: folder of finished cells, None to keep none. A cell's key holds everything that it depends on.
        progress: called with (cells done, cells in all).

    Raises:
        ConfigError: unknown metric, or a unit or format that cannot be emulated.
    """
    chosen = METRICS.get(metric)
    identity = _identity(metric, evaluator)
    penalty = np.zeros((len(units), len(precisions)))
    measurement: Measurement | None = None
    n_cells = penalty.size
    for row, unit in enumerate(units):
        for column, precision in enumerate(precisions):
            key = content_hash([*identity, cell_identity(unit, precision)])
            place = None if cache is None else cache / f"{key}.json"
            if place is not None and place.is_file():
                penalty[row, column] = json.loads(place.read_text(encoding="utf-8"))["penalty"]
            else:
                if measurement is None:
                    measurement = chosen.prepare(evaluator, units)
                penalty[row, column] = measurement.penalty(unit, precision)
                if place is not None:
                    write_atomic(
                        place, canonical_json(_document(metric, unit, precision, penalty[row, column]))
                    )
            if progress is not None:
                progress(row * len(precisions) + column + 1, n_cells)
    return SensitivityTable(
        metric=metric,
        unit=chosen.unit,
        units=tuple(unit.name for unit in units),
        precisions=precisions,
        penalty=penalty,
        model=evaluator.model.graph.model,
        calibration_hash=content_hash(evaluator.identity()),
        seed=evaluator.sample.seed,
        n_tokens=evaluator.sample.n_tokens,
        provenance=chosen.provenance,
    )


def is_measured(
    metric: str,
    evaluator: QualityEvaluator,
    units: tuple[Unit, ...],
    precisions: tuple[Precision, ...],
    cache: Path,
) -> bool:
    """Return whether the cache holds every cell that ``measure_sensitivity`` would need."""
    identity = _identity(metric, evaluator)
    return all(
        (cache / f"{content_hash([*identity, cell_identity(unit, precision)])}.json").is_file()
        for unit in units
        for precision in precisions
    )


def _identity(metric: str, evaluator: QualityEvaluator) -> list[Any]:
    return [metric, METRICS.get(metric).version, evaluator.identity()]


def cell_identity(unit: Unit, precision: Precision) -> list[Any]:
    """Return what a cell is about; the unit's display name is not part of it."""
    return [unit.layer, list(unit.ops), list(unit.attention_ops), precision.to_json()]


def _document(metric: str, unit: Unit, precision: Precision, penalty: float) -> dict[str, Any]:
    """Return the content of a cell's file, readable without the program."""
    return {"metric": metric, "unit": unit.name, "precision": precision.name, "penalty": float(penalty)}
