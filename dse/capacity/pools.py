"""Prefill and decode together or in pools of their own: what each costs at the same levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dse.capacity.asked import Asked
from dse.capacity.fleet_solver import solve_fleet
from dse.capacity.judge import judge, shortfalls
from dse.capacity.loop import tightened
from dse.capacity.market import Answer, Market
from dse.capacity.simulation import Simulation

MAX_TURNS = 6


def separate_pools(asked: Asked) -> dict[str, Any]:
    """Return the fleet with every replica doing both, and the cheapest with prefill and decode apart.

    Both are solved among the shortlisted options; the caches move over the catalogue's network. The fleet
    with separate pools is simulated and tightened like the main answer, for a few turns; without one that
    keeps the levels no difference in cost is claimed.
    """
    market = asked.short
    if market.catalogue.network is None:
        return {"available": False, "reason": "the catalogue has no network for the caches"}
    together = market.under(replace(market.terms, separate_pools=False)).solve()
    out: dict[str, Any] = {"available": True, "together": _point(together)}
    derating: dict[str, float] = dict(market.terms.derating or {})
    for turn in range(1, MAX_TURNS + 1):
        apart = _apart(market, derating)
        out |= {"apart": _point(apart), "turns": turn}
        if not apart.exists:
            why = apart.fleet.reason or "no machines suffice"
            out["text"] = f"separate pools: no such fleet keeps the levels ({why})"
            return out
        simulation = judge(apart, market.load)
        out["apart"] |= _simulated(apart, simulation)
        if simulation.passed:
            break
        derating = tightened(derating, shortfalls(simulation), market.options)
    cost = apart.fleet.usd_per_h
    if not simulation.passed:
        out["text"] = (
            f"separate pools: the fleet of turn {turn}, {cost:.2f} USD/h, still misses levels when simulated"
        )
        return out
    out["text"] = f"separate pools cost {cost:.2f} USD/h and keep the levels when simulated"
    if together.exists:
        more = cost / together.fleet.usd_per_h - 1.0
        out["dearer_frac"] = more
        word = "dearer" if more >= 0 else "cheaper"
        out["text"] += f", {abs(more):.0%} {word} than {together.fleet.usd_per_h:.2f} with both in one pool"
    return out


def _apart(market: Market, derating: dict[str, float]) -> Answer:
    """Return the cheapest fleet in which no replica does both."""
    terms = replace(market.terms, separate_pools=True, derating=derating)
    assembled = market.under(terms).assembled()
    routes = tuple(route for route in assembled.problem.routes if route.part != "both")
    problem = replace(assembled.problem, routes=routes)
    return Answer(replace(assembled, problem=problem), solve_fleet(problem, options=market.solver))


def _simulated(apart: Answer, simulation: Simulation) -> dict[str, Any]:
    return {
        "simulated_passed": simulation.passed,
        "levels": simulation.to_json()["levels"],
        "pools": [
            {"name": f"{group.option.name} ({group.point.part})", "n_replicas": n}
            for group, n in zip(apart.assembled.groups, apart.fleet.n_replicas, strict=True)
            if n
        ],
    }


def _point(answer: Answer) -> dict[str, Any]:
    """Return cost, bound and machines, or that there is none."""
    fleet = answer.fleet
    if not answer.exists:
        return {"status": fleet.status, "reason": fleet.reason}
    return {
        "status": fleet.status,
        "usd_per_h": fleet.usd_per_h,
        "bound": fleet.bound,
        "gap_frac": fleet.gap_frac,
        "nodes": answer.nodes(),
    }
