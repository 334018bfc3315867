"""What people ask next: how the fleet and its cost change with rate, levels, lengths, prices and losses.

Every function returns plain data for JSON and the report. Curves are solved among the shortlisted options of
the main answer (``Market.shortlist``); their bounds are over those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from dse.capacity.asked import Asked
from dse.capacity.break_even import break_even
from dse.capacity.fleet_solver import SolverOptions
from dse.capacity.load import Load, RequestClass
from dse.capacity.market import Answer, Market
from dse.capacity.options import REFERENCE_BITS
from dse.capacity.pools import separate_pools
from dse.capacity.shortage import shortage
from dse.capacity.survival import surviving_fleet
from dse.errors import ConfigError

RATE_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
LEVEL_FACTORS = (0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
CONTEXT_FACTORS = (0.5, 1.0, 2.0, 4.0)
PRICE_FACTORS = (0.5, 0.8, 1.25, 2.0)
BUDGETS = (0.5, 0.75, 1.0, 1.5, 2.0)
LEAST_SERVICE, MOST_SERVICE = 0.125, 16.0
QUARTERS = 8
HOURS_PER_QUARTER = 365.25 * 24 / 4
SURVIVAL = SolverOptions(time_s=15.0, gap_frac=0.01)
Question = Callable[[Asked], dict[str, Any]]


def point_of(answer: Answer) -> dict[str, Any]:
    """Return cost, bound and machines of an answer, or why there is none."""
    fleet = answer.fleet
    if not answer.exists:
        return {"status": "infeasible", "reason": shortage(answer.assembled.problem).reason}
    return {
        "status": fleet.status,
        "usd_per_h": fleet.usd_per_h,
        "bound": fleet.bound,
        "gap_frac": fleet.gap_frac,
        "energy_w": fleet.energy_w,
        "nodes": answer.nodes(),
    }


def cost_against_rate(asked: Asked) -> dict[str, Any]:
    """Solve at multiples of the rate; ``steps`` are the rates between which the machines change."""
    planned = asked.market.buckets.rate_per_s
    points = []
    for factor in RATE_FACTORS:
        answer = asked.short.at_rate(planned * factor).solve()
        points.append({"rate_per_s": planned * factor, "factor": factor, **point_of(answer)})
    steps = [
        {"from_rate_per_s": a["rate_per_s"], "to_rate_per_s": b["rate_per_s"], "nodes": b.get("nodes", {})}
        for a, b in pairwise(points)
        if a.get("nodes") != b.get("nodes")
    ]
    return {"points": points, "steps": steps, "planned_rate_per_s": planned}


def with_limits_scaled(load: Load, factor: float) -> Load:
    """Return the load with all limits of its classes multiplied."""
    classes = [
        RequestClass(
            entry.name,
            tuple(replace(level, limit_s=level.limit_s * factor) for level in entry.levels),
            entry.goodput_frac,
        )
        for entry in load.classes
    ]
    return load.with_classes(classes)


def cost_against_level(asked: Asked) -> dict[str, Any]:
    """Solve with all limits of the service levels multiplied."""
    points = []
    for factor in LEVEL_FACTORS:
        answer = asked.short.with_load(with_limits_scaled(asked.market.load, factor)).solve()
        points.append({"factor": factor, **point_of(answer)})
    return {"points": points}


def best_service(market: Market) -> float | None:
    """Return the smallest factor (within 3 %) on all limits at which the market has a fleet, None up to 16.

    With a budget in the market's terms this is the best service that the money buys.
    """

    def holds(factor: float) -> bool:
        return market.with_load(with_limits_scaled(market.load, factor)).solve().exists

    low, high = LEAST_SERVICE, MOST_SERVICE
    if not holds(high):
        return None
    while high / low > 1.03:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def service_for_budget(asked: Asked) -> dict[str, Any]:
    """Return the tightest limits that multiples of the fleet's cost buy."""
    rows = []
    for share in BUDGETS:
        budget = asked.answer.fleet.usd_per_h * share
        terms = replace(asked.market.terms, max_usd_per_h=budget)
        rows.append(
            {"max_usd_per_h": budget, "share": share, "factor": best_service(asked.short.under(terms))}
        )
    return {"rows": rows}


