"""Closed forms of the pipeline against the discrete-event simulation."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.pipeline import pipeline_times
from cost_models.simulate import Interval, simulate_pipeline

TIMES = st.floats(1e-6, 1.0)


@st.composite
def pipelines(draw):
    """(prefill stages, decode stages, prefill hops, decode hops) of one to five stages; hops may be 0."""
    n_stages = draw(st.integers(1, 5))
    stages = [draw(st.lists(TIMES, min_size=n_stages, max_size=n_stages)) for _ in range(2)]
    hops = [draw(st.lists(st.floats(0, 0.5), min_size=n_stages - 1, max_size=n_stages - 1)) for _ in range(2)]
    return (*stages, *hops)


def ends(intervals: list[Interval], phase: str) -> list[Interval]:
    """What the last station did, in one phase."""
    last = max(interval.station for interval in intervals)
    return [i for i in intervals if i.station == last and i.phase == phase]


@settings(max_examples=200, deadline=None)
@given(times=pipelines(), n_prefill=st.integers(1, 8))
def test_prefill_makespan_equals_simulation(times, n_prefill):
    closed = pipeline_times(*times, n_prefill, 1, 1)
    simulated = simulate_pipeline(*times, n_prefill, 1, 1)
    assert closed.ttft_s == pytest.approx(max(i.end_s for i in simulated), rel=1e-9)
    assert closed.total_s == closed.ttft_s


@settings(max_examples=200, deadline=None)
@given(times=pipelines(), n_decode=st.integers(1, 6))
def test_decode_round_equals_steady_state_of_simulation(times, n_decode):
    closed = pipeline_times(*times, 1, n_decode, 2)
    n_rounds = 40
    last = ends(simulate_pipeline(*times, 1, n_decode, n_rounds + 1), "decode")
    finish = {i.round: i.end_s for i in last if i.micro_batch == 0}
    simulated_s = (finish[n_rounds - 1] - finish[n_rounds // 2]) / (n_rounds - 1 - n_rounds // 2)
    assert closed.tpot_s == pytest.approx(simulated_s, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(times=pipelines(), n_prefill=st.integers(1, 4), n_decode=st.integers(1, 4))
def test_job_time_is_near_the_simulation(times, n_prefill, n_decode):
    # The closed form charges whole rounds; the job may differ by the fill of one round at most.
    closed = pipeline_times(*times, n_prefill, n_decode, 30)
    simulated_s = max(i.end_s for i in simulate_pipeline(*times, n_prefill, n_decode, 30))
    assert abs(closed.total_s - simulated_s) <= closed.tpot_s * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(times=pipelines(), n_prefill=st.integers(1, 4), n_decode=st.integers(1, 4))
def test_a_station_serves_one_micro_batch_at_a_time(times, n_prefill, n_decode):
    intervals = simulate_pipeline(*times, n_prefill, n_decode, 4)
    for station in {interval.station for interval in intervals}:
        busy = sorted((i.start_s, i.end_s) for i in intervals if i.station == station)
        assert all(end <= start + 1e-12 for (_, end), (start, _) in pairwise(busy))


def test_one_stage_decodes_micro_batches_in_turn():
    # Hand-made: one stage, 3 micro-batches of 2 s: a round is 6 s, 4 rounds follow the 5 s prefill.
    times = pipeline_times([5.0], [2.0], [], [], 1, 3, 5)
    assert (times.ttft_s, times.tpot_s, times.total_s, times.bubble_frac) == (5.0, 6.0, 29.0, 0.0)


def test_slow_link_is_the_bottleneck():
    # Stations 1, 4 (link), 1: two micro-batches make 6 + 4 in prefill, and rounds of max(6, 8).
    times = pipeline_times([1.0, 1.0], [1.0, 1.0], [4.0], [4.0], 2, 2, 3)
    assert (times.ttft_s, times.tpot_s, times.total_s) == (10.0, 8.0, 26.0)
