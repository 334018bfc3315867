"""The part of ``dse bench capacity`` that simulates: one load on 16 and on 64 devices, with its time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dse.cli.output import table

if TYPE_CHECKING:
    from dse.capacity.deployment import Deployment
    from dse.capacity.load import Load
    from dse.capacity.replica import Replica

MODEL, CLUSTER = "llama-3.1-8b", "h100_node8"
RATE_PER_S = 20.0
LONGEST_TOKENS = 16384


@dataclass(frozen=True)
class SimulationRow:
    """A load simulated. ``n_iterations`` are engine steps, ``n_events`` what the simulator looked at."""

    fleet: str
    n_requests: int
    n_devices: int
    n_iterations: int
    n_events: int
    ttft_p95_s: float
    tpot_p95_s: float
    time_s: float
    bar: str
    passed: bool


def show_simulations(rows: list[SimulationRow]) -> None:
    """Print the rows as a table."""
    table(
        f"Simulations of {MODEL} on devices of {CLUSTER}",
        ("fleet", "requests", "steps", "events", "TTFT p95", "TPOT p95", "time", "bar", "within"),
        [
            (
                row.fleet,
                str(row.n_requests),
                str(row.n_iterations),
                str(row.n_events),
                f"{row.ttft_p95_s * 1e3:.0f} ms",
                f"{row.tpot_p95_s * 1e3:.1f} ms",
                f"{row.time_s:.2f} s",
                row.bar,
                "yes" if row.passed else "NO",
            )
            for row in rows
        ],
        numeric_from=1,
    )


def simulation_rows(trace: Path | None) -> list[SimulationRow]:
    """Simulate a trace, or requests of lognormal lengths, and 10,000 of them at eight times the rate."""
    import numpy as np

    from dse.capacity.arrivals import scale_to_rate
    from dse.capacity.deployment import Deployment, Pool
    from dse.capacity.traces import read_trace

    load = _generated(20_000) if trace is None else read_trace(trace)
    rows = []
    many = load.take(np.arange(10_000)) if len(load) > 10_000 else load
    scaled = scale_to_rate(many, 8 * RATE_PER_S)
    for name, given, n_devices, degree, n_stages, bar_s in (
        ("16 devices", load, 16, 1, 1, 15.0),
        ("64 devices", scaled, 64, 1, 1, 20.0),
        ("64 devices, 2 stages", scaled, 64, 1, 2, 20.0),
        ("64 devices, 2 stages of 2", scaled, 64, 2, 2, 20.0),
    ):
        replica = _replica(degree, n_stages)
        count = n_devices // (degree * n_stages)
        rows.append(_simulated(name, given, Deployment((Pool("all", replica, count),)), n_devices, bar_s))
    return rows


def _simulated(name: str, load: Load, deployment: Deployment, n_devices: int, bar_s: float) -> SimulationRow:
    import numpy as np

    from dse.capacity.simulate import simulate

    began = time.perf_counter()
    run = simulate(load, deployment)
    spent_s = time.perf_counter() - began
    return SimulationRow(
        name,
        len(load),
        n_devices,
        sum(log.n_iterations for log in run.replicas),
        sum(len(log.rows) for log in run.replicas),
        float(np.nanpercentile(run.ttft_s, 95)),
        float(np.nanpercentile(run.tpot_s, 95)),
        spent_s,
        f"{bar_s:g} s",
        spent_s <= bar_s,
    )


def _generated(n_requests: int) -> Load:
    from dse.capacity.arrivals import ClassLoad, generate
    from dse.capacity.lengths import Independent, Lognormal
    from dse.capacity.load import RequestClass

    lengths = Independent(Lognormal(1150, 1.0, 14_000), Lognormal(210, 0.8, 1000))
    entry = ClassLoad(RequestClass("all"), RATE_PER_S, lengths)
    return generate([entry], n_requests / RATE_PER_S, seed=0)


def _replica(degree: int, n_stages: int) -> Replica:
    """Return a replica of consecutive devices of the first node, in 16 bits."""
    from dse.capacity.replica import replica_from_plan
    from dse.formats.grammar import parse_precision
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from dse.plan import Assignment, Plan, Stage
    from hardware_specs.loader import load_cluster
    from studies.catalogue import resolve_model

    graph, cluster = load_graph(resolve_model(MODEL)), load_cluster(CLUSTER)
    names = [name for name, _ in cluster.devices]
    cuts = [graph.n_layers * s // n_stages for s in range(n_stages + 1)]
    stages = tuple(
        Stage(tuple(names[s * degree : (s + 1) * degree]), (cuts[s], cuts[s + 1]), degree)
        for s in range(n_stages)
    )
    units = tuple(unit.name for unit in units_of(graph, "block"))
    plan = Plan(graph.model, cluster.name, Assignment.uniform(units, parse_precision("bf16")), stages, 1, 1)
    return replica_from_plan(plan, graph, cluster, max_context_tokens=LONGEST_TOKENS)