def cost_against_context(asked: Asked) -> dict[str, Any]:
    """Solve with all prompts multiplied, up to what the replicas take."""
    points = []
    buckets, most = asked.market.buckets, asked.max_context_tokens
    for factor in CONTEXT_FACTORS:
        prompts = np.maximum(buckets.prompt_tokens * factor, 1.0)
        longest = float((prompts + buckets.output_tokens).max())
        if most is not None and longest > most:
            points.append(
                {
                    "factor": factor,
                    "status": "infeasible",
                    "reason": f"{longest:.0f} tokens exceed the replicas' context of {most}",
                }
            )
            continue
        longer = replace(buckets, prompt_tokens=prompts)
        market = asked.short.repriced(longer)
        mean = float((prompts * buckets.share).sum())
        points.append({"factor": factor, "mean_prompt_tokens": mean, **point_of(market.solve())})
    return {"points": points}


def quantization(asked: Asked) -> dict[str, Any]:
    """Solve with 16-bit options only, at the same service: what the other precisions save."""
    wide = [
        option.name
        for option in asked.market.options
        if all(
            min(p.weights.bits, p.activations.bits, p.kv.bits) >= REFERENCE_BITS
            for p in option.bits.precisions
        )
    ]
    if not wide:
        return {"available": False, "reason": "no 16-bit option fits any machine of the catalogue"}
    sixteen = asked.market.only(wide).solve()
    uniform = [o.name for o in asked.market.options if len(o.bits.precisions) == 1]
    rows = {
        "16 bits only": point_of(sixteen),
        "best uniform precisions": point_of(asked.short.only(uniform).solve()),
        "all precisions": point_of(asked.answer),
    }
    saved = None
    if sixteen.exists:
        saved = 1.0 - asked.answer.fleet.usd_per_h / sixteen.fleet.usd_per_h
    return {"available": True, "fleets": rows, "saved_frac": saved}


def headroom(asked: Asked) -> dict[str, Any]:
    """Return how much load the fleet's machines carry at the same levels, and how much all that there are."""
    planned = asked.market.buckets.rate_per_s
    offers = asked.market.catalogue.nodes
    cases = {"the fleet": asked.answer.nodes()}
    if all(offer.n_available is not None for offer in offers):
        cases["all machines of the catalogue"] = {offer.name: offer.n_available or 0 for offer in offers}
    rows = []
    for what, nodes in cases.items():
        factor = _holding(asked.short, nodes).solve("load").fleet.value or 0.0
        rows.append(
            {
                "what": what,
                "nodes": nodes,
                "carried_factor": factor,
                "carried_rate_per_s": factor * planned,
                "text": f"{what}: {factor:.2f} of the planned load ({factor * planned:.1f} requests/s)",
            }
        )
    return {"rows": rows}


def _holding(market: Market, nodes: dict[str, int]) -> Market:
    """Return the market whose machines are exactly these."""
    offers = tuple(
        replace(offer, n_available=nodes[offer.name])
        for offer in market.catalogue.nodes
        if nodes.get(offer.name, 0) > 0
    )
    place = {offer.name: index for index, offer in enumerate(offers)}
    names = [offer.name for offer in market.catalogue.nodes]
    options = tuple(
        replace(
            option,
            offer=place[names[option.offer]],
            also=tuple((place[names[offer]], n) for offer, n in option.also),
        )
        for option in market.options
        if all(names[offer] in place for offer in option.offers)
    )
    return replace(market, catalogue=replace(market.catalogue, nodes=offers), options=options)


def lose_a_node(asked: Asked) -> dict[str, Any]:
    """Return the share of the load that is left when one machine of a type fails, and what safety costs.

    With one machine more of each type no single loss leaves less than the planned fleet; the cheapest fleet
    that survives any loss (see ``survival``) may be another one, and costs no more.
    """
    nodes = asked.answer.nodes()
    rows = []
    for name, count in nodes.items():
        left = {other: n - (other == name) for other, n in nodes.items()}
        row: dict[str, Any] = {"lost": name, "of": count}
        if any(left.values()):
            found = _holding(asked.short, left).solve("load")
            row["carried_factor"] = found.fleet.value or 0.0
        else:
            row["carried_factor"] = 0.0
        rows.append(row)
    survivor = _survivor(asked)
    spare = {name: n + 1 for name, n in nodes.items()}
    prices = {offer.name: asked.market.catalogue.usd_per_h(offer) for offer in asked.market.catalogue.nodes}
    cost = sum((prices[name] or 0.0) * n for name, n in spare.items())
    return {
        "losses": rows,
        "one_more_of_each": {"nodes": spare, "usd_per_h": cost},
        "survivor": survivor,
    }


