"""Every objective with every bound. Oracle: all arrangements of tiny problems, priced one by one in plain
loops; their seconds come from the event simulation, not from the closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cost_models.simulate import simulate_pipeline
from dse.partition.objective import objective_s, quantity, violations
from dse.partition.problem import Arrangement, EnergyTables, Goal, Objective, PipelineProblem
from dse.partition.solve import solve
from tests.pipeline_problems import random_problem

OBJECTIVES: tuple[Objective, ...] = ("time", "ttft", "tpot", "throughput", "energy", "cost")
LIMITS = {
    "time": "max_time_s",
    "ttft": "max_ttft_s",
    "tpot": "max_tpot_s",
    "throughput": "max_period_s",
    "energy": "max_energy_j_per_token",
    "cost": "max_cost_usd_per_mtok",
}


def priced_problem(seed: int) -> PipelineProblem:
    """A tiny problem with energy and prices."""
    problem = random_problem(seed, n_layers=4, n_devices=2, n_choices=2, sizes=(1, 2))
    rng = np.random.default_rng(seed + 1)
    n, shape = 2, problem.prefill_s.shape

    def joules(*size: int) -> np.ndarray:
        return rng.integers(0, 9, size).astype(float)

    energy = EnergyTables(
        joules(*shape),
        joules(*shape),
        *(joules(n, 2) for _ in range(4)),
        joules(n, 2, 2),
        joules(n, 2, 2),
        joules(2),
    )
    if len(set(problem.device_types)) == 1:  # alike in everything
        energy = EnergyTables(
            *(np.repeat(a[:, :1], 2, axis=1) for a in (energy.prefill_j, energy.decode_j)),
            *(
                np.repeat(a[:, :1], 2, axis=1)
                for a in (
                    energy.first_prefill_j,
                    energy.first_decode_j,
                    energy.last_prefill_j,
                    energy.last_decode_j,
                )
            ),
            *(np.broadcast_to(a[:, :1, :1], a.shape) for a in (energy.hop_prefill_j, energy.hop_decode_j)),
            np.repeat(energy.static_w[:1], 2),
        )
        prices = (2.5, 2.5)
    else:
        prices = tuple(rng.integers(1, 9, 2).astype(float))
    return replace(problem, energy=energy, price_usd_per_h=prices)


def arrangements(problem: PipelineProblem) -> Iterator[Arrangement]:
    """Everything, feasible or not."""
    n_layers, n_choices = problem.memory_bytes.shape
    cuts = [((d, 0, n_layers),) for d in range(2) if problem.allow_empty]
    cuts += [((a, 0, c), (b, c, n_layers)) for a, b in ((0, 1), (1, 0)) for c in range(1, n_layers)]
    for stages, choices, p, d in itertools.product(
        cuts,
        itertools.product(range(n_choices), repeat=n_layers),
        problem.prefill_micro_batches,
        problem.decode_micro_batches,
    ):
        yield Arrangement(stages, choices, p, d)


def price(problem: PipelineProblem, plan: Arrangement) -> dict[Objective, float] | None:
    """All quantities of a plan, None where it does not fit."""
    p = problem.prefill_micro_batches.index(plan.prefill_micro_batch)
    d = problem.decode_micro_batches.index(plan.decode_micro_batch)
    k = math.ceil(problem.batch / plan.prefill_micro_batch)
    m = math.ceil(problem.batch / plan.decode_micro_batch)
    rounds = problem.output_tokens - 1
    energy, prices = problem.energy, problem.price_usd_per_h
    assert energy is not None
    assert prices is not None
    prefill, decode, joules = [], [], 0.0
    for s, (device, first, end) in enumerate(plan.stages):
        tp = td = memory = 0.0
        for layer in range(first, end):
            choice = plan.choices[layer]
            if not problem.allowed[device, layer, choice]:
                return None
            tp += problem.prefill_s[p, device, layer, choice]
            td += problem.decode_s[d, device, layer, choice]
            memory += problem.memory_bytes[layer, choice]
            joules += k * energy.prefill_j[p, device, layer, choice]
            joules += rounds * m * energy.decode_j[d, device, layer, choice]
        if s == 0:
            tp, td = tp + problem.first_prefill_s[p, device], td + problem.first_decode_s[d, device]
            memory += problem.first_bytes
            joules += k * energy.first_prefill_j[p, device] + rounds * m * energy.first_decode_j[d, device]
        if s == len(plan.stages) - 1:
            tp, td = tp + problem.last_prefill_s[p, device], td + problem.last_decode_s[d, device]
            memory += problem.last_bytes
            joules += k * energy.last_prefill_j[p, device] + rounds * m * energy.last_decode_j[d, device]
        if len(plan.stages) == 1:
            memory -= problem.tied_bytes
        if memory > problem.capacity_bytes[device]:
            return None
        prefill.append(tp)
        decode.append(td)
    hop_p, hop_d = [], []
    for (a, _, _), (b, _, _) in itertools.pairwise(plan.stages):
        hop_p.append(problem.hop_prefill_s[p, a, b])
        hop_d.append(problem.hop_decode_s[d, a, b])
        joules += k * energy.hop_prefill_j[p, a, b] + rounds * m * energy.hop_decode_j[d, a, b]
    events = simulate_pipeline(prefill, decode, hop_p, hop_d, k, m, problem.output_tokens)
    time_s = max(event.end_s for event in events)
    stations_p, stations_d = prefill + hop_p, decode + hop_d
    busy = max(k * a + rounds * m * b for a, b in zip(stations_p, stations_d, strict=True))
    n_tokens = problem.batch * problem.output_tokens
    used = [device for device, _, _ in plan.stages]
    return {
        "time": time_s,
        "ttft": max(event.end_s for event in events if event.phase == "prefill"),
        "tpot": max(sum(stations_d), m * max(stations_d)),
        "throughput": max(busy, sum(stations_p) + rounds * sum(stations_d)),
        "energy": (joules + sum(energy.static_w[i] for i in used) * time_s) / n_tokens,
        "cost": sum(prices[i] for i in used) * time_s / 3600 / n_tokens * 1e6,
    }


@pytest.mark.parametrize("seed", range(12))
def test_any_objective_under_any_bound(seed: int) -> None:
    problem = priced_problem(seed)
    rng = np.random.default_rng(seed)
    rows = [(plan, found) for plan in arrangements(problem) if (found := price(problem, plan)) is not None]
    for plan, found in rows[:: max(1, len(rows) // 20)]:
        for name in OBJECTIVES:
            assert quantity(problem, Goal("makespan"), plan, name) == pytest.approx(found[name], rel=1e-9)
    penalties = [sum(problem.penalty[i, c] for i, c in enumerate(plan.choices)) for plan, _ in rows]
    for objective in OBJECTIVES:
        limited = [str(name) for name in rng.choice(OBJECTIVES, 2, replace=False)]
        limits = {
            name: float(np.quantile([found[name] for _, found in rows], rng.uniform(0.1, 0.8))) + 1e-7
            for name in limited
            if rows
        }
        most = None if seed % 3 or not rows else float(np.quantile(penalties, 0.5))
        goal = Goal(
            "makespan",
            objective=objective,
            max_penalty=most,
            max_devices=1 if seed % 5 == 4 else None,
            **{LIMITS[name]: limit for name, limit in limits.items()},
        )
        values = [
            found[objective]
            for (plan, found), penalty in zip(rows, penalties, strict=True)
            if all(found[name] <= limit for name, limit in limits.items())
            and (most is None or penalty <= most)
            and (goal.max_devices is None or len(plan.stages) <= goal.max_devices)
        ]
        solution = solve(problem, goal)
        assert (solution.arrangement is None) == (not values)
        if solution.arrangement is not None:
            assert solution.status == "optimal"
            assert solution.value == pytest.approx(min(values), rel=1e-8, abs=1e-9)
            assert violations(problem, goal, solution.arrangement) == []
            assert objective_s(problem, goal, solution.arrangement) == solution.value


def test_every_objective_under_every_single_bound() -> None:
    """The whole matrix on one problem: six quantities and theta against eight kinds of bounds."""
    problem = next(
        p for p in map(priced_problem, range(20)) if p.allow_empty and len(set(p.device_types)) == 2
    )
    rows = [(plan, found) for plan in arrangements(problem) if (found := price(problem, plan)) is not None]
    losses = [sum(problem.penalty[i, c] for i, c in enumerate(plan.choices)) for plan, _ in rows]
    middle = {name: float(np.quantile([found[name] for _, found in rows], 0.4)) + 1e-7 for name in OBJECTIVES}
    bounds: list[tuple[str, float]] = [(LIMITS[name], middle[name]) for name in OBJECTIVES]
    bounds += [("max_penalty", float(np.quantile(losses, 0.4))), ("max_devices", 1)]
    for (field, limit), objective, theta in itertools.product(bounds, OBJECTIVES, (0.0, 3.0)):
        goal = Goal("makespan", objective=objective, theta_s=theta, **{field: limit})  # type: ignore[arg-type]
        values = [
            found[objective] + theta * loss
            for (plan, found), loss in zip(rows, losses, strict=True)
            if {
                "max_penalty": loss,
                "max_devices": len(plan.stages),
                **{LIMITS[name]: found[name] for name in OBJECTIVES},
            }[field]
            <= limit
        ]
        solution = solve(problem, goal)
        assert (solution.arrangement is None) == (not values)
        if values:
            assert solution.value == pytest.approx(min(values), rel=1e-8, abs=1e-9)
            assert solution.status == "optimal"
