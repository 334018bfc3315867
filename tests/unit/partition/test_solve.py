"""Behaviour of the planner beside the optimum: proofs, limits, explanations, determinism."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.partition.branch import Limits
from dse.partition.cuts import best_cut_in_box, count_cuts, cuts_in_box, lowest_bounds_in_box, split_box_at
from dse.partition.explain import missing_bytes
from dse.partition.front import latency_quality_front
from dse.partition.lanes import LaneFactory
from dse.partition.objective import violations
from dse.partition.problem import Goal
from dse.partition.relax import Multipliers, cut_bounds, prefixes_and_constants, uniform_multipliers
from dse.partition.solve import Planner, least_penalty, solve
from tests.pipeline_problems import exhaustive, random_problem

ROOT = Path(__file__).resolve().parents[3]


def medium(seed: int = 3):
    """A feasible problem of 12 layers on 3 devices that takes a few milliseconds."""
    problem = random_problem(seed, n_layers=12, n_devices=3, n_choices=6, sizes=(1, 2))
    return replace(problem, capacity_bytes=np.full(3, 90.0), allowed=np.ones_like(problem.allowed))


@pytest.mark.parametrize("seed", range(6))
def test_any_multipliers_bound_every_arrangement(seed: int) -> None:
    """Weak duality, checked against the exhaustive optimum."""
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, n_layers=5)
    goal = Goal(max_penalty=45.0)
    expected = exhaustive(problem, goal)
    lowest = np.inf
    for lane in LaneFactory(problem, goal).lanes():
        shares = tuple(rng.dirichlet(np.ones(len(m.constants))) for m in lane.terms.maxima)
        some = Multipliers(shares, rng.random(lane.n), float(rng.random()))
        lo, hi = np.arange(lane.n + 1), 5 - lane.n + np.arange(lane.n + 1)
        lo[-1], hi[0] = 5, 0
        cuts = cuts_in_box(lo, hi)
        prefixes, constants = prefixes_and_constants(lane, [some, uniform_multipliers(lane)], 45.0)
        for prefix, constant in zip(prefixes, constants, strict=True):
            bounds = cut_bounds(prefix, float(constant), cuts)
            assert bounds.min() == pytest.approx(
                lowest_bounds_in_box(prefix[None], np.array([constant]), lo, hi)[0]
            )
            if lane.usable.any(axis=2).all():
                lowest = min(lowest, float(bounds.min()))
    if expected is not None and np.isfinite(lowest):
        assert lowest <= expected[0] + 1e-9


def test_boxes_hold_all_cuts() -> None:
    """Binomial coefficient as closed form; halves share the cuts."""
    lo, hi = np.array([0, 1, 2, 9]), np.array([0, 7, 8, 9])
    cuts = cuts_in_box(lo, hi)
    assert len(cuts) == count_cuts(lo, hi) == 8 * 7 // 2
    assert (np.diff(cuts) > 0).all()
    assert sum(count_cuts(*half) for half in split_box_at(lo, hi, 2, 4)) == len(cuts)


@pytest.mark.parametrize("seed", range(5))
def test_cheapest_cut_of_a_box(seed: int) -> None:
    """Oracle: all cuts of the box."""
    rng = np.random.default_rng(seed)
    prefix = np.concatenate([np.zeros((4, 1)), rng.random((4, 11)).cumsum(axis=1)], axis=1)
    lo, hi = np.array([0, 1, 3, 4, 11]), np.array([0, 6, 7, 10, 11])
    cut = best_cut_in_box(prefix, lo, hi)
    assert cut is not None
    values = cut_bounds(prefix, 0.5, cuts_in_box(lo, hi))
    assert cut_bounds(prefix, 0.5, cut[None])[0] == pytest.approx(values.min())
    assert lowest_bounds_in_box(prefix[None], np.array([0.5]), lo, hi)[0] == pytest.approx(values.min())


def test_large_boxes_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, goal = medium(), Goal(max_penalty=60.0)
    expected = solve(problem, goal)
    monkeypatch.setattr("dse.partition.branch.BLOCK_CUTS", 5)
    split = solve(problem, goal)
    assert split.status == expected.status == "optimal"
    assert split.value == pytest.approx(expected.value, rel=1e-9)


def test_branching_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four labels, cuts are closed by branching alone."""
    problem, goal = medium(), Goal(max_penalty=60.0)
    expected = solve(problem, goal)
    branched = Planner(problem, goal, Limits(first_labels=4, max_labels=4)).solve(60.0)
    assert branched.status == expected.status == "optimal"
    assert branched.value == pytest.approx(expected.value, rel=1e-9)


def test_a_limit_leaves_an_incumbent_with_its_true_gap() -> None:
    problem = medium()
    exact = solve(problem, Goal(max_penalty=60.0))
    assert exact.value is not None
    for n in range(1, 12):
        stopped = Planner(problem, Goal(), Limits(n_relaxations=n)).solve(60.0)
        assert stopped.bound is not None
        assert stopped.bound <= exact.value * (1 + 1e-9)
        if stopped.status == "feasible":
            assert stopped.value is not None
            assert stopped.gap_frac == pytest.approx((stopped.value - stopped.bound) / stopped.value)
            assert stopped.gap_frac > 1e-6
            assert stopped.value >= exact.value * (1 - 1e-9)
        elif stopped.status == "infeasible":
            assert "not proven" in stopped.binding


def test_no_time_is_never_optimal() -> None:
    assert solve(medium(), Goal(), time_limit_s=0.0).status == "infeasible"


