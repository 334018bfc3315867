"""``dse bench planner``: the planner beside the textbook integer program, in one run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.bench_layout import NAME as LARGEST
from dse.cli.bench_layout import solve_largest
from dse.cli.output import emit_json, note, table

if TYPE_CHECKING:
    from dse.partition.problem import Array, PipelineProblem
    from dse.partition.reference import Solver

SOLVERS: tuple[Solver, ...] = ("highs", "scip", "sat")


@dataclass(frozen=True)
class Row:
    """One solver on one problem; values in the problem's unit, None where nothing was found or timed."""

    problem: str
    solver: str
    value: float | None
    bound: float
    gap_frac: float
    time_s: float | None


def planner(
    time_limit: float = typer.Option(30.0, "--time-limit", min=0.1, help="Seconds per solver and problem."),
    reference: bool = typer.Option(True, help="Also run HiGHS, SCIP and CP-SAT on the textbook program."),
    as_json: bool = options.JSON,
) -> None:
    """Solve published and seeded planning problems, beside the plain z[stage, layer, choice] program."""
    from dse.partition import instances

    rows: list[Row] = []
    solvers = SOLVERS if reference else ()
    _warm_up()
    seeded = instances.seeded()
    one_bit_each = float(seeded.penalty[:, 1].sum())
    problems: list[tuple[str, PipelineProblem, float | None, float]] = [
        ("B2 LLM-PQ cluster 3, OPT-30B (73.8804 s)", instances.llmpq_cluster3(), None, 1e-9)
    ]
    problems += [
        (f"B3 measured tables, prefill of {size} ({known} s)", instances.llmpq_measured(size), None, 1e-9)
        for size, known in ((2, "44.12649"), (4, "45.31417"), (8, "50.28861"))
    ]
    problems.append(("64 layers, 8 devices of 3 types, 4 precisions, to 0.1 %", seeded, one_bit_each, 1e-3))
    for name, problem, bound, gap in problems:
        note(name)
        rows += _pipeline_rows(name, problem, bound, gap, solvers, time_limit)
    note("the same, all 560 orders and 16 pairs of micro-batches")
    rows.append(_all_orders_row(time_limit))
    note("published planners")
    rows += _published_rows()
    note("2,000 units x 8 precisions on one device")
    rows += _allocation_rows(solvers, time_limit)
    note("Helix, LLaMA-30B on 6 T4 and 4 L4")
    rows.append(_placement_row())
    note(LARGEST)
    rows.append(_layout_row(2 * time_limit))
    if as_json:
        emit_json({"rows": [asdict(row) for row in rows]})
        return
    table(
        "Planning problems (placement: tokens/s, bound from above; allocation: penalty; else seconds)",
        ("problem", "solver", "value", "bound", "gap", "time"),
        [
            (
                row.problem,
                row.solver,
                "nothing found" if row.value is None else f"{row.value:.5f}",
                f"{row.bound:.5f}",
                f"{row.gap_frac:.2g}",
                "" if row.time_s is None else f"{row.time_s:.3f} s",
            )
            for row in rows
        ],
        numeric_from=2,
    )


def _pipeline_rows(
    name: str,
    problem: PipelineProblem,
    max_penalty: float | None,
    gap_frac: float,
    solvers: tuple[Solver, ...],
    time_limit_s: float,
) -> list[Row]:
    from dse.partition.branch import Limits
    from dse.partition.lanes import LaneFactory
    from dse.partition.problem import Goal
    from dse.partition.reference import solve_lane
    from dse.partition.solve import Planner

    goal = Goal("makespan", max_penalty=max_penalty)
    own = Planner(problem, goal, Limits(time_s=time_limit_s, gap_frac=gap_frac)).solve(max_penalty)
    rows = [Row(name, "dse", own.value, own.bound or 0.0, own.gap_frac or 0.0, own.time_s)]
    (lane,) = LaneFactory(problem, goal).lanes()
    for solver in solvers:
        try:
            found = solve_lane(lane, max_penalty, solver, time_limit_s=time_limit_s, gap_frac=gap_frac)
        except RuntimeError as reason:
            note(str(reason))
            continue
        rows.append(Row(name, solver, found.value, found.bound, found.gap_frac, found.time_s))
    return rows


