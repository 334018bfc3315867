"""Lower bounds of many cuts at once: the linear relaxation of a box of boundaries.

A layer may be spread over stages as long as it is no earlier in the pipeline than the layer before it; the
staircases of these fractions are exactly the mixtures of cuts. As in ``relax``, the multipliers are only a
proposal: the bound they prove is evaluated over the box by dynamic programming.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dse.partition.cuts import Boundaries
from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import Multipliers, coupling_rows, feasible_multipliers, run_linear_program


@dataclass(frozen=True)
class RelaxedBox:
    """Solution of the relaxation of a box.

    Attributes:
        multipliers: feasible ones.
        boundary: (n + 1) mean position of every boundary; spread: (n + 1) its standard deviation.
    """

    multipliers: Multipliers
    boundary: Array
    spread: Array


def relax_box(lane: Lane, lo: Boundaries, hi: Boundaries, max_penalty: float | None) -> RelaxedBox | None:
    """Solve the relaxation over all cuts of a box. None if it is infeasible."""
    n, n_layers = lane.n, lane.n_layers
    layers = np.arange(n_layers)
    inside = (layers >= lo[:-1, None]) & (layers < hi[1:, None])
    stage, layer, choice = np.nonzero(lane.usable & inside[:, :, None])
    n_cols = len(stage)
    coupling = coupling_rows(lane, stage, layer, choice, max_penalty)
    n_tail = coupling.matrix.shape[1] - n_cols
    columns = np.arange(n_cols)
    one_each = sparse.csr_matrix((np.ones(n_cols), (layer, columns)), shape=(n_layers, n_cols + n_tail))
    staircase = staircase_rows(stage, layer, n, n_layers, n_cols + n_tail)
    solved = run_linear_program(
        coupling.objective,
        sparse.vstack([one_each, staircase, sparse.csr_matrix(coupling.matrix)]).tocsr(),
        np.concatenate(
            [np.ones(n_layers), np.zeros(staircase.shape[0]), np.full(len(coupling.upper), -np.inf)]
        ),
        np.concatenate([np.ones(n_layers), np.full(staircase.shape[0], np.inf), coupling.upper]),
        n_cols,
    )
    if solved is None:
        return None
    x, duals = solved
    multipliers = feasible_multipliers(lane, -duals[-len(coupling.upper) :], coupling, max_penalty)
    share = np.zeros((n, n_layers))
    np.add.at(share, (stage, layer), x[:n_cols])
    beyond = np.concatenate([np.zeros((1, n_layers)), np.cumsum(share, axis=0)])  # P(layer < boundary)
    mean = beyond.sum(axis=1)
    # a boundary c is > i with probability beyond[i], so E c^2 = sum (2 i + 1) beyond[i]
    square = beyond @ (2 * layers + 1)
    return RelaxedBox(multipliers, mean, np.sqrt(np.maximum(square - mean**2, 0.0)))


def staircase_rows(
    stage: NDArray[np.int64], layer: NDArray[np.int64], n: int, n_layers: int, n_cols: int
) -> Any:
    """Rows: the share of layer i on stages 0..s is at least that of layer i + 1, s < n - 1."""
    rows, cols, values = [], [], []
    columns = np.arange(len(stage))
    for s in range(n - 1):
        upto = stage <= s
        for shift, sign in ((0, 1.0), (1, -1.0)):
            at = layer[upto] - shift
            fits = (at >= 0) & (at < n_layers - 1)
            rows.append(s * (n_layers - 1) + at[fits])
            cols.append(columns[upto][fits])
            values.append(np.full(int(fits.sum()), sign))
    shape = ((n - 1) * (n_layers - 1), n_cols)
    if not rows:
        return sparse.csr_matrix(shape)
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=shape
    )
