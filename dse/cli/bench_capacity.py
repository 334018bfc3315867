"""``dse bench capacity``: fleet problems with their proofs, simulations, and the time of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from dse.cli import options
from dse.cli.bench_simulation import show_simulations, simulation_rows
from dse.cli.output import emit_json, table


@dataclass(frozen=True)
class Row:
    """One problem: value and bound in USD/h, and the bar that it should meet."""

    problem: str
    value: float | None
    bound: float | None
    gap_frac: float | None
    time_s: float
    bar: str
    passed: bool


def capacity(
    trace: Path | None = typer.Option(
        None, "--trace", help="Request trace (CSV) to simulate; else 20,000 requests of lognormal lengths."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Solve Melange's example and seeded fleet problems, and simulate a load on 16 and 64 devices."""
    from dse.capacity.fleet_solver import SolverOptions, solve_fleet
    from dse.capacity.instances import melange_example, seeded

    solve_fleet(melange_example())  # the first call loads the library
    found = solve_fleet(melange_example())
    proven = found.status == "optimal" and found.value is not None and abs(found.value - 6.7) < 1e-6
    rows = [
        Row(
            "Melange's example (6.70 USD/h)",
            found.value,
            found.bound,
            found.gap_frac,
            found.time_s,
            "proven in 0.2 s",
            proven and found.time_s < 0.2,
        )
    ]
    for seed in range(5):
        found = solve_fleet(seeded(seed=seed), options=SolverOptions(time_s=10.0, gap_frac=1e-3))
        within = found.gap_frac is not None and found.gap_frac <= 0.01 and found.time_s <= 10.5
        rows.append(
            Row(
                f"4 types, 100 buckets, 8 slices, seed {seed}",
                found.value,
                found.bound,
                found.gap_frac,
                found.time_s,
                "1 % in 10 s",
                within,
            )
        )
    simulations = simulation_rows(trace)
    if as_json:
        emit_json(
            {"rows": [asdict(row) for row in rows], "simulations": [asdict(row) for row in simulations]}
        )
        return
    table(
        "Fleet problems",
        ("problem", "USD/h", "bound", "gap", "time", "bar", "within"),
        [
            (
                row.problem,
                "nothing found" if row.value is None else f"{row.value:.3f}",
                "" if row.bound is None else f"{row.bound:.3f}",
                "" if row.gap_frac is None else f"{row.gap_frac:.2%}",
                f"{row.time_s:.3f} s",
                row.bar,
                "yes" if row.passed else "NO",
            )
            for row in rows
        ],
    )
    show_simulations(simulations)
