"""Analytic capacity. Oracles: closed forms of queues (M/M/1, M/D/1 by its exact distribution), an affine
replica whose steady state is solved by hand, and conservation (the shares of the mix fill the replica)."""

from __future__ import annotations

from math import exp, factorial, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from dse.capacity.analytic import Room, operating_points, serving, waiting_tail
from dse.capacity.buckets import Buckets, buckets_of, peak_rate
from dse.capacity.load import Floats, Load, RequestClass, ServiceLevel


class Affine:
    """A replica of one or several equal stages: prefill p s a token, decode a + b B (+ c per position)."""

    def __init__(self, p: float, a: float, b: float, c: float = 0.0, stages: int = 1) -> None:
        self.p, self.a, self.b, self.c, self.stages = p, a, b, c, stages

    def _spread(self, seconds: Floats, joules: Floats) -> Floats:
        whole = np.stack([seconds, joules])[:, None] / self.stages
        return np.repeat(whole, self.stages, axis=1)

    def prefill_costs(self, prompt_tokens: ArrayLike) -> Floats:
        n = np.asarray(prompt_tokens, dtype=np.float64)
        return self._spread(self.p * n, 2.0 * n)

    def decode_costs(self, sequences: ArrayLike, context: ArrayLike) -> Floats:
        n, c = np.broadcast_arrays(np.asarray(sequences, float), np.asarray(context, float))
        return self._spread(self.a + self.b * n + self.c * n * c, 3.0 * n)

    def hop_costs(self, n_tokens: ArrayLike) -> Floats:
        n = np.asarray(n_tokens, dtype=np.float64)
        return np.zeros((2, self.stages - 1, *n.shape))


def two_buckets(cv2: float = 1.0) -> Buckets:
    return Buckets(
        np.zeros(2, dtype=np.intp),
        np.array([100.0, 1000.0]),
        np.array([51.0, 201.0]),
        np.array([0.7, 0.3]),
        5.0,
        cv2,
    )


LEVELS = [
    (0, ServiceLevel("ttft", 90, 0.5)),
    (0, ServiceLevel("tpot", 90, 0.05)),
    (0, ServiceLevel("e2e", 90, 10.0)),
]


@pytest.mark.parametrize("c", [0.0, 1e-7])
def test_steady_state_of_an_affine_replica(c: float) -> None:
    """By hand: TPOT = a / (1 - rho), rho = lambda (Tp + (n - 1)(b + c context)), B = lambda (n - 1) TPOT."""
    steps, buckets = Affine(2e-4, 0.01, 2e-4, c), two_buckets()
    served = serving(steps, Room(1e6, 200), buckets)
    assert served is not None
    for point in operating_points(served, buckets, LEVELS):
        each = 2e-4 + c * (buckets.prompt_tokens + buckets.output_tokens / 2)
        more = buckets.output_tokens - 1
        load_s = 2e-4 * buckets.prompt_tokens + more * each
        rho = point.rate_per_s * float((buckets.share * load_s).sum())
        assert point.tpot_s == pytest.approx(0.01 / (1 - rho), rel=1e-6)
        assert point.batch == pytest.approx(
            point.rate_per_s * float((buckets.share * more).sum()) * point.tpot_s, rel=1e-9
        )
        # the mix at its rate fills the replica's time exactly once
        assert point.rate_per_s * float((buckets.share * point.shares[:, 0]).sum()) == pytest.approx(1.0)
        joules = 2.0 * buckets.prompt_tokens + more * 3.0
        np.testing.assert_allclose(point.energy_j, joules)


def test_stages_share_a_batch() -> None:
    """S equal stages: a round is the whole pipeline for one micro-batch of B / S each."""
    buckets = two_buckets()
    whole = serving(Affine(2e-4, 0.01, 2e-4, stages=4), Room(1e6, 200), buckets)
    assert whole is not None
    for batch in (4.0, 16.0, 64.0):
        assert whole.rounds.seconds(batch) == pytest.approx(0.01 + 2e-4 * batch / 4)
    np.testing.assert_allclose(whole.times.busy_s, 2e-4 * buckets.prompt_tokens / 4)


def test_mm1_waiting_is_exact() -> None:
    """Exponential service (many quantiles of it): P(W > t) = rho exp(-(mu - lambda) t)."""
    u = (np.arange(20000) + 0.5) / 20000
    service = -np.log1p(-u) / 2.0
    busy, tau = waiting_tail(1.2, service, np.full(20000, 1 / 20000), 1.0)
    assert busy == pytest.approx(0.6, rel=1e-3)
    assert tau == pytest.approx(1 / (2.0 - 1.2), rel=3e-3)


