"""Causal pairs against enumeration; attention times against four-number cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cost_models import attention
from cost_models.pricing import price
from cost_models.work import Work
from hardware_specs.kernels import QueryTiles
from tests.factories import make_profile, make_spec


def enumerated_pairs(query: int, context: int, window: int | None, tile: int) -> int:
    """Count keys per row tile one by one: the prefix and all whole tiles up to its own, inside the window."""
    pairs = 0
    for start in range(0, query, tile):
        last_key = context - query + start + tile
        keys = last_key if window is None else min(last_key, window + tile - 1)
        pairs += tile * keys
    return pairs


@pytest.mark.parametrize("tile", [1, 4, 128])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize(("query", "context"), [(1, 1), (1, 50), (9, 9), (12, 40), (130, 300)])
def test_causal_pairs_equal_enumeration(query, context, window, tile):
    pairs = attention.causal_pairs(query, context, window, tile)
    assert pairs == enumerated_pairs(query, context, window, tile)


def test_causal_pairs_closed_form():
    query, context = np.array([1, 8, 512]), np.array([100, 8, 700])
    expected = query * (context - query) + query * (query + 1) / 2
    np.testing.assert_array_equal(attention.causal_pairs(query, context), expected)


def test_exact_window_counts_the_mask():
    # Oracle: the boolean mask itself.
    query, context, window = 20, 33, 6
    rows = np.arange(context - query, context)[:, None]
    keys = np.arange(context)[None, :]
    mask = (keys <= rows) & (keys > rows - window)
    assert attention.causal_pairs(query, context, window) == mask.sum()


def test_prefill_four_numbers():
    # 1e12 flop at 80 % of 100 Tflop/s = 12.5 ms; 2.4e9 exponentials at 16 * 100 * 1.5e9 per s = 1 ms;
    # 0.8 GB at 80 % of 1 TB/s = 1 ms; floor 2 us.
    work = Work("attention_prefill", "attention_prefill", "bf16", 1e12, 2.4e9, 0.5e9, 0.3e9)
    assert price(work, make_spec()).time_s == pytest.approx(12.5e-3 + 1e-3 + 1e-3 + 2e-6)


@pytest.mark.parametrize(
    "spec", [make_spec(n_cores=None), make_spec(clock_hz=None), make_spec(device_class="npu")]
)
def test_exponentials_are_left_out_where_their_rate_is_unknown(spec):
    work = Work("attention_prefill", "attention_prefill", "bf16", 1e12, 2.4e9, 0.5e9, 0.3e9)
    assert price(work, spec).time_s == pytest.approx(12.5e-3 + 1e-3 + 2e-6)


def test_decode_four_numbers():
    # Bytes: 0.8 GB at 80 % of 1 TB/s = 1 ms; 63 * 64 positions = 6 doublings; 200 blocks on 100 cores are 2
    # waves, joined with the bytes by p = 2.
    work = Work(
        "attention_decode", "attention_decode", "bf16", read_bytes=0.8e9, parallel=200, context=63 * 64
    )
    expected = 2e-6 + 6 * attention.DECODE_LOG_S + np.hypot(1e-3, 2 * attention.DECODE_WAVE_S)
    assert price(work, make_spec()).time_s == pytest.approx(expected)
    assert price(work, make_spec(device_class="npu")).time_s == pytest.approx(1e-3 + 2e-6)


def test_partly_filled_waves_of_decode():
    # 150 blocks on 100 cores are 1.5 waves, of which a whole second one is paid for.
    whole = replace(make_profile("attention_decode"), wave_frac=1.0, wave_s=1e-3, context_log_s=1e-9)
    work = Work("attention_decode", "attention_decode", "bf16", parallel=150, context=0)
    assert price(work, make_spec(profiles=(whole,))).time_s == pytest.approx(2e-3)
    half = replace(whole, wave_frac=0.5)
    assert price(work, make_spec(profiles=(half,))).time_s == pytest.approx(3**0.5 * 1e-3)


def test_prefill_pays_for_whole_tiles():
    """Oracle: pairs of whole tiles counted one by one; enough of them, so that none is waited for."""
    tiles = QueryTiles(rows=128, least_rows=64, longest_frac=0.0, tile_s=1e-6)
    profile = replace(make_profile("attention_prefill"), query_tiles=tiles)
    spec = make_spec(profiles=(profile,), clock_hz=None)
    for query, rows, n_tiles in ((300, 128, 3), (40, 64, 1), (64, 64, 1), (100, 128, 1)):
        pairs, padded = (enumerated_pairs(query, 700, None, tile) for tile in (1, rows))
        work = Work(
            *("attention_prefill", "attention_prefill", "bf16", 1e9 * pairs, 1.0 * pairs),
            rows=query,
            parallel=200,
            context=700,
        )
        expected = 1e9 * padded / 100e12 + 1e-6 * n_tiles * 200 / 100
        assert price(work, spec).time_s == pytest.approx(expected)


def test_one_tile_is_waited_for():
    # One head of 128 queries on 100 cores takes 100 times as long as spread evenly.
    tiles = QueryTiles(rows=128, least_rows=128, longest_frac=1.0)
    profile = replace(make_profile("attention_prefill", exponent=20.0), query_tiles=tiles)
    spec = make_spec(profiles=(profile,), clock_hz=None)
    pairs = 128 * 129 / 2
    work = Work("attention_prefill", "attention_prefill", "bf16", 1e6 * pairs, pairs, rows=128, context=128)
    assert price(work, spec).time_s == pytest.approx(100 * 1e6 * 128 * 128 / 100e12)


def test_decode_is_monotone_in_context():
    context = np.arange(1, 5000, 37)
    work = Work(
        "attention_decode", "attention_decode", "bf16", 4e5 * context, 0, 2e4 * context, 0, 1, 64, context
    )
    times = price(work, make_spec(profiles=(make_profile("attention_decode", exponent=1.7),))).time_s
    assert (np.diff(times) > 0).all()
