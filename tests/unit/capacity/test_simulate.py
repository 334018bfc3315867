"""Continuous batching against a plain simulator, the cost model at zero load, and conservation laws."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dse.capacity.deployment import Deployment, Pool, Rule
from dse.capacity.load import Load
from dse.capacity.replica import Batching, Replica
from dse.capacity.simulate import simulate
from dse.capacity.simulation import Simulation
from dse.errors import ConfigError
from hardware_specs.spec import Link
from tests.capacity_reference import PlainSimulator, ToySteps, random_load, toy_load, toy_replica
from tests.unit.capacity.test_replica import ARRANGEMENTS, replica

LINK = Link("net", "scale_out", 1e3, 1e-3)


def one(replica: Replica, count: int = 1) -> Deployment:
    return Deployment((Pool("p", replica, count),))


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kv_tokens", [None, 130, 400])
@pytest.mark.parametrize("seed", range(6))
def test_runs_equal_the_plain_simulator(seed: int, kv_tokens: int | None, chunked: bool) -> None:
    """The cache of 130 tokens holds about one request, so that sequences are preempted and recomputed."""
    rng = np.random.default_rng(seed)
    batching = Batching(int(rng.integers(1, 9)), int(rng.integers(9, 80)), chunked, int(rng.integers(1, 9)))
    load = random_load(seed, rate_per_s=float(rng.choice([0.5, 3.0, 30.0])))
    toy = toy_replica(ToySteps(), kv_tokens=kv_tokens, batching=batching)
    plain = PlainSimulator(load, toy)
    plain.run()
    found = simulate(load, one(toy))
    assert found.first_s == pytest.approx(np.array(plain.first_s), rel=1e-10)
    assert found.finish_s == pytest.approx(np.array(plain.finish_s), rel=1e-10)
    assert found.preemptions.tolist() == plain.preemptions


def test_small_caches_do_preempt() -> None:
    toy = toy_replica(ToySteps(), kv_tokens=130, batching=Batching(8, 64, True, 4))
    found = simulate(random_load(0, rate_per_s=30.0), one(toy))
    assert found.preemptions.sum() > 0
    assert not np.isnan(found.finish_s).any()


def pipeline(n_stages: int, kv_tokens: int | None, seed: int, **options: object) -> Deployment:
    rng = np.random.default_rng(seed)
    batching = Batching(int(rng.integers(2, 13)), int(rng.integers(13, 80)), bool(seed % 2), 4)
    steps = ToySteps(n_stages=n_stages, hop_s=0.002)
    return one(toy_replica(steps, kv_tokens=kv_tokens, batching=batching), 2)


def apart(kv_tokens: int | None, seed: int) -> Deployment:
    rng = np.random.default_rng(seed)
    batching = Batching(int(rng.integers(2, 9)), 64, bool(seed % 2), 4)
    prefill = toy_replica(ToySteps(), kv_tokens=kv_tokens, batching=batching, role="prefill")
    decode = toy_replica(ToySteps(), kv_tokens=kv_tokens, batching=batching, role="decode")
    return Deployment((Pool("prefill", prefill, 2), Pool("decode", decode, 2)), kv_link=LINK)


DEPLOYMENTS = {
    "two": lambda kv, seed: one(
        toy_replica(ToySteps(), kv_tokens=kv, batching=Batching(6, 40, bool(seed % 2), 4)), 2
    ),
    "pipeline": lambda kv, seed: pipeline(2, kv, seed),
    "deep": lambda kv, seed: pipeline(4, kv, seed),
    "apart": apart,
    "pull": lambda kv, seed: replace(pipeline(2, kv, seed), policy="pull"),
}


@pytest.mark.parametrize("kv_tokens", [None, 400])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_long_runs_equal_single_steps(name: str, kv_tokens: int | None) -> None:
    for seed in range(8):
        load = random_load(seed, n=60, rate_per_s=(1.0, 10.0)[seed % 2], longest=(60, 190)[seed // 4])
        deployment = DEPLOYMENTS[name](kv_tokens, seed)
        runs, steps = simulate(load, deployment), simulate(load, deployment, max_run_steps=1)
        assert runs.finish_s == pytest.approx(steps.finish_s, rel=1e-10)
        assert runs.first_s == pytest.approx(steps.first_s, rel=1e-10)
        assert runs.preemptions.tolist() == steps.preemptions.tolist()
        assert runs.energy_j == pytest.approx(steps.energy_j, rel=1e-9)


@pytest.mark.parametrize("kv_tokens", [None, 150])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_nothing_is_lost_and_the_cache_never_overflows(name: str, kv_tokens: int | None) -> None:
    for seed in range(6):
        load = random_load(seed, n=60, rate_per_s=20.0)
        found = simulate(load, DEPLOYMENTS[name](kv_tokens, seed))
        assert not found.rejected.any()
        assert (found.ttft_s > 0).all()
        assert (found.e2e_s >= found.ttft_s).all()
        assert found.n_output_tokens == load.output_tokens.sum()
        assert found.end_s == pytest.approx(found.finish_s.max())
        for log in found.replicas:
            edges = np.linspace(0, found.end_s, 20)
            assert (log.utilisation(edges) <= 1 + 1e-9).all()
            if log.n_blocks is not None and len(log.rows):
                assert log.rows[:, 3:].min() >= 0
                assert log.rows[-1, 5] == log.n_blocks or log.replica.role == "prefill"
                used = log.cache_used(edges)
                assert used is not None
                assert -1e-9 <= used.min() <= used.max() <= 1 + 1e-9


@pytest.mark.parametrize("chunk_tokens", [None, 256])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_zero_load_latency_is_the_cost_model_exactly(name: str, chunk_tokens: int | None) -> None:
    """Far apart requests, priced by what equals the plan's prediction (``test_replica``)."""
    batching = Batching(64, chunk_tokens or 8192, chunked=chunk_tokens is not None)
    model = replica(name, batching=batching)
    lengths = [(700, 12), (256, 1), (1000, 40), (5, 300)]
    load = toy_load(1000.0 * np.arange(4), [p for p, _ in lengths], [n for _, n in lengths])
    found = simulate(load, one(model))
    steps = model.steps
    for i, (prompt, output) in enumerate(lengths):
        if chunk_tokens is None:
            ttft_s = steps.prefill_costs([prompt])[0].sum() + steps.hop_costs([prompt])[0].sum()  # type: ignore[attr-defined]
            assert found.ttft_s[i] == pytest.approx(ttft_s, rel=1e-9)
        context = prompt + np.arange(1.0, output)
        decode_s = steps.decode_costs(1, context)[0].sum()  # type: ignore[attr-defined]
        decode_s += (output - 1) * sum(steps.hops_s(1))
        assert found.e2e_s[i] - found.ttft_s[i] == pytest.approx(decode_s, abs=1e-9)


