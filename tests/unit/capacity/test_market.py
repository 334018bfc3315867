"""Markets and questions. Oracles: what a question asks, done by hand (bisection, re-solving, sums)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.capacity.analytic import operating_points, serving
from dse.capacity.asked import Asked
from dse.capacity.assemble import Terms
from dse.capacity.fleet_solver import SolverOptions
from dse.capacity.market import Market
from dse.capacity.options import Building, quality_of, replica_options, uniform_bits
from dse.capacity.planned import planned_options
from dse.capacity.questions import QUESTIONS, checked_questions
from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.units import units_of
from dse.sensitivity.noise import noise_table
from hardware_specs.loader import load_runtime
from studies.catalogue import resolve_model
from tests.capacity_case import catalogue, load, market, options


@pytest.fixture(scope="module")
def asked() -> Asked:
    exact = replace(market(), solver=SolverOptions(gap_frac=1e-6))
    return Asked(exact, exact.solve(), max_context_tokens=4096)


def test_the_fleet_carries_its_load_with_its_proof(asked: Asked) -> None:
    answer = asked.answer
    assert answer.exists
    problem, fleet = answer.assembled.problem, answer.fleet
    assert fleet.bound is not None
    assert fleet.bound <= fleet.usd_per_h + 1e-9
    used = np.zeros((len(problem.options), 2))
    for route, frac in zip(problem.routes, fleet.routed_frac, strict=True):
        for use in route.uses:
            used[use.option] += np.array(use.shares) * frac * problem.demands[route.demand].rate_per_s
    assert (used.max(axis=1) <= np.array(fleet.n_replicas) + 1e-5).all()
    assert all(frac >= 0.9 - 1e-6 for frac in answer.attained().values())
    prices = {"small": 0.7, "large": 3.0}
    assert fleet.usd_per_h == pytest.approx(sum(prices[n] * k for n, k in answer.nodes().items()))


def test_an_option_alone_needs_what_its_rate_says(asked: Asked) -> None:
    """Oracle: the planned rate over the option's rate at its fullest point that keeps the levels."""
    one = [o for o in options() if o.name == "small TP1xPP1 bf16/bf16/bf16"]
    alone = replace(asked.market.only([one[0].name]), solver=SolverOptions())
    buckets = alone.buckets
    served = serving(one[0].steps, one[0].room, buckets)
    assert served is not None
    levels = [(0, level) for level in alone.load.classes[0].levels]
    rates = [
        point.rate_per_s
        for point in operating_points(served, buckets, levels)
        if (buckets.share @ point.attained_frac >= 0.9).all()
    ]
    for factor in (0.5, 1.0, 2.0):
        found = alone.at_rate(buckets.rate_per_s * factor).solve()
        most = int(np.ceil(buckets.rate_per_s * factor / max(rates) - 1e-9))
        # different points at once may save a machine, never need one more
        assert most - 1 <= found.nodes()["small"] <= most


def test_curves_rise_and_headroom_is_where_they_step(asked: Asked) -> None:
    rate = QUESTIONS["cost-vs-rate"](asked)
    costs = [point["usd_per_h"] for point in rate["points"] if "usd_per_h" in point]
    assert costs == sorted(costs)
    assert len(costs) >= 5
    changes = sum(
        a.get("nodes") != b.get("nodes") for a, b in zip(rate["points"], rate["points"][1:], strict=False)
    )
    assert len(rate["steps"]) == changes
    level = QUESTIONS["cost-vs-level"](asked)
    costs = [point["usd_per_h"] for point in level["points"] if "usd_per_h" in point]
    assert costs == sorted(costs, reverse=True)
    fleet, everything = QUESTIONS["headroom"](asked)["rows"]
    assert 1.0 - 1e-6 <= fleet["carried_factor"] <= everything["carried_factor"]
    planned = asked.market.buckets.rate_per_s
    beyond = asked.short.at_rate(planned * fleet["carried_factor"] * 1.02).solve()
    assert beyond.fleet.usd_per_h > asked.answer.fleet.usd_per_h
    within = asked.short.at_rate(planned * fleet["carried_factor"] * 0.98).solve()
    assert within.fleet.usd_per_h <= asked.answer.fleet.usd_per_h + 1e-9


