"""Solve, simulate, tighten. The simulation is the judge; oracles for the routing are counts of requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dse.capacity import loop
from dse.capacity.assemble import Terms
from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.judge import deployment_of, judge, shortfalls
from dse.capacity.loop import plan_and_judge, tightened
from dse.capacity.market import Answer
from dse.capacity.simulation import Simulation
from dse.errors import NoFeasiblePlan
from tests.capacity_case import load, market, options


def test_routing_sends_the_shares_that_were_solved() -> None:
    answer = market().solve()
    deployment = deployment_of(answer)
    simulation = judge(answer, load())
    problem, fleet = answer.assembled.problem, answer.fleet
    rate = sum(demand.rate_per_s for demand in problem.demands)
    expected: dict[str, float] = {}
    for route, frac in zip(problem.routes, fleet.routed_frac, strict=True):
        name = answer.assembled.groups[route.uses[0].option].option.name
        part = frac * problem.demands[route.demand].rate_per_s / rate
        expected[name] = expected.get(name, 0.0) + part
    pools = np.array([log.pool for log in simulation.replicas])[simulation.replica]
    for name in {pool.name for pool in deployment.pools}:
        assert (pools == name).mean() == pytest.approx(expected[name], abs=0.06)
    assert deployment.n_replicas <= sum(fleet.n_replicas)


def test_the_loop_ends_with_a_fleet_that_passes() -> None:
    turns = plan_and_judge(market())
    assert turns[-1].passed
    levels = turns[-1].outcome["levels"]
    assert all(entry["attained_frac"] >= entry["percentile"] / 100 for entry in levels)
    costs = [turn.answer.fleet.usd_per_h for turn in turns]
    assert costs == sorted(costs)


def test_an_optimistic_model_is_tightened_until_the_simulation_passes() -> None:
    """The analytic model is made to believe that requests take a tenth: the loop must find out."""
    believed = {option.name: 0.1 for option in options()}
    kept: list[dict[str, float]] = []
    said: list[str] = []
    turns = plan_and_judge(
        market(120.0).under(Terms(derating=believed)),
        step=said.append,
        keep=lambda turn: kept.append(turn.derating),
        max_iterations=20,
    )
    assert not turns[0].passed
    assert turns[-1].passed
    assert turns[-1].answer.fleet.usd_per_h > turns[0].answer.fleet.usd_per_h
    assert kept == [turn.derating for turn in turns]
    assert sum("simulating" in text for text in said) == len(turns)


def test_what_was_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan_and_judge(market())
    journal = [turn.to_json() for turn in first]

    def recall(derating: dict[str, float]) -> dict[str, Any] | None:
        return next((entry for entry in journal if entry["derating"] == derating), None)

    def never(*_: object) -> Simulation:
        raise AssertionError("simulated again")

    monkeypatch.setattr(loop, "judge", never)
    again = plan_and_judge(market(), remembered=recall)
    assert [turn.outcome for turn in again] == [turn.outcome for turn in first]
    assert again[-1].answer.nodes() == first[-1].answer.nodes()


def test_kin_are_tightened_together() -> None:
    kin = [o for o in options() if o.name.startswith("small TP1xPP1 bf16")]
    out = tightened({kin[0].name: 1.1}, {kin[0].name: 0.5}, options())
    assert out[kin[0].name] == pytest.approx(1.1 * loop.MOST_DERATING)
    assert set(out) == {
        option.name
        for option in options()
        if option.offer == kin[0].offer and option.bits.name == kin[0].bits.name
    }


def test_shortfalls_blame_the_pool_that_misses() -> None:
    answer = market().solve()
    strict = load(8.0, 0.02)
    simulation = judge(replace(answer, assembled=replace(answer.assembled, load=strict)), strict)
    assert not simulation.passed
    short = shortfalls(simulation)
    assert short
    assert all(0 < by <= 0.9 for by in short.values())


def test_an_impossible_level_is_named() -> None:
    hopeless = market().with_load(load(8.0, 1e-4))
    with pytest.raises(
        NoFeasiblePlan, match=r"chat p90 ttft <= 0.0001 s breaks first: at best 0\.0%.*it would hold at 0\.0"
    ):
        plan_and_judge(hopeless)


def test_separate_pools_hand_every_request_on() -> None:
    """Machines that lose a prompt's worth of time to every decode: oracle, conservation in the simulation."""
    apart = market().under(Terms(separate_pools=True))
    assembled = apart.assembled()
    only = replace(assembled.problem, routes=tuple(r for r in assembled.problem.routes if r.part != "both"))
    fleet = solve_fleet(only, options=SolverOptions(gap_frac=0.02))
    assert fleet.value is not None
    for d in range(len(only.demands)):
        for chain in {route.chain for route in only.routes}:
            parts = {
                part: sum(
                    frac
                    for route, frac in zip(only.routes, fleet.routed_frac, strict=True)
                    if (route.demand, route.part, route.chain) == (d, part, chain)
                )
                for part in ("prefill", "decode")
            }
            assert parts["prefill"] == pytest.approx(parts["decode"], abs=1e-6)
    answer = Answer(replace(assembled, problem=only), fleet)
    simulation = judge(answer, load())
    assert {log.replica.role for log in simulation.replicas} == {"prefill", "decode"}
    assert not simulation.rejected.any()
    assert np.isfinite(simulation.finish_s).all()
    ttft = simulation.levels()[0]
    assert ttft.attained_frac >= answer.attained()["chat p90 ttft <= 0.8 s"] - 0.05
    both = apart.solve().fleet.value
    together = market().solve().fleet.value
    assert both is not None
    assert together is not None
    assert both <= together * 1.01