def test_missing_memory_is_said_in_bytes() -> None:
    """Layers need 1000 bytes each and two devices offer 2500 and 1300: one layer of four is left over."""
    problem = random_problem(1, n_layers=4)
    problem = replace(
        problem,
        memory_bytes=np.full((4, 3), 1000.0),
        capacity_bytes=np.array([2500.0, 1300.0]),
        allowed=np.ones_like(problem.allowed),
        first_bytes=0.0,
        last_bytes=0.0,
        tied_bytes=0.0,
        allow_empty=True,
    )
    solution = solve(problem, Goal())
    assert solution.status == "infeasible"
    assert "at least 500 bytes" in solution.binding  # three layers on the first device, one on the second


@pytest.mark.parametrize("seed", range(20))
def test_missing_memory_is_the_least_over_all_cuts(seed: int) -> None:
    """Oracle: enumeration of orders, subsets and cuts."""
    drawn = random_problem(seed, n_layers=5, n_devices=3)
    problem = replace(drawn, capacity_bytes=drawn.capacity_bytes / 8, tied_bytes=0.0, allow_empty=True)
    least = []
    for order in itertools.permutations(range(3)):
        for n in (1, 2, 3):
            for inner in itertools.combinations(range(1, 5), n - 1):
                over = 0.0
                for s, (a, b) in enumerate(itertools.pairwise((0, *inner, 5))):
                    able = problem.allowed[order[s], a:b]
                    need = np.where(able, problem.memory_bytes[a:b], np.inf).min(axis=1).sum()
                    need += problem.first_bytes * (a == 0) + problem.last_bytes * (b == 5)
                    over += max(need - problem.capacity_bytes[order[s]], 0.0)
                least.append(over)
    found = missing_bytes(problem)
    assert (found is None) == (not np.isfinite(min(least)))
    if found is not None:
        assert found[0] == pytest.approx(min(least), rel=1e-6)
        assert found[2]


def test_missing_penalty_names_the_least() -> None:
    problem = medium()
    least = least_penalty(problem)
    assert least.value is not None
    solution = solve(problem, Goal(max_penalty=least.value - 1.0))
    assert solution.status == "infeasible"
    assert f"is {least.value:.6g}" in solution.binding
    assert solve(problem, Goal(max_penalty=least.value)).status == "optimal"


def test_missing_device_for_a_layer() -> None:
    problem = medium()
    allowed = problem.allowed.copy()
    allowed[:, 7] = False
    assert "layer 7" in solve(replace(problem, allowed=allowed), Goal()).binding


def test_binding_names_the_full_memory() -> None:
    problem = medium()
    problem = replace(problem, capacity_bytes=np.array([40.0, 40.0, 60.0]))
    solution = solve(problem, Goal())
    assert solution.status == "optimal"
    assert "memory of d/" in solution.binding


def test_interchangeable_devices_are_not_tried_twice() -> None:
    problem = replace(medium(), device_types=("a", "a", "a"), allow_empty=True)
    flat = np.full_like(problem.hop_prefill_s, 1.0)
    problem = replace(problem, hop_prefill_s=flat, hop_decode_s=flat)
    assert LaneFactory(problem, Goal()).sequences() == [(0, 1, 2), (0, 1), (0,)]


def test_theta_trades_time_for_quality() -> None:
    """theta = 0 gives the fastest plan, a huge theta the least penalty that fits."""
    problem = medium()
    fast, fine = solve(problem, Goal()), solve(problem, Goal(theta_s=1e7))
    assert fast.penalty is not None
    assert fine.penalty == pytest.approx(least_penalty(problem).value)
    assert fine.penalty < fast.penalty


def test_a_start_is_kept_or_improved() -> None:
    problem = medium()
    exact = solve(problem, Goal(max_penalty=60.0))
    assert exact.arrangement is not None
    started = Planner(problem, Goal(), Limits(n_relaxations=0)).solve(60.0, [exact.arrangement])
    assert started.value == exact.value
    assert started.status == "feasible"


def test_front_is_exact_and_sorted() -> None:
    problem = medium()
    front = latency_quality_front(problem, 8)
    assert len(front) >= 5
    penalties, values = [s.penalty for s in front], [s.value for s in front]
    assert penalties == sorted(penalties)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(solve(problem, Goal()).value)
    assert penalties[0] == pytest.approx(least_penalty(problem).value)
    for solution in front:
        assert solution.status == "optimal"
        assert solution.arrangement is not None
        again = solve(problem, Goal(max_penalty=solution.penalty))
        assert again.value == pytest.approx(solution.value, rel=1e-8)
        assert violations(problem, Goal(), solution.arrangement) == []


def test_front_of_nothing() -> None:
    problem = replace(medium(), capacity_bytes=np.ones(3))
    assert [s.status for s in latency_quality_front(problem, 5)] == ["infeasible"]


def test_same_plan_in_another_process() -> None:
    """Ties included: the whole arrangement is compared, not only its value."""
    program = (
        "import json; from tests.unit.partition.test_solve import medium\n"
        "from dse.partition.front import latency_quality_front\n"
        "front = latency_quality_front(medium(), 6, time_limit_s=None)\n"
        "print(json.dumps([[s.arrangement.stages, s.arrangement.choices, s.value] for s in front]))"
    )
    here = latency_quality_front(medium(), 6, time_limit_s=None)
    expected = [[s.arrangement.stages, s.arrangement.choices, s.value] for s in here if s.arrangement]
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(out.stdout) == json.loads(json.dumps(expected))
