"""The simulator as a queue: sample paths by Lindley and Kiefer-Wolfowitz, means by the closed forms."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
from numpy.typing import NDArray

from dse.capacity.deployment import Deployment, Pool
from dse.capacity.load import Load
from dse.capacity.replica import Batching
from dse.capacity.simulate import simulate
from tests.capacity_reference import ToySteps, toy_load, toy_replica

STEP_S = 1e-3
ALONE = Batching(max_sequences=1, chunked=False)
STEPS = ToySteps(fixed_s=STEP_S, token_s=0.0, position_s=0.0, pair_s=0.0)


def queue(rate_per_s: float, n: int, mean_steps: float, seed: int, *, fixed: bool = False) -> Load:
    """Poisson arrivals; one step per token, so that the service is (nearly) exponential, or fixed."""
    rng = np.random.default_rng(seed)
    output = np.full(n, round(mean_steps)) if fixed else 1 + rng.exponential(mean_steps, n).astype(int)
    return toy_load(np.cumsum(rng.exponential(1.0 / rate_per_s, n)), 1, output)


def waits(load: Load, n_servers: int) -> NDArray[np.float64]:
    """Kiefer and Wolfowitz (1955): in order of arrival, each to the server that is free first."""
    free = np.zeros(n_servers)
    out = np.empty(len(load))
    for i, (arrival, tokens) in enumerate(zip(load.arrival_s, load.output_tokens, strict=True)):
        first = int(np.argmin(free))
        start = max(arrival, free[first])
        out[i] = start - arrival
        free[first] = start + tokens * STEP_S
    return out


@pytest.mark.parametrize("n_servers", [1, 2, 5])
def test_waits_follow_the_recursion_exactly(n_servers: int) -> None:
    load = queue(0.8 * n_servers / 0.1, 2000, 100.0, seed=n_servers)
    pool = Pool("p", toy_replica(STEPS, batching=ALONE), n_servers)
    found = simulate(load, Deployment((pool,), policy="pull"))
    assert found.ttft_s - STEP_S == pytest.approx(waits(load, n_servers), abs=1e-9)
    assert found.e2e_s == pytest.approx(waits(load, n_servers) + load.output_tokens * STEP_S, abs=1e-9)


def erlang_c(n_servers: int, offered: float) -> float:
    """Probability of waiting in M/M/c (Erlang 1917)."""
    last = offered**n_servers / factorial(n_servers) * n_servers / (n_servers - offered)
    return last / (sum(offered**k / factorial(k) for k in range(n_servers)) + last)


@pytest.mark.parametrize(("n_servers", "load_frac"), [(1, 0.5), (1, 0.7), (3, 0.7)])
def test_mean_wait_of_exponential_service(n_servers: int, load_frac: float) -> None:
    """M/M/c: C(c, a) / (c mu - lambda), which is rho / (mu - lambda) for one server."""
    found, expected = [], []
    for seed in range(5):
        load = queue(load_frac * n_servers / 0.1, 4000, 100.0, seed)
        service_s = 1e-3 * (100.0 + 0.5)
        pool = Pool("p", toy_replica(STEPS, batching=ALONE), n_servers)
        run = simulate(load, Deployment((pool,), policy="pull"))
        found.append(run.ttft_s.mean() - STEP_S)
        offered = load_frac * n_servers * service_s / 0.1
        rate = load_frac * n_servers / 0.1
        expected.append(erlang_c(n_servers, offered) / (n_servers / service_s - rate))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.08)


def test_mean_wait_of_fixed_service() -> None:
    """M/D/1 (Pollaczek-Khinchine): rho S / (2 (1 - rho)), half of M/M/1."""
    found = []
    for seed in range(4):
        load = queue(7.0, 4000, 100.0, seed, fixed=True)
        run = simulate(load, Deployment((Pool("p", toy_replica(STEPS, batching=ALONE)),)))
        found.append(run.ttft_s.mean() - STEP_S)
    assert np.mean(found) == pytest.approx(0.7 * 0.1 / (2 * 0.3), rel=0.08)


def test_servers_work_while_requests_wait_and_littles_law_holds() -> None:
    """Work conservation: the busy time is the work; mean work in the servers = rate x mean service."""
    load = queue(24.0, 3000, 100.0, seed=1)
    pool = Pool("p", toy_replica(STEPS, batching=ALONE), 3)
    run = simulate(load, Deployment((pool,), policy="pull"))
    work_s = load.output_tokens.sum() * STEP_S
    assert sum(log.busy_s for log in run.replicas) == pytest.approx(work_s, rel=1e-9)
    edges = np.linspace(0.0, run.end_s, 31)
    in_service = sum(log.utilisation(edges) for log in run.replicas)
    assert in_service.mean() == pytest.approx(len(load) / run.end_s * work_s / len(load), rel=1e-9)
    assert in_service.max() <= 3 + 1e-9
