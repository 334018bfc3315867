"""Families of orders against enumeration, and their bounds against every lane they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.partition import families
from dse.partition.cuts import cuts_in_box, lowest_bounds_in_box
from dse.partition.families import Space, for_lane, relax_family, whole_box
from dse.partition.instances import seeded
from dse.partition.lanes import LaneFactory
from dse.partition.problem import Formula, Goal, Objective, PipelineProblem
from dse.partition.relax import prefixes_and_constants
from dse.partition.solve import Planner, least_penalty, solve
from tests.pipeline_problems import exhaustive, random_problem

FORMULAS: tuple[Formula, ...] = ("round", "makespan", "llmpq")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families even where the orders are few."""
    monkeypatch.setattr(families, "FEW_SEQUENCES", 0)
    monkeypatch.setattr(families, "FEW_ORDERS", 1)


def three_devices(seed: int) -> PipelineProblem:
    """Three devices, two of them alike where the seed is even."""
    problem = random_problem(seed, n_layers=5, n_devices=3)
    if seed % 2 or len(set(problem.device_types)) == 1:
        return problem
    names = ("prefill_s", "decode_s", "first_prefill_s", "first_decode_s", "last_prefill_s", "last_decode_s")
    same = np.array([0, 0, 2])
    hops = {name: np.ones_like(getattr(problem, name)) for name in ("hop_prefill_s", "hop_decode_s")}
    return replace(
        problem,
        device_types=("a", "a", "b"),
        allowed=problem.allowed[same],
        capacity_bytes=problem.capacity_bytes[same],
        **{name: getattr(problem, name)[:, same] for name in names},
        **hops,
    )


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("start", range(0, 24, 8))
def test_equals_enumeration(start: int) -> None:
    n_families = 0
    for seed in range(start, start + 8):
        problem = three_devices(seed)
        for formula, most in zip(FORMULAS, (None, 35.0, 45.0), strict=True):
            goal = Goal(formula, max_penalty=most)
            n_families += len(Space(LaneFactory(problem, goal)).families)
            expected, solution = exhaustive(problem, goal), solve(problem, goal)
            assert (solution.value is None) == (expected is None)
            if expected is not None:
                assert solution.status == "optimal"
                assert solution.value == pytest.approx(expected[0], rel=1e-9)
                assert solution.bound is not None
                assert solution.bound <= expected[0] * (1 + 1e-12)
    assert n_families > 20


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("seed", range(6))
def test_least_penalty_and_what_it_teaches(seed: int) -> None:
    problem = three_devices(seed)
    huge = exhaustive(problem, Goal(theta_s=1e9))
    least = least_penalty(problem)
    assert (least.value is None) == (huge is None)
    if huge is None or least.value is None:
        return
    assert least.value == pytest.approx(huge[1], rel=1e-9)
    for above in (0.0, 2.0):
        expected = exhaustive(problem, Goal(max_penalty=least.value + above))
        assert expected is not None
        assert Planner(problem, Goal()).solve(least.value + above).value == pytest.approx(expected[0])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("objective", ["time", "ttft", "tpot", "throughput"])
def test_multipliers_of_a_family_hold_in_every_lane(objective: Objective) -> None:
    """The family's bound is no more than that of any of its lanes by the same multipliers."""
    n_compared = 0
    for seed in range(8):
        problem = three_devices(seed)
        goal = Goal(objective=objective, max_penalty=40.0, max_time_s=1e4)
        for family in Space(LaneFactory(problem, goal)).families:
            relaxed = relax_family(family, whole_box(family), goal.max_penalty)
            if relaxed is None:
                continue
            for devices in family.sequences:
                kinds = [family.kind_of[device] for device in devices]
                positions = [i for kind in kinds for i, k in enumerate(family.kinds) if k == kind]
                order = np.array(list(dict.fromkeys(positions)))
                if [family.kinds[i] for i in order] != kinds:
                    continue
                lane = LaneFactory(problem, goal).lane(devices, 0, 0)
                moved = for_lane(family, lane, relaxed.multipliers, order)
                prefixes, constants = prefixes_and_constants(lane, [moved], goal.max_penalty)
                lo = np.arange(lane.n + 1)
                hi = lane.n_layers - lane.n + lo
                lo[-1], hi[0] = lane.n_layers, 0
                if not lane.fits(cuts_in_box(lo, hi)).any():
                    continue
                bound = lowest_bounds_in_box(prefixes, constants, lo, hi)[0]
                assert relaxed.bound <= bound + 1e-9 * abs(bound)
                n_compared += 1
    assert n_compared > 10


def test_all_orders_of_eight_devices() -> None:
    """Every order at once is no worse than one of them, and the bound holds for that one too."""
    problem = seeded(n_layers=24, all_orders=True)
    goal = Goal(max_penalty=float(problem.penalty[:, 1].sum()))
    planner = Planner(problem, goal)
    limits = replace(planner.limits, gap_frac=5e-3, time_s=None)
    everything = planner.solve(goal.max_penalty, limits=limits)
    assert len(problem.orders) == 560
    assert everything.gap_frac is not None
    assert everything.gap_frac <= 5.0001e-3
    for order in problem.orders[:: len(problem.orders) // 2]:
        one = Planner(replace(problem, orders=(order,)), goal).solve(goal.max_penalty, limits=limits)
        assert one.value is not None
        assert everything.bound is not None
        assert everything.bound <= one.value
