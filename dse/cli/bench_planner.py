"""``dse bench planner``: the planner beside the textbook integer program, in one run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table

if TYPE_CHECKING:
    from dse.partition.problem import PipelineProblem
    from dse.partition.reference import Solver

SOLVERS: tuple[Solver, ...] = ("highs", "scip", "sat")


@dataclass(frozen=True)
class Row:
    """One solver on one problem; values in the problem's unit, None where nothing was found."""

    problem: str
    solver: str
    value: float | None
    bound: float
    gap_frac: float
    time_s: float


def planner(
    time_limit: float = typer.Option(30.0, "--time-limit", min=0.1, help="Seconds per solver and problem."),
    reference: bool = typer.Option(True, help="Also run HiGHS, SCIP and CP-SAT on the textbook program."),
    as_json: bool = options.JSON,
) -> None:
    """Solve published and seeded planning problems, beside the plain z[stage, layer, choice] program."""
    from dse.partition import instances

    rows: list[Row] = []
    solvers = SOLVERS if reference else ()
    cluster3, seeded = instances.llmpq_cluster3(), instances.seeded()
    one_bit_each = float(seeded.penalty[:, 1].sum())
    for name, problem, bound, gap in (
        ("LLM-PQ cluster 3, OPT-30B (73.8804 s)", cluster3, None, 1e-9),
        ("64 layers, 8 devices of 3 types, 4 precisions", seeded, one_bit_each, 1e-3),
    ):
        note(name)
        rows += _pipeline_rows(name, problem, bound, gap, solvers, time_limit)
    note("Helix, LLaMA-30B on 6 T4 and 4 L4")
    rows.append(_placement_row())
    if as_json:
        emit_json({"rows": [asdict(row) for row in rows]})
        return
    table(
        "Planning problems (placement: tokens/s, bound from above; else seconds, bound from below)",
        ("problem", "solver", "value", "bound", "gap", "time"),
        [
            (
                row.problem,
                row.solver,
                "nothing found" if row.value is None else f"{row.value:.5f}",
                f"{row.bound:.5f}",
                f"{row.gap_frac:.2g}",
                f"{row.time_s:.3f} s",
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
