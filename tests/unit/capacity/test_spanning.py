"""Replicas over two types of machines. Oracles: enumeration of all fleets and of all cuts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from dse.capacity.arrivals import ClassLoad, generate
from dse.capacity.fleet_solver import SolverOptions, solve_fleet
from dse.capacity.judge import judge
from dse.capacity.lengths import Independent, Lognormal
from dse.capacity.load import Load, RequestClass, ServiceLevel
from dse.capacity.market import Market
from dse.capacity.options import Building, ReplicaOption, replica_options, uniform_bits
from dse.capacity.planned import Choice
from dse.capacity.spanning import spanning_options
from dse.errors import DoesNotFitMemory
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.units import units_of
from hardware_specs.catalogue import Catalogue, parse_catalogue
from hardware_specs.loader import load_device, load_runtime
from studies.catalogue import resolve_model
from tests.capacity_case import CATALOGUE
from tests.unit.capacity.test_fleet_solver import cheapest


def _offer(name: str, device: str, price: float) -> dict[str, Any]:
    usd = {"value": price, "unit": "USD/h", "source": "an example"}
    one = {"value": 1, "unit": "count", "source": "an example"}
    return {"name": name, "device": device, "count": 1, "available": one, "price": {"on_demand": usd}}


@cache
def scarce() -> Catalogue:
    """One machine of each type: 16 bits of a 13B model fit the large one, or the small ones together."""
    nodes = [
        _offer("l4", "nvidia_l4", 0.7),
        _offer("a10", "nvidia_a10", 1.0),
        _offer("h100", "nvidia_h100_sxm", 9.0),
    ]
    return parse_catalogue({**CATALOGUE, "nodes": nodes}, "scarce.yaml", load_device)


@cache
def building() -> Building:
    graph, runtime = load_graph(resolve_model("llama-2-13b")), load_runtime("vllm")
    return Building(graph, units_of(graph, "block", runtime.ties), scarce(), runtime, 1100)


@cache
def load() -> Load:
    levels = (ServiceLevel("ttft", 90, 3.0), ServiceLevel("tpot", 90, 0.25))
    lengths = Independent(Lognormal(200, 0.5, 800), Lognormal(60, 0.5, 250))
    return generate([ClassLoad(RequestClass("chat", levels), 0.2, lengths)], 400.0, 0)


@cache
def spanning() -> tuple[ReplicaOption, ...]:
    found, absent = spanning_options(building(), [Choice((parse_precision("bf16"),))], load())
    assert not absent
    return tuple(found)


@cache
def market() -> Market:
    alone, _ = replica_options(building(), uniform_bits(building().units, [parse_precision("bf16")]))
    return Market.of(scarce(), [*alone, *spanning()], load())


def test_it_is_bought_where_single_machines_are_scarce() -> None:
    alone = market().only([option.name for option in market().options if not option.also]).solve()
    answer = market().solve()
    assert alone.nodes() == {"h100": 1}
    assert answer.nodes() == {"l4": 1, "a10": 1}
    assert answer.fleet.usd_per_h == pytest.approx(1.7)
    assert answer.fleet.bound == pytest.approx(1.7)
    assert judge(answer, load()).passed


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6, 1.2, 2.4])
def test_the_choice_equals_enumeration(rate: float) -> None:
    """Two operating points of every option: all fleets that the three machines allow."""
    assembled = market().at_rate(rate).assembled()
    names = [group.option.name for group in assembled.groups]
    kept = [o for o, name in enumerate(names) if names[:o].count(name) in (1, 4)]
    place = {o: i for i, o in enumerate(kept)}
    problem = replace(
        assembled.problem,
        options=tuple(assembled.problem.options[o] for o in kept),
        routes=tuple(
            replace(route, uses=(replace(route.uses[0], option=place[route.uses[0].option]),))
            for route in assembled.problem.routes
            if route.uses[0].option in place
        ),
    )
    found, expected = solve_fleet(problem, options=SolverOptions()).value, cheapest(problem, 1)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_split_is_no_worse_than_any_other() -> None:
    """The busier stage needs at most a twentieth more per request than with the best cut that fits."""
    (option,) = [o for o in spanning() if o.devices == ((0, 1), (1, 1))]
    plan = option.replica.plan
    assert plan is not None

    def slowest(entry: ReplicaOption) -> float:
        decode = entry.steps.decode_costs(np.array([64.0]), np.array([250.0]))[0] * 60 / 64
        return float((entry.steps.prefill_costs(np.array([200.0]))[0].ravel() + decode.ravel()).max())

    best = slowest(option)
    cluster = scarce().cluster_of([(scarce().nodes[0], 1), (scarce().nodes[1], 1)], "both")
    for cut in range(1, building().graph.n_layers):
        first, second = plan.stages
        stages = (replace(first, layers=(0, cut)), replace(second, layers=(cut, second.layers[1])))
        try:
            other = building().option(
                0, cluster, replace(plan, stages=stages), option.bits, "other", ((1, 1),)
            )
        except DoesNotFitMemory:
            continue
        assert best <= slowest(other) * 1.05
