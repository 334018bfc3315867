"""A mixed-integer program, column by column and row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dse.partition.problem import Array
from dse.quiet import stdout_to_stderr

GAP_FRAC = 1e-4
N_SCALINGS = 8

Linear = dict[int, float]
"""Column -> coefficient."""


@dataclass(frozen=True)
class Minimum:
    """``bound``: no point is below it (infinite: there is no point); ``x``: the best point found, if any."""

    bound: float
    x: Array | None


@dataclass
class Program:
    """Columns and rows as they come."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    rows: list[tuple[Linear, float, float]] = field(default_factory=list)

    def column(self, upper: float = np.inf, *, integer: bool = False) -> int:
        """Add a column from 0 to ``upper``."""
        self.lower.append(0.0)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.upper) - 1

    def at_most(self, left: Linear, right: Linear | float) -> None:
        """Add ``left <= right``."""
        if isinstance(right, float):
            self.rows.append((left, -np.inf, right))
            return
        self.rows.append((plus(left, times(right, -1.0)), -np.inf, 0.0))

    def equals(self, left: Linear, right: float) -> None:
        """Add ``left = right``."""
        self.rows.append((left, right, right))

    def minimise(self, objective: Linear, *, integer: bool, time_limit_s: float) -> Minimum:
        """Minimise a linear form, with or without whole numbers, by SCIP or GLOP.

        Raises:
            RuntimeError: the linear program has an answer that is neither optimal nor infeasible.
        """
        from ortools.linear_solver.python import model_builder_helper

        helper: Any = model_builder_helper
        costs = np.zeros(len(self.upper))
        for column, value in objective.items():
            costs[column] = value
        entries = [(r, c, v) for r, (row, _, _) in enumerate(self.rows) for c, v in row.items()]
        rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(self.rows), len(costs)))
        of_rows, of_columns = equilibrium(matrix, fixed=np.array(self.integer))
        costs = costs * of_columns
        scale = float(np.abs(costs).max()) or 1.0
        model = helper.ModelBuilderHelper()
        model.fill_model_from_sparse_data(
            np.array(self.lower) / of_columns,
            np.array(self.upper) / of_columns,
            costs / scale,
            np.array([low for _, low, _ in self.rows]) * of_rows,
            np.array([high for _, _, high in self.rows]) * of_rows,
            sparse.csr_matrix(sparse.diags(of_rows) @ matrix @ sparse.diags(of_columns)),
        )
        if integer:
            for index in np.flatnonzero(self.integer):
                model.set_var_integrality(int(index), True)
        solver = helper.ModelSolverHelper("scip" if integer else "glop")
        solver.set_time_limit_in_seconds(time_limit_s)
        if integer:
            # one of SCIP's heuristics meets numerical trouble near the cutoff, and says so on the terminal
            solver.set_solver_specific_parameters(f"limits/gap = {GAP_FRAC}\nheuristics/alns/freq = -1")
        with stdout_to_stderr():
            solver.solve(model)
        if solver.status() == helper.SolveStatus.INFEASIBLE:
            return Minimum(float("inf"), None)
        x = np.array(solver.variable_values()) * of_columns if solver.has_solution() else None
        if not integer:
            return Minimum(scale * solver.objective_value() if x is not None else float("-inf"), x)
        return Minimum(scale * solver.best_objective_bound() if solver.has_response() else float("-inf"), x)


def plus(*terms: Linear) -> Linear:
    """Return the sum of linear forms."""
    total: Linear = {}
    for term in terms:
        for column, value in term.items():
            total[column] = total.get(column, 0.0) + value
    return total


def times(term: Linear, factor: float) -> Linear:
    """Return a linear form times a number."""
    return {column: value * factor for column, value in term.items()}


def equilibrium(matrix: sparse.csr_matrix, fixed: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return factors of rows and columns that bring the largest entry of each to about 1 (Ruiz 2001).

    Seconds, bytes and counts differ by orders of magnitude, whereas a solver has one tolerance for all.
    ``fixed`` columns keep their unit.
    """
    of_rows, of_columns = np.ones(matrix.shape[0]), np.ones(matrix.shape[1])
    entries = matrix.tocoo()
    rows, columns, size = entries.row, entries.col, np.abs(entries.data)
    for _ in range(N_SCALINGS):
        of_rows /= _root_of_largest(size * of_rows[rows] * of_columns[columns], rows, of_rows)
        roots = _root_of_largest(size * of_rows[rows] * of_columns[columns], columns, of_columns)
        of_columns /= np.where(fixed, 1.0, roots)
    return of_rows, of_columns


def _root_of_largest(values: Array, at: NDArray[np.int32], like: Array) -> Array:
    """Return the square root of the largest value at each place; 1 where there is none."""
    largest = np.zeros_like(like)
    np.maximum.at(largest, at, values)
    return np.sqrt(np.where(largest > 0, largest, 1.0))