def _survivor(asked: Asked) -> dict[str, Any]:
    """Return the cheapest fleet that serves everything at the levels after the loss of any one machine."""
    assembled = asked.short.assembled()
    fleet = surviving_fleet(assembled.problem, SURVIVAL)
    if fleet.value is None:
        return {"status": "infeasible", "reason": fleet.reason or "the machines on offer do not suffice"}
    return point_of(Answer(assembled, fleet))


def spot_prices(asked: Asked) -> dict[str, Any]:
    """Solve with spot prices where they are known; machines without one stay out."""
    catalogue = asked.market.catalogue
    known = {o.name: o.spot_usd_per_h for o in catalogue.nodes if o.spot_usd_per_h is not None}
    unknown = [o.name for o in catalogue.nodes if o.name not in known and o.purchase is None]
    if not known:
        return {"available": False, "reason": "the catalogue has no spot prices", "unknown": unknown}
    answer = asked.market.under(replace(asked.market.terms, spot=True)).solve()
    return {"available": True, "spot_usd_per_h": known, "unknown": unknown, **point_of(answer)}


def price_sensitivity(asked: Asked) -> dict[str, Any]:
    """Solve with the price of each machine multiplied: how the cost moves and when the machines change."""
    rows = []
    for offer in asked.market.catalogue.nodes:
        for factor in PRICE_FACTORS:
            before = asked.market.terms
            prices = {**(before.price_factor or {}), offer.name: factor}
            answer = asked.short.under(replace(before, price_factor=prices)).solve()
            rows.append(
                {
                    "node": offer.name,
                    "factor": factor,
                    "changed": answer.nodes() != asked.answer.nodes(),
                    **point_of(answer),
                }
            )
    return {"rows": rows}


def two_years(asked: Asked) -> dict[str, Any]:
    """Return the cost of two years of growth: with a fleet for each quarter, and with the last throughout."""
    planned, growth = asked.market.buckets.rate_per_s, 1.0 + asked.growth_per_year_frac
    quarters: list[dict[str, Any]] = []
    for quarter in range(QUARTERS):
        # a quarter's fleet must carry its last day
        rate = planned * growth ** ((quarter + 1) / 4.0)
        quarters.append(
            {"quarter": quarter + 1, "rate_per_s": rate, **point_of(asked.short.at_rate(rate).solve())}
        )
    costs = [row.get("usd_per_h") for row in quarters]
    known = [cost for cost in costs if cost is not None]
    complete = len(known) == len(costs)
    return {
        "growth_per_year_frac": asked.growth_per_year_frac,
        "quarters": quarters,
        "usd_growing": sum(known) * HOURS_PER_QUARTER if complete else None,
        "usd_all_at_once": known[-1] * HOURS_PER_QUARTER * QUARTERS if complete else None,
    }


def other_objectives(asked: Asked) -> dict[str, Any]:
    """Solve for energy and carbon instead; machines whose idle power is unknown stay out."""
    known = [offer.name for offer in asked.market.catalogue.nodes if offer.static_w is not None]
    unknown = [offer.name for offer in asked.market.catalogue.nodes if offer.static_w is None]
    if not known:
        return {"available": False, "reason": "no machine's idle power is known", "unknown": unknown}
    options = [
        option.name
        for option in asked.short.options
        if all(asked.market.catalogue.nodes[offer].name in known for offer in option.offers)
    ]
    answer = asked.short.only(options).solve("energy")
    return {
        "available": True,
        "unknown": unknown,
        "energy": {**point_of(answer), "carbon_g_per_h": answer.fleet.carbon_g_per_h},
    }


QUESTIONS: dict[str, Question] = {
    "cost-vs-rate": cost_against_rate,
    "cost-vs-level": cost_against_level,
    "cost-vs-context": cost_against_context,
    "service": service_for_budget,
    "break-even": break_even,
    "quantization": quantization,
    "headroom": headroom,
    "lose-node": lose_a_node,
    "pools": separate_pools,
    "spot": spot_prices,
    "price": price_sensitivity,
    "two-years": two_years,
    "energy": other_objectives,
}


def checked_questions(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of questions; "all" stands for every one.

    Raises:
        ConfigError: a name is unknown.
    """
    if "all" in names:
        return tuple(QUESTIONS)
    for name in names:
        if name not in QUESTIONS:
            raise ConfigError(
                f"unknown question '{name}'", path="--ask", value=name, allowed=[*QUESTIONS, "all"]
            )
    return tuple(dict.fromkeys(names))
