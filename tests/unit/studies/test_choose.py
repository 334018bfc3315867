"""Choosing finalists, recommending a plan, holding it against uniform plans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from studies.choose import compare_with_uniform, recommend, spread
from studies.result import Measured, Point, Predicted


def point(name: str, *, bits: float, ppl: float | None, total_s: float = 1.0) -> Point:
    predicted = Predicted(
        kl_nats=0.1,
        ttft_s=0.1,
        tpot_s=0.01,
        total_s=total_s,
        throughput_tokens_per_s=10.0,
        energy_j_per_token=1.0,
        energy_excludes_static=[],
        cost_usd_per_mtok=None,
        memory_bytes={"a/0": 1.0},
        memory_total_bytes=1.0,
        effective_bits=bits,
        linear_effective_bits=bits,
        provenance="analytic",
    )
    measured = None if ppl is None else Measured(ppl, 0.1, 0.9, 100, 50)
    return Point(name, "exact", {}, predicted, measured)


def test_spread_is_within_twice_the_optimal_radius() -> None:
    """Gonzalez's bound against brute force over all subsets."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.random((9, 2))
        scaled = (rows - rows.min(0)) / (rows.max(0) - rows.min(0))

        def radius(chosen: tuple[int, ...], scaled: np.ndarray = scaled) -> float:
            return float(np.linalg.norm(scaled[:, None] - scaled[None, list(chosen)], axis=2).min(1).max())

        chosen = spread(rows, 4, already=[0])
        assert len(set(chosen)) == 4
        best = min(radius((0, *rest)) for rest in itertools.combinations(range(1, 9), 3))
        assert radius(tuple(chosen)) <= 2 * best + 1e-12


def test_spread_copes_with_few_and_equal_rows() -> None:
    assert sorted(spread(np.ones((2, 3)), 5)) == [0, 1]


def test_uniform_is_held_against_plans_of_no_more_bits() -> None:
    rows = compare_with_uniform(
        [point("m1", bits=4.0, ppl=15.0), point("m2", bits=4.4, ppl=14.0), point("m3", bits=3.0, ppl=None)],
        [point("u4", bits=4.3, ppl=17.0), point("u3", bits=3.3, ppl=40.0), point("u5", bits=5.3, ppl=13.9)],
    )
    assert [(row["mixed"], row["wins"]) for row in rows] == [("m1", True), (None, False), ("m2", False)]


def test_recommends_the_fastest_tolerable_plan() -> None:
    points = [
        point("slow", bits=8, ppl=13.1, total_s=3.0),
        point("fast", bits=4, ppl=13.6, total_s=2.0),
        point("bad", bits=3, ppl=40.0, total_s=1.0),
    ]
    best, reason = recommend(points, 13.0, 0.05)
    assert best.name == "fast"
    assert "within 5%" in reason
    best, reason = recommend(points, 10.0, 0.05)
    assert best.name == "slow"
    assert reason.startswith("no measured plan")


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_ties_are_broken_by_name(names: list[str]) -> None:
    best, _ = recommend([point(n, bits=4, ppl=13.0) for n in reversed(names)], 13.0, 0.0)
    assert best.name == "a"