def test_separate_pools_at_zero_load() -> None:
    """First token from the prefill replica, then the transfer, then decode steps."""
    steps = ToySteps()
    deployment = apart(None, 0)
    found = simulate(toy_load([0.0], [50], [11]), deployment)
    prefill_s = steps.iteration_s([(50, 50)], [])
    decode_s = sum(steps.iteration_s([], [50 + j]) for j in range(1, 11))
    transfer_s = 1e-3 + 50 / 1e3
    assert found.ttft_s[0] == pytest.approx(prefill_s)
    assert found.e2e_s[0] == pytest.approx(prefill_s + transfer_s + decode_s)


def test_equal_seeds_give_equal_outcomes() -> None:
    load = random_load(3)
    rules = (Rule((("a", 0.3), ("b", 0.7))),)
    pools = tuple(Pool(name, toy_replica(ToySteps()), 2) for name in "ab")
    deployment = Deployment(pools, rules)
    texts = [json.dumps(simulate(load, deployment, seed).to_json()) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_rules_send_requests_where_they_say() -> None:
    load = random_load(1, n=200)
    pools = tuple(Pool(name, toy_replica(ToySteps())) for name in ("short", "long"))
    rules = (Rule((("long", 1.0),), prompt_tokens=(30, None)), Rule((("short", 1.0),)))
    found = simulate(load, Deployment(pools, rules))
    assert (found.replica == (load.prompt_tokens >= 30)).all()
    with pytest.raises(ConfigError, match="no rule is for request"):
        simulate(load, Deployment(pools, rules[:1]))


def test_requests_that_fit_nowhere_are_rejected_and_fail_their_levels() -> None:
    load = toy_load([0.0, 1.0], [10, 500], [5, 5])
    found = simulate(load, one(toy_replica(ToySteps(), kv_tokens=100)))
    assert found.rejected.tolist() == [False, True]
    level = found.levels()[0]
    assert (level.passed, level.achieved_s, level.attained_frac) == (False, None, 0.5)
    assert found.goodput()[0].attained_frac == 0.5
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["n_rejected"] == 1


def test_levels_are_counted_by_hand() -> None:
    load = toy_load(100.0 * np.arange(10), 10, [11] * 10)
    found = simulate(load, one(toy_replica(ToySteps(fixed_s=0.09))))
    ttft, tpot, e2e = found.levels()
    assert ttft.achieved_s == pytest.approx(0.1, rel=1e-3)
    assert (ttft.passed, tpot.passed, e2e.passed) == (True, True, True)
    assert tpot.achieved_s == pytest.approx(0.09 + 1e-3 + 1e-5 * 15.5)
    assert found.goodput()[0].attained_frac == 1.0


def test_energy_and_money_follow_the_time() -> None:
    found = simulate(random_load(2), one(toy_replica(ToySteps()), 3))
    busy_s = sum(log.busy_s for log in found.replicas)
    assert found.energy_j == pytest.approx(busy_s + 300.0 * found.end_s)
    assert found.cost_usd == pytest.approx(3.0 * found.end_s / 3600)
    assert found.cost_usd_per_mtok == pytest.approx(found.cost_usd / found.n_output_tokens * 1e6)


def test_least_work_first_beats_turns_at_uneven_lengths() -> None:
    """A router that looks cannot be worse on average than one that does not, far from saturation."""
    load = random_load(4, n=400, rate_per_s=12.0, longest=200)
    pool = (Pool("p", toy_replica(ToySteps(), batching=Batching(4, 64)), 4),)

    def mean_s(found: Simulation) -> float:
        return float(found.e2e_s.mean())

    turns = mean_s(simulate(load, Deployment(pool, policy="round_robin")))
    for policy in ("shortest_queue", "pull"):
        assert mean_s(simulate(load, Deployment(pool, policy=policy))) < turns  # type: ignore[arg-type]


def test_unsound_deployments_are_refused() -> None:
    pool = Pool("p", toy_replica(ToySteps()))
    prefill = Pool("p", toy_replica(ToySteps(), role="prefill"))
    for build, said in (
        (lambda: Deployment(()), "at least one pool"),
        (lambda: Deployment((pool, pool)), "one name"),
        (lambda: Deployment((pool,), policy="random"), "unknown policy"),  # type: ignore[arg-type]
        (lambda: Deployment((prefill,)), "link for the caches"),
        (lambda: Deployment((prefill,), kv_link=LINK), "need a decode pool"),
        (lambda: Deployment((pool,), (Rule((("q", 1.0),)),)), "unknown pool"),
        (lambda: Pool("p", toy_replica(ToySteps()), 0), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            build()


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    load: Load = random_load(0, n=2500, rate_per_s=100.0, longest=5)
    simulate(load, one(toy_replica(ToySteps())), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2500), (2000, 2500)]
