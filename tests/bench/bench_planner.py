"""Speed of the planner, as ratios within one run: ``pytest tests/bench/bench_planner.py -m slow -s``."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from dse.partition.branch import Limits
from dse.partition.front import latency_quality_front
from dse.partition.lanes import LaneFactory
from dse.partition.problem import Goal, PipelineProblem
from dse.partition.solve import Planner, least_penalty
from tests.pipeline_problems import by_mixed_integer_program

pytestmark = pytest.mark.slow
BITS = np.array([16.0, 8.25, 6.25, 4.5, 4.25, 3.25])


def report(line: str) -> None:
    """Show a line with ``-s``."""
    sys.stdout.write(f"\n{line}")


def unlike_boards(seed: int = 0, *, room: float = 1.3, n_layers: int = 30) -> PipelineProblem:
    """30 layers of two units with six precisions each (36 choices) on three unlike devices, 16 size pairs.

    A roofline with round numbers; penalties are lognormal over units and fall by 4 per bit.
    """
    rng = np.random.default_rng(seed)
    sizes, weights, prompt = (1, 2, 4, 8), np.array([0.9e6, 2.65e6]), 128
    bandwidth, rate = np.array([1e11, 6e10, 2e11]), np.array([2e12, 1e12, 4e12])
    slowdown = 1 + 0.3 * rng.random((3, 6)) * np.array([0, 1, 1.5, 1, 1.5, 2])
    speedup = np.where(BITS <= 8.25, 0.6 + 0.5 * rng.random((3, 6)), 1.0)
    combos = np.array(list(itertools.product(range(6), repeat=2)))
    stored = weights * BITS[combos] / 8  # (K, 2)
    micro = np.array(sizes, float)[:, None, None, None]
    device = (slice(None), None, None)
    read = stored / bandwidth[device]
    prefill = 2e-5 + 2 * weights * prompt * micro / rate[device] * speedup[:, combos] + read
    decode = 1.5e-5 + read * slowdown[:, combos] + 2 * weights * micro / rate[device]
    sensitivity = rng.lognormal(0, 1, (n_layers, 1, 2)) * 0.01
    loss = np.where(BITS == 16, 0.0, 4.0 ** (3 - BITS))
    penalty = (sensitivity * loss[combos] * (1 + 0.2 * rng.random((n_layers, 36, 2)))).sum(axis=2)
    message = np.array(sizes)[:, None, None] * np.ones((1, 3, 3)) * 576 * 2 / 1e9
    head = (1 + 0.1 * np.array(sizes))[:, None] * 57e6 / bandwidth
    kv = 2 * 16 * 256 * 192 * 2

    def every_layer(times: np.ndarray) -> np.ndarray:
        return np.repeat(times.sum(axis=3)[:, :, None, :], n_layers, axis=2)

    return PipelineProblem(
        devices=("a/0", "b/0", "c/0"),
        device_types=("a", "b", "c"),
        orders=tuple(itertools.permutations(range(3))),
        prefill_micro_batches=sizes,
        decode_micro_batches=sizes,
        prefill_s=every_layer(prefill),
        decode_s=every_layer(decode),
        allowed=np.ones((3, n_layers, 36), bool),
        memory_bytes=np.tile(stored.sum(axis=1) + kv, (n_layers, 1)),
        capacity_bytes=np.array([60e6, 80e6, 50e6]) * room * n_layers / 30,
        first_bytes=28.5e6 * n_layers / 30,
        last_bytes=28.5e6 * n_layers / 30,
        tied_bytes=28.5e6 * n_layers / 30,
        first_prefill_s=np.full((4, 3), 1e-5),
        first_decode_s=np.full((4, 3), 1e-5),
        last_prefill_s=head,
        last_decode_s=head,
        hop_prefill_s=1e-4 + message * prompt,
        hop_decode_s=1e-4 + message,
        penalty=penalty,
        batch=8,
        output_tokens=64,
    )


@pytest.mark.parametrize("room", [1.3, 2.0])
def test_front_of_the_demo_size_is_proven(room: float) -> None:
    problem = unlike_boards(room=room)
    began, cpu = time.perf_counter(), time.process_time()
    front = latency_quality_front(problem, 12, time_limit_s=None)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    report(f"room {room}: {len(front)} points, {wall:.1f} s wall, {cpu:.1f} s processor")
    for solution in front:
        report(
            f"  {solution.penalty:.5g} {solution.value:.6f} s {solution.gap_frac:.1e} {solution.time_s:.2f} s"
        )
    assert all(solution.status == "optimal" for solution in front)


def test_few_cuts_need_a_relaxation() -> None:
    """Bounds shared between cuts and lanes settle most of the cuts: at most a fifth get a linear program."""
    problem = unlike_boards()
    least = least_penalty(problem)
    assert least.value is not None
    planner = Planner(problem, Goal(), Limits())
    solution = planner.solve(10 * least.value)
    n_cuts = sum((1, 29, 406)[lane.n - 1] for lane in LaneFactory(problem, Goal()).lanes())
    assert planner.last is not None
    report(f"{planner.last.n_relaxations} relaxations for {n_cuts} cuts, {solution.time_s:.2f} s")
    assert solution.status == "optimal"
    assert planner.last.n_relaxations < 0.2 * n_cuts


def test_faster_than_one_textbook_program() -> None:
    """All 240 lanes together against the textbook mixed-integer program of a single one, 10 layers."""
    problem = replace(unlike_boards(n_layers=10), allow_empty=False)
    single = replace(
        problem,
        orders=problem.orders[:1],
        prefill_micro_batches=(2,),
        decode_micro_batches=(4,),
        **{
            name: getattr(problem, name)[1:2]
            for name in ("prefill_s", "first_prefill_s", "last_prefill_s", "hop_prefill_s")
        },
        **{
            name: getattr(problem, name)[2:3]
            for name in ("decode_s", "first_decode_s", "last_decode_s", "hop_decode_s")
        },
    )
    goal = Goal(max_penalty=0.05)
    began = time.perf_counter()
    expected = by_mixed_integer_program(single, goal)
    program_s = time.perf_counter() - began
    ours = Planner(single, goal, Limits()).solve(0.05)
    everything = Planner(problem, goal, Limits()).solve(0.05)
    report(f"program {program_s:.2f} s, same lane {ours.time_s:.3f} s, all lanes {everything.time_s:.2f} s")
    assert ours.value == pytest.approx(expected, rel=1e-6)
    assert ours.time_s < 0.5 * program_s
