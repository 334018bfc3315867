"""The textbook integer program over z[stage, layer, choice], as a reference for the planner.

One program for one device sequence and one pair of micro-batches, in the published form (LLM-PQ, arXiv
2403.01136) with the planner's objective; any of OR-Tools' solvers takes it. Slow, and meant to be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import coupling_rows
from dse.partition.relax_box import staircase_rows
from dse.quiet import stdout_to_stderr

Solver = Literal["highs", "scip", "sat"]


@dataclass(frozen=True)
class ReferenceResult:
    """What the solver says: ``value`` is None where it found nothing."""

    solver: Solver
    value: float | None
    bound: float
    time_s: float

    @property
    def gap_frac(self) -> float:
        """(value - bound) / value, 1 where nothing was found."""
        return 1.0 if self.value is None else (self.value - self.bound) / abs(self.value)


def solve_lane(
    lane: Lane, max_penalty: float | None, solver: Solver, *, time_limit_s: float, gap_frac: float = 0.0
) -> ReferenceResult:
    """Solve one lane with every stage used.

    Variables: z (n L K binaries) and one variable per maximum; rows: one choice per layer, no layer earlier
    in the pipeline than the one before it, no empty stage, and the couplings of ``relax.coupling_rows``.

    Raises:
        RuntimeError: this build of OR-Tools lacks the solver.
    """
    began = time.monotonic()
    stage, layer, choice = np.nonzero(lane.usable)
    n_cols = len(stage)
    coupling = coupling_rows(lane, stage, layer, choice, max_penalty)
    n_all = coupling.matrix.shape[1]
    columns = np.arange(n_cols)

    def sums(of: NDArray[np.int64], n_rows: int) -> Any:
        return sparse.csr_matrix((np.ones(n_cols), (of, columns)), shape=(n_rows, n_all))

    staircase = staircase_rows(stage, layer, lane.n, lane.n_layers, n_all)
    matrix = sparse.vstack(
        [sums(layer, lane.n_layers), sums(stage, lane.n), staircase, sparse.csr_matrix(coupling.matrix)]
    ).tocsr()
    n_couplings = len(coupling.upper)
    low = np.concatenate(
        [np.ones(lane.n_layers + lane.n), np.zeros(staircase.shape[0]), np.full(n_couplings, -np.inf)]
    )
    high = np.concatenate(
        [np.ones(lane.n_layers), np.full(lane.n + staircase.shape[0], np.inf), coupling.upper]
    )
    top = 2 * float(np.abs(coupling.matrix[:, :n_cols]).sum(axis=1).max() + np.abs(coupling.upper).max())
    program = _Program(
        coupling.objective,
        matrix,
        low,
        high,
        np.concatenate([np.zeros(n_cols), np.full(n_all - n_cols, -top)]),
        np.concatenate([np.ones(n_cols), np.full(n_all - n_cols, top)]),
        n_cols,
    )
    run = _by_highs if solver == "highs" else _by_or_tools
    with stdout_to_stderr():
        value, bound = run(program, solver, time_limit_s, gap_frac)
    fixed = lane.terms.constant + float(lane.terms.linear @ lane.fixed)
    return ReferenceResult(
        solver,
        None if value is None else value + fixed,
        max(bound + fixed, 0.0) if np.isfinite(bound) else 0.0,
        time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Program:
    """min objective @ x, low <= matrix @ x <= high, lower <= x <= upper, the first columns integer."""

    objective: Array
    matrix: Any
    low: Array
    high: Array
    lower: Array
    upper: Array
    n_integer: int


def _by_highs(
    program: _Program, _: Solver, time_limit_s: float, gap_frac: float
) -> tuple[float | None, float]:
    integrality = np.zeros(len(program.objective))
    integrality[: program.n_integer] = 1
    result = optimize.milp(
        program.objective,
        constraints=optimize.LinearConstraint(program.matrix, program.low, program.high),
        integrality=integrality,
        bounds=optimize.Bounds(program.lower, program.upper),
        options={"mip_rel_gap": gap_frac, "time_limit": time_limit_s},
    )
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    return (None if result.x is None else float(result.fun)), bound


def _by_or_tools(
    program: _Program, solver: Solver, time_limit_s: float, gap_frac: float
) -> tuple[float | None, float]:
    from ortools.linear_solver.python import model_builder_helper

    helper: Any = model_builder_helper
    model = helper.ModelBuilderHelper()
    model.fill_model_from_sparse_data(
        program.lower, program.upper, program.objective, program.low, program.high, program.matrix
    )
    for column in range(program.n_integer):
        model.set_var_integrality(column, True)
    run = helper.ModelSolverHelper(solver)
    if not run.solver_is_supported():
        raise RuntimeError(f"this build of OR-Tools has no {solver}")
    run.set_time_limit_in_seconds(time_limit_s)
    # CP-SAT knows integers only: the maxima (scaled to about one) are rounded to 1e-6
    parameters = {
        "scip": f"limits/gap = {gap_frac}",
        "sat": f"relative_gap_limit: {gap_frac} num_workers: 2 mip_var_scaling: 1000000",
    }
    run.set_solver_specific_parameters(parameters[solver])
    run.solve(model)
    value = run.objective_value() if run.has_solution() else None
    return value, run.best_objective_bound() if run.has_response() else -np.inf