@pytest.mark.parametrize("rho", [0.5, 0.7, 0.9])
def test_md1_mean_is_exact_and_its_tail_close(rho: float) -> None:
    """Mean: Pollaczek-Khinchine. Tail: Erlang's exact distribution of M/D/1 waiting."""
    busy, tau = waiting_tail(rho, np.ones(1), np.ones(1), 1.0)
    assert busy * tau == pytest.approx(rho / (2 * (1 - rho)), rel=1e-12)

    def within(t: float) -> float:
        return (1 - rho) * sum(
            (rho * (k - t)) ** k / factorial(k) * exp(-rho * (k - t)) for k in range(int(t) + 1)
        )

    for t in (1.0, 2.0, 4.0):
        assert busy * exp(-t / tau) == pytest.approx(1 - within(t), abs=0.06)


def test_waiting_matches_a_simulated_queue() -> None:
    """Lindley's recursion for the buckets' own prefill times."""
    buckets = two_buckets()
    served = serving(Affine(1e-3, 0.001, 0.0), Room(1e6, 200), buckets)
    assert served is not None
    rng = np.random.default_rng(0)
    rate = 0.75 / 0.37
    gaps = rng.exponential(1 / rate, 400_000)
    service = rng.choice(served.times.busy_s, 400_000, p=buckets.share)
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:]]).cumsum()
    waits = steps - np.minimum.accumulate(steps)
    busy, tau = waiting_tail(rate, served.times.busy_s, buckets.share, 1.0)
    assert busy * tau == pytest.approx(waits.mean(), rel=0.03)
    for t in (0.5, 2.0, 5.0):
        assert busy * exp(-t / tau) == pytest.approx((waits > t).mean(), abs=0.05)


@given(st.floats(0.2, 3.0), st.floats(1.0, 4.0))
def test_slower_or_burstier_meets_levels_less(slow: float, cv2: float) -> None:
    buckets = two_buckets()
    room = Room(1e5, 100)
    fast_one, slow_one = Affine(1e-4, 0.01, 1e-4), Affine(1e-4 * (1 + slow), 0.01, 1e-4)
    for other, lengths in ((slow_one, buckets), (fast_one, two_buckets(cv2))):
        fast, worse = serving(fast_one, room, buckets), serving(other, room, lengths)
        assert fast is not None
        assert worse is not None
        only = [(0, ServiceLevel("ttft", 90, 0.3))]
        for a, b in zip(
            operating_points(fast, buckets, only), operating_points(worse, lengths, only), strict=True
        ):
            assert a.batch == b.batch
            assert (a.attained_frac >= b.attained_frac - 1e-9).all()


def test_the_cache_bounds_the_batch_and_the_longest_request() -> None:
    buckets = two_buckets()
    steps = Affine(1e-4, 0.001, 1e-5)
    assert serving(steps, Room(1200.0, 100), buckets) is None
    served = serving(steps, Room(20_000.0, 1000), buckets)
    assert served is not None
    held = served.rounds.context
    assert (served.most + 2.33 * sqrt(served.most)) * held == pytest.approx(20_000.0)
    last = operating_points(served, buckets, [])[-1]
    assert last.kv_frac <= 1.0
    used = last.rate_per_s * float((buckets.share * last.shares[:, 1]).sum())
    assert used <= 1.1  # the prefill stays in the cache too


def test_buckets_conserve_requests_and_tokens() -> None:
    rng = np.random.default_rng(1)
    n = 3000
    prompt = np.minimum(rng.lognormal(6, 1.2, n).astype(int) + 1, 30000)
    output = np.minimum(rng.lognormal(5, 0.8, n).astype(int) + 1, 2000)
    classes = (RequestClass("a"), RequestClass("b"))
    load = Load("l", np.sort(rng.uniform(0, 600, n)), prompt, output, rng.integers(0, 2, n), classes, 600.0)
    buckets = buckets_of(load)
    assert buckets.share.sum() == pytest.approx(1.0)
    assert (buckets.share * buckets.prompt_tokens).sum() == pytest.approx(prompt.mean())
    assert (buckets.share * buckets.output_tokens).sum() == pytest.approx(output.mean())
    for c in (0, 1):
        assert buckets.share[buckets.class_index == c].sum() == pytest.approx((load.class_index == c).mean())
    assert load.rate_per_s <= buckets.rate_per_s <= 1.3 * load.rate_per_s
    cells = zip(buckets.class_index, buckets.prompt_ranges, buckets.output_ranges, strict=True)
    for (c, (p, q), (m, n_)), share in zip(cells, buckets.share, strict=True):
        inside = (load.class_index == c) & (prompt >= p) & (output >= m)
        inside &= (prompt < (q or 10**9)) & (output < (n_ or 10**9))
        assert share == pytest.approx(inside.mean())


def test_the_busiest_minute_is_found() -> None:
    quiet, busy = np.arange(0, 600, 0.5), np.arange(600, 660, 0.05)
    times = np.concatenate([quiet, busy])
    ones = np.ones(len(times), dtype=int)
    load = Load("l", times, ones, ones, ones * 0, (RequestClass("a"),), 660.0)
    assert 15 < peak_rate(load) <= 20
