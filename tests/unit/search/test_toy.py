"""A separable toy with a known front: how far a black-box search of a few hundred trials stays from it.

28 variables with 2, 3, 4 or 8 bits, mean bits against a loss that halves with every bit; sizes and losses of
the
variables are seeded draws. The exact front is the oracle; the order of the methods is what must not change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dse.search.knapsack import Allocation, allocation_front
from dse.search.pareto import hypervolume
from dse.search.tpe import Choices, Evaluation, run_search

BITS = np.array([2.0, 3.0, 4.0, 8.0])
REFERENCE = (8.0, 6.0)
N_UNITS, N_TRIALS = 28, 90


def toy(n_units: int = N_UNITS) -> tuple[np.ndarray, np.ndarray]:
    """Return penalty and size (U, 4); with 2 bits everywhere the loss is 6 and the mean is 2 bits."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0.5, 1.5, n_units)
    weight = rng.lognormal(0.0, 1.0, n_units)
    loss = 6 * weight / weight.sum()
    return loss[:, None] * np.exp2(2 - BITS), share[:, None] / share.sum() * BITS


def objective(choices: Choices) -> Evaluation:
    penalty, size = toy(len(choices))
    units = np.arange(len(choices))
    return Evaluation((float(size[units, choices].sum()), float(penalty[units, choices].sum())))


@pytest.fixture(scope="module")
def exact() -> list[Allocation]:
    return allocation_front(*toy())


def volume(points: list[tuple[float, ...]]) -> float:
    return hypervolume(points, REFERENCE)


def test_exact_beats_seeded_beats_unseeded_beats_random(exact: list[Allocation], tmp_path: Path) -> None:
    uniform = [(k,) * N_UNITS for k in range(4)]
    every = np.linspace(0, len(exact) - 1, 20).astype(int)
    from_front = [exact[i].choices for i in every]

    def searched(seeds: list[Choices]) -> float:
        outcome = run_search(
            objective,
            (4,) * N_UNITS,
            seeds=seeds,
            n_trials=N_TRIALS,
            journal=tmp_path / f"{len(seeds)}.log",
            seed=1,
            objectives=("bits", "loss"),
            reference=REFERENCE,
        )
        return outcome.hypervolume[-1]

    rng = np.random.default_rng(1)
    random = volume([objective(tuple(row)).values for row in rng.integers(0, 4, (N_TRIALS, N_UNITS))])
    seeds_alone = volume([objective(choices).values for choices in (*uniform, *from_front)])
    best = volume([(a.size, a.penalty) for a in exact])
    unseeded, seeded = searched(uniform[2:3]), searched(uniform + from_front)
    assert random < unseeded < seeds_alone < seeded < best
    assert best - seeded < 0.8 * (best - seeds_alone)


def test_exact_front_of_the_toy(exact: list[Allocation]) -> None:
    """Both ends are the uniform plans, and the front lies below every uniform plan."""
    assert exact[0].choices == (0,) * N_UNITS
    assert exact[-1].choices == (3,) * N_UNITS
    assert (exact[0].size, exact[0].penalty) == pytest.approx((2.0, 6.0))
    for k in (1, 2):
        size, loss = objective((k,) * N_UNITS).values
        assert min(a.penalty for a in exact if a.size <= size * (1 + 1e-12)) < 0.8 * loss
