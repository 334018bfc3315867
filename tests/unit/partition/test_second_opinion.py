"""What HiGHS gives where GLOP gives up. Oracle: GLOP itself on programs that it solves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from dse.partition.relax import _second_opinion, run_linear_program


@pytest.mark.parametrize("seed", range(20))
def test_both_solvers_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, rows = 12, 7
    matrix = sparse.csr_matrix(np.concatenate([np.ones((1, n)), rng.uniform(0, 1, (rows - 1, n))]))
    low = np.concatenate([[1.0, 0.2], np.full(rows - 2, -np.inf)])
    high = np.concatenate([[1.0, np.inf], rng.uniform(0.4, 0.9, rows - 2)])
    objective = rng.uniform(1.0, 5.0, n)
    first = run_linear_program(objective, matrix, low, high, n)
    second = _second_opinion(objective, matrix, low, high, n)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        np.testing.assert_allclose(second[0], first[0], atol=1e-7)
        np.testing.assert_allclose(second[1], first[1], atol=1e-6)


def test_both_call_the_impossible_so() -> None:
    matrix = sparse.csr_matrix(np.ones((2, 3)))
    low, high = np.array([1.0, -np.inf]), np.array([1.0, 0.5])
    assert run_linear_program(np.ones(3), matrix, low, high, 3) is None
    assert _second_opinion(np.ones(3), matrix, low, high, 3) is None