def _published_rows() -> list[Row]:
    """Return what published planners do on cluster 3, either type first, beside the proven optimum.

    Losing 1 at 8 bits and 20 at 4 (and 100 at 3) makes AdaBits choose the bits that LLM-PQ's log records.
    """
    import numpy as np

    from dse.partition.baselines import mixed_baselines, one_precision_baselines
    from dse.partition.bitwidth_transfer import LayerPrecisions
    from dse.partition.instances import llmpq_cluster3, llmpq_measured
    from dse.partition.objective import objective_s
    from dse.partition.problem import Goal
    from dse.partition.solve import solve

    rows, goal = [], Goal("makespan")
    for name, arrays, bits, lost in (
        ("B2, V100 or T4 first", llmpq_cluster3(), (4, 8, 16), (20.0, 1.0, 0.0)),
        ("B3, prefill of 2, V100 or T4 first", llmpq_measured(2), (3, 4, 8, 16), (100.0, 20.0, 1.0, 0.0)),
    ):
        problem = replace(
            arrays, orders=((0, 1, 2, 3), (1, 2, 3, 0)), penalty=np.tile(lost, (len(arrays.penalty), 1))
        )
        bound = solve(problem, goal).bound or 0.0
        found = one_precision_baselines(problem, np.full(len(problem.penalty), bits.index(8)))
        found += mixed_baselines(problem, goal, LayerPrecisions.alike(len(problem.penalty), bits))
        for baseline in found:
            plan = baseline.arrangement
            value = None if plan is None else objective_s(problem, goal, plan)
            gap = 1.0 if value is None else (value - bound) / value
            rows.append(Row(name, baseline.name, value, bound, gap, None))
    return rows


def _warm_up() -> None:
    """Load the solvers' libraries, which every time would count otherwise."""
    from dse.partition.instances import seeded
    from dse.partition.problem import Goal
    from dse.partition.solve import solve

    solve(seeded(n_layers=6, counts=(1, 1)), Goal())


def _all_orders_row(time_limit_s: float) -> Row:
    from dse.partition.branch import Limits
    from dse.partition.instances import seeded
    from dse.partition.problem import Goal
    from dse.partition.solve import Planner

    problem = seeded(sizes=(1, 2, 4, 8), all_orders=True)
    bound = float(problem.penalty[:, 1].sum())
    goal = Goal("makespan", max_penalty=bound)
    own = Planner(problem, goal, Limits(time_s=time_limit_s, gap_frac=5e-3)).solve(bound)
    name = "the same, 560 orders x 16 micro-batches, to 0.5 %"
    return Row(name, "dse", own.value, own.bound or 0.0, own.gap_frac or 0.0, own.time_s)


def _allocation_rows(solvers: tuple[Solver, ...], time_limit_s: float) -> list[Row]:
    import numpy as np

    from dse.partition.instances import allocation
    from dse.search.knapsack import allocate

    penalty, size = allocation()
    least, most = float(size.min(axis=1).sum()), float(size.max(axis=1).sum())
    name = "2,000 units x 8 precisions, one budget"
    own = allocate(penalty, size, 0.8 * least + 0.2 * most)
    rows = [Row(name, "dse", own.penalty, own.bound or 0.0, own.gap_frac or 0.0, own.time_s)]
    if solvers:
        rows.append(_allocation_by_highs(name, penalty, size, 0.8 * least + 0.2 * most, time_limit_s))
    began = time.monotonic()
    front = [allocate(penalty, size, budget) for budget in np.linspace(least, most, 100)]
    elapsed = time.monotonic() - began
    worst = max(point.gap_frac or 0.0 for point in front)
    total, bound = (sum(getattr(point, part) or 0.0 for point in front) for part in ("penalty", "bound"))
    rows.append(Row("the same, front of 100 budgets (sums)", "dse", total, bound, worst, elapsed))
    return rows


def _allocation_by_highs(name: str, penalty: Array, size: Array, budget: float, time_limit_s: float) -> Row:
    """Solve the same allocation as a plain integer program."""
    import numpy as np
    from scipy import optimize, sparse

    from dse.quiet import stdout_to_stderr

    began = time.monotonic()
    n_choices = penalty.shape[1]
    columns = np.arange(penalty.size)
    one_each = sparse.csr_matrix((np.ones(penalty.size), (columns // n_choices, columns)))
    with stdout_to_stderr():
        result = optimize.milp(
            penalty.ravel(),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(size.ravel()[None] / budget, -np.inf, 1),
            ],
            integrality=np.ones(penalty.size),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "time_limit": time_limit_s},
        )
    value = None if result.x is None else float(result.fun)
    bound = float(result.mip_dual_bound or 0.0)
    gap = 1.0 if value is None else (value - bound) / value
    return Row(name, "highs", value, bound, gap, time.monotonic() - began)


def _layout_row(time_limit_s: float) -> Row:
    found = solve_largest(time_limit_s).deployment
    return Row(LARGEST, "dse", found.value, found.bound, found.gap_frac or 0.0, found.time_s)


def _placement_row() -> Row:
    from dse.partition.instances import HELIX_LAYERS, helix_nodes
    from dse.partition.placement import place

    began = time.monotonic()
    found = place(helix_nodes(), HELIX_LAYERS)
    return Row(
        "Helix, LLaMA-30B on 6 T4 and 4 L4 (286.59)",
        "dse",
        found.value,
        found.bound,
        found.gap_frac,
        time.monotonic() - began,
    )
