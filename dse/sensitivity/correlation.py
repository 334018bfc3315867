"""Do two metrics agree? Spearman's rank correlation of two sensitivity tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dse.errors import ConfigError
from dse.formats.precision import Precision
from dse.sensitivity.table import SensitivityTable


def rank_correlation(first: SensitivityTable, second: SensitivityTable) -> float | None:
    """Return Spearman's rho over all (unit, precision) cells.

    Columns of full precision, which are 0 in both tables, do not count. None where it is undefined: fewer
    than two cells, or all cells of a table equal.

    Raises:
        ConfigError: the tables have different units or precisions.
    """
    _check(first, second)
    kept = [index for index, precision in enumerate(first.precisions) if not _is_reference(precision)]
    return _spearman(first.penalty[:, kept].ravel(), second.penalty[:, kept].ravel())


def rank_correlation_by_precision(
    first: SensitivityTable, second: SensitivityTable
) -> dict[str, float | None]:
    """Return Spearman's rho over the units, for each precision by name; None where it is undefined.

    The correlation over all cells is dominated by the widths, on which every metric agrees; these say whether
    the metrics order the *units* alike.
    """
    _check(first, second)
    return {
        precision.name: _spearman(first.penalty[:, index], second.penalty[:, index])
        for index, precision in enumerate(first.precisions)
        if not _is_reference(precision)
    }


def _check(first: SensitivityTable, second: SensitivityTable) -> None:
    if first.units != second.units or first.precisions != second.precisions:
        raise ConfigError(
            f"sensitivity tables '{first.metric}' and '{second.metric}' have different units or precisions"
        )


def _is_reference(precision: Precision) -> bool:
    return precision.weights.is_float and precision.activations.is_float and precision.kv.is_float


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