def test_other_questions(asked: Asked) -> None:
    saved = QUESTIONS["quantization"](asked)
    wide, every = saved["fleets"]["16 bits only"], saved["fleets"]["all precisions"]
    assert every["usd_per_h"] <= wide["usd_per_h"] + 1e-9
    assert saved["saved_frac"] == pytest.approx(1 - every["usd_per_h"] / wide["usd_per_h"])
    lost = QUESTIONS["lose-node"](asked)
    assert {row["lost"] for row in lost["losses"]} == set(asked.answer.nodes())
    assert all(row["carried_factor"] < 1.3 for row in lost["losses"])
    survivor, spare = lost["survivor"], lost["one_more_of_each"]
    assert asked.answer.fleet.usd_per_h < survivor["usd_per_h"] <= spare["usd_per_h"] + 1e-9
    pools = QUESTIONS["pools"](asked)
    assert pools["together"]["usd_per_h"] == pytest.approx(asked.answer.fleet.usd_per_h)
    apart = pools["apart"]
    assert pools["dearer_frac"] == pytest.approx(apart["usd_per_h"] / asked.answer.fleet.usd_per_h - 1)
    assert {entry["name"].split("(")[-1] for entry in apart["pools"]} == {"prefill)", "decode)"}
    assert len(apart["levels"]) == 2
    spot = QUESTIONS["spot"](asked)
    assert spot["unknown"] == ["small"]
    assert set(spot["nodes"]) == {"large"}
    assert spot["usd_per_h"] == pytest.approx(spot["nodes"]["large"] * 1.0)
    years = QUESTIONS["two-years"](asked)
    costs = [row["usd_per_h"] for row in years["quarters"]]
    assert years["usd_growing"] == pytest.approx(sum(costs) * 365.25 * 6)
    assert years["usd_all_at_once"] == pytest.approx(costs[-1] * 8 * 365.25 * 6)
    assert years["quarters"][3]["rate_per_s"] == pytest.approx(asked.market.buckets.rate_per_s * 1.5)
    prices = QUESTIONS["price"](asked)["rows"]
    assert {(row["node"], row["factor"]) for row in prices} >= {("small", 0.5), ("large", 2.0)}
    cheaper = {row["node"]: row["usd_per_h"] for row in prices if row["factor"] == 0.5}
    assert all(cost <= asked.answer.fleet.usd_per_h + 1e-9 for cost in cheaper.values())
    context = QUESTIONS["cost-vs-context"](asked)["points"]
    assert context[0]["usd_per_h"] <= context[1]["usd_per_h"]
    assert context[-1]["status"] == "infeasible"
    energy = QUESTIONS["energy"](asked)
    assert "small" in energy["unknown"]
    for cell in QUESTIONS["break-even"](asked)["cells"]:
        if cell["winner"] is not None:
            assert cell["usd_per_1000"][cell["winner"]] == min(cell["usd_per_1000"].values())
    assert checked_questions(["all"]) == tuple(QUESTIONS)
    with pytest.raises(ConfigError, match="did you mean 'spot'"):
        checked_questions(["spott"])


def test_budget_and_prices() -> None:
    free = market().solve()
    tight = market().under(Terms(max_usd_per_h=free.fleet.usd_per_h * 0.5)).solve()
    assert not tight.exists
    dear = market().under(Terms(price_factor={"small": 100.0})).solve()
    assert "small" not in dear.nodes()


def test_derating_asks_for_more(asked: Asked) -> None:
    names = {option.name: 2.0 for option in options()}
    twice: Market = asked.market.under(Terms(derating=names))
    double = asked.market.at_rate(2 * asked.market.buckets.rate_per_s)
    assert twice.solve().fleet.usd_per_h == pytest.approx(double.solve().fleet.usd_per_h)


def test_quality_is_a_condition_or_unknown() -> None:
    graph = load_graph(resolve_model("llama-3.2-1b"))
    units = units_of(graph, "block")
    wide, narrow = parse_precision("bf16"), parse_precision("int4_g128")
    table = noise_table(graph, units, (wide, narrow))
    assert quality_of([wide] * len(units), None).perplexity_frac == 0.0
    assert quality_of([narrow] * len(units), None).perplexity_frac is None
    assert "does not predict" in quality_of([narrow] * len(units), table).reason
    nats = replace(table, unit="nats", metric="kl", penalty=np.tile([0.0, 0.01], (len(units), 1)))
    claim = quality_of([narrow] * len(units), nats)
    assert claim.perplexity_frac == pytest.approx(np.expm1(0.01 * len(units)))
    bits = uniform_bits(units, [wide, narrow], nats)
    building = Building(graph, units, catalogue(), load_runtime("vllm"), 1024, max_perplexity_frac=0.05)
    kept, absent = replica_options(building, bits)
    assert {option.bits.name for option in kept} == {wide.name}
    assert any("is above +5.00%" in entry.reason for entry in absent)
    _, unknown = replica_options(building, uniform_bits(units, [narrow]))
    assert all("quality is unknown" in entry.reason for entry in unknown)


def test_planned_mixes_keep_their_budget() -> None:
    """Equal layers under half of the way to few bits: half of them may have few, on every machine."""
    graph = load_graph(resolve_model("llama-3.2-1b"))
    units = units_of(graph, "block")
    low, high = parse_precision("int4_g128"), parse_precision("int8_row")
    building = Building(graph, units, catalogue(), load_runtime("vllm"), 4096)
    found, absent = planned_options(building, low, high, 0.5, load())
    assert not absent
    assert {option.offer for option in found} == {0, 1}
    for option in found:
        names = [precision.name for _, precision in option.bits.assignment.items]
        assert names.count(low.name) <= len(units) // 2
        assert set(names) <= {low.name, high.name}
        assert option.replica.plan is not None
        assert option.n_devices == sum(len(stage.devices) for stage in option.replica.plan.stages)
    assert any(
        [p.name for _, p in option.bits.assignment.items].count(low.name) == len(units) // 2
        for option in found
    )
