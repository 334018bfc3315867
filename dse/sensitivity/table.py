"""How much each unit suffers from each precision: one table type for every metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision


@dataclass(frozen=True)
class SensitivityTable:
    """Penalty of every (unit, precision), lower is better, 0 for the full-precision reference.

    Attributes:
        metric: registered name, e.g. "kl" or "variance"; ``unit``: "nats" for KL, "arbitrary" otherwise.
        units: names of the rows; precisions: the columns.
        penalty: (U, Q).
        model, calibration_hash, seed, n_tokens: what it was measured on; a measured table reused for another
            calibration set is a mistake, so they are part of its identity.
        provenance: "measured" (forward passes) or "analytic" (indicator).
        standard_error: (U, Q) of each penalty where cells stopped early, 0 where one saw the whole text; None
            where all did. cell_tokens: (U, Q) tokens that each cell saw, likewise.
    """

    metric: str
    unit: str
    units: tuple[str, ...]
    precisions: tuple[Precision, ...]
    penalty: NDArray[np.float64]
    model: str
    calibration_hash: str
    seed: int
    n_tokens: int
    provenance: str = "measured"
    standard_error: NDArray[np.float64] | None = None
    cell_tokens: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.units), len(self.precisions))
        if self.penalty.shape != expected:
            raise ValueError(f"penalty must have shape {expected}, but got {self.penalty.shape}")
        for beside in (self.standard_error, self.cell_tokens):
            if beside is not None and beside.shape != expected:
                raise ValueError(f"every array must have shape {expected}, but one has {beside.shape}")
        if not np.isfinite(self.penalty).all():
            raise ValueError("penalties must be finite")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; floats keep all their digits."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "units": list(self.units),
            "precisions": [precision.to_json() for precision in self.precisions],
            "penalty": self.penalty.tolist(),
            "model": self.model,
            "calibration_hash": self.calibration_hash,
            "seed": self.seed,
            "n_tokens": self.n_tokens,
            "provenance": self.provenance,
            **({} if self.standard_error is None else {"standard_error": self.standard_error.tolist()}),
            **({} if self.cell_tokens is None else {"cell_tokens": self.cell_tokens.tolist()}),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> SensitivityTable:
        """Read what ``to_json`` wrote."""
        fields = dict(document)
        fields["units"] = tuple(fields["units"])
        fields["precisions"] = tuple(parse_precision(names) for names in fields["precisions"])
        fields["penalty"] = np.asarray(fields["penalty"], dtype=np.float64)
        for name, kind in (("standard_error", np.float64), ("cell_tokens", np.int64)):
            if name in fields:
                fields[name] = np.asarray(fields[name], dtype=kind)
        return cls(**fields)
