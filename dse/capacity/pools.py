"""Prefill and decode together or in pools of their own: what each costs at the same levels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dse.capacity.asked import Asked
from dse.capacity.fleet_solver import solve_fleet
from dse.capacity.judge import judge
from dse.capacity.market import Answer


def separate_pools(asked: Asked) -> dict[str, Any]:
    """Return the fleet with every replica doing both, and the cheapest with prefill and decode apart.

    Both are solved among the shortlisted options; the caches move over the catalogue's network. The fleet
    with separate pools is simulated on the load as it is: its closed forms are not tightened.
    """
    market = asked.short
    if market.catalogue.network is None:
        return {"available": False, "reason": "the catalogue has no network for the caches"}
    together = market.under(replace(market.terms, separate_pools=False)).solve()
    assembled = market.under(replace(market.terms, separate_pools=True)).assembled()
    routes = tuple(route for route in assembled.problem.routes if route.part != "both")
    problem = replace(assembled.problem, routes=routes)
    apart = Answer(replace(assembled, problem=problem), solve_fleet(problem, options=market.solver))
    out: dict[str, Any] = {"available": True, "together": _point(together), "apart": _point(apart)}
    if not apart.exists:
        out["text"] = f"separate pools: no such fleet ({apart.fleet.reason or 'no machines suffice'})"
        return out
    simulation = judge(apart, market.load)
    out["apart"] |= {
        "simulated_passed": simulation.passed,
        "levels": simulation.to_json()["levels"],
        "pools": [
            {"name": f"{group.option.name} ({group.point.part})", "n_replicas": n}
            for group, n in zip(apart.assembled.groups, apart.fleet.n_replicas, strict=True)
            if n
        ],
    }
    verdict = "keeps" if simulation.passed else "misses"
    cost = apart.fleet.usd_per_h
    out["text"] = f"separate pools cost {cost:.2f} USD/h"
    if together.exists:
        more = cost / together.fleet.usd_per_h - 1.0
        out["dearer_frac"] = more
        word = "dearer" if more >= 0 else "cheaper"
        out["text"] += f", {abs(more):.0%} {word} than {together.fleet.usd_per_h:.2f} with both in one pool"
    out["text"] += f"; the simulation {verdict} the levels"
    return out


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
