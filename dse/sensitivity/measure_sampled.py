"""Fill a table of measured KL to a stated error, unit by unit; finished cells stay on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dse.content import canonical_json, content_hash, write_atomic
from dse.errors import ConfigError
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.graph.units import Unit
from dse.sensitivity.measure import Progress, cell_identity
from dse.sensitivity.sampled_kl import SampledCell, SampledKL
from dse.sensitivity.table import SensitivityTable


def measure_sampled(
    evaluator: QualityEvaluator,
    units: tuple[Unit, ...],
    precisions: tuple[Precision, ...],
    relative_error: float,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Return the mean KL of every unit at every precision with its standard error, see ``sampled_kl.py``.

    Args:
        evaluator: a float32 model and calibration tokens, whose whole is what is estimated.
        units: rows; precisions: columns.
        relative_error: standard error over value at which a cell stops, in (0, 1).
        cache: folder of finished cells, None to keep none; the error is part of their key.
        progress: called with (cells done, cells in all).

    Raises:
        ConfigError: an error outside (0, 1), or a unit or format that cannot be emulated.
    """
    if not 0 < relative_error < 1:
        raise ConfigError("must be above 0 and below 100 %", path="relative_error", value=relative_error)
    sampled = SampledKL(evaluator, relative_error)
    identity = ["sampled kl", evaluator.identity(), sampled.identity()]
    rows: list[list[SampledCell]] = []
    for unit in units:
        places = [
            None if cache is None else cache / f"{content_hash([identity, cell_identity(unit, each)])}.json"
            for each in precisions
        ]
        row = [None if place is None else _read(place) for place in places]
        missing = [column for column, cell in enumerate(row) if cell is None]
        measured = sampled.measure(unit, [precisions[column] for column in missing])
        for column, cell in zip(missing, measured, strict=True):
            row[column] = cell
            place = places[column]
            if place is not None:
                _write(place, unit, precisions[column], cell)
        rows.append([cell for cell in row if cell is not None])
        if progress is not None:
            progress(len(rows) * len(precisions), len(units) * len(precisions))
    return SensitivityTable(
        metric="kl",
        unit="nats",
        units=tuple(unit.name for unit in units),
        precisions=precisions,
        penalty=np.array([[cell.kl_nats for cell in row] for row in rows]),
        model=evaluator.model.graph.model,
        calibration_hash=content_hash(identity),
        seed=evaluator.sample.seed,
        n_tokens=evaluator.sample.n_tokens,
        standard_error=np.array([[cell.standard_error_nats for cell in row] for row in rows]),
        cell_tokens=np.array([[cell.n_tokens for cell in row] for row in rows], dtype=np.int64),
    )


def _read(place: Path) -> SampledCell | None:
    if not place.is_file():
        return None
    document = json.loads(place.read_text(encoding="utf-8"))
    return SampledCell(document["penalty"], document["standard_error"], document["n_tokens"])


def _write(place: Path, unit: Unit, precision: Precision, cell: SampledCell) -> None:
    document = {
        "metric": "kl",
        "unit": unit.name,
        "precision": precision.name,
        "penalty": cell.kl_nats,
        "standard_error": cell.standard_error_nats,
        "n_tokens": cell.n_tokens,
    }
    write_atomic(place, canonical_json(document))
