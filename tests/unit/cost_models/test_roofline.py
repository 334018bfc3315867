"""The smooth roofline against closed forms, its hard limit, four-number cases and dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.roofline import LEAST_S, roof_times_s, roofline, smooth_max
from tests.factories import make_profile


def test_ridge_point_is_two_to_the_one_over_p():
    # Closed form: where both roofs take 1 s, the p-norm of (1, 1) is 2^(1/p).
    for exponent in (0.76, 1.0, 2.0, 2.66, 10.9):
        times = roofline(100e12, 1e12, 100e12, 1e12, make_profile(exponent=exponent))
        assert times.time_s == pytest.approx(2 ** (1 / exponent), rel=1e-12)


def test_one_exponent_of_one_is_a_sum():
    times = roofline(50e12, 3e12, 100e12, 1e12, make_profile(exponent=1.0, floor_s=0.25))
    assert times.time_s == pytest.approx(0.25 + 0.5 + 3.0, rel=1e-12)


@given(compute=st.floats(1e-9, 10), memory=st.floats(1e-9, 10), exponent=st.floats(0.5, 20))
def test_between_the_maximum_and_its_bound(compute, memory, exponent):
    value = smooth_max(compute, memory, exponent)
    hard = max(compute, memory)
    assert hard * (1 - 1e-12) <= value <= hard * 2 ** (1 / exponent) * (1 + 1e-12)


def test_large_exponent_is_the_hard_maximum():
    # Oracle: numpy's maximum.
    generator = np.random.default_rng(1)
    first, second = generator.uniform(1e-7, 1e-2, (2, 1000))
    np.testing.assert_allclose(smooth_max(first, second, 1e6), np.maximum(first, second), rtol=1e-5)


def test_no_work_costs_the_floors():
    times = roofline(0.0, 0.0, 1e12, 1e12, make_profile(floor_s=3e-6), n_launches=2)
    assert times.time_s == pytest.approx(6e-6)
    assert times.compute_time_s == times.memory_time_s == 0


def test_four_numbers():
    # 2 Tflop at half of 4 Tflop/s is 1 s; 3 GB at 75 % of 4 GB/s is 1 s; p = 2 gives sqrt(2); floor 0.5 s.
    times = roofline(2e12, 3e9, 4e12, 4e9, make_profile(flop_eff=0.5, byte_eff=0.75, floor_s=0.5))
    assert times.time_s == pytest.approx(0.5 + 2**0.5)


def test_broadcasts():
    times = roofline(np.ones((3, 1)) * 1e12, np.ones(4) * 1e9, 1e12, 1e12, make_profile())
    assert np.shape(times.time_s) == (3, 4)


@given(
    flop=st.floats(0, 1e15),
    moved=st.floats(0, 1e12),
    more=st.floats(1, 10),
    exponent=st.floats(0.5, 12),
)
def test_monotone(flop, moved, more, exponent):
    profile = make_profile(flop_eff=0.7, byte_eff=0.8, floor_s=1e-6, exponent=exponent)
    base = roofline(flop, moved, 1e14, 1e12, profile).time_s
    slack = 1 - 1e-12
    assert roofline(flop * more, moved, 1e14, 1e12, profile).time_s >= base * slack
    assert roofline(flop, moved * more, 1e14, 1e12, profile).time_s >= base * slack
    assert roofline(flop, moved, 1e14 * more, 1e12, profile).time_s <= base / slack
    assert roofline(flop, moved, 1e14, 1e12 * more, profile).time_s <= base / slack


def _registry() -> Any:
    """A private registry with bytes and flop as dimensions (the default one has dimensionless bytes)."""
    pint = pytest.importorskip("pint")
    units = pint.UnitRegistry(None)
    units.define("second = [time]")
    units.define("byte = [data]")
    units.define("flop = [work]")
    return units


def test_dimensions(monkeypatch):
    units = _registry()
    monkeypatch.setattr("cost_models.roofline.LEAST_S", LEAST_S * units.second)
    compute, memory = roof_times_s(
        2e12 * units.flop, 3e9 * units.byte, 4e12 * units.flop / units.second, 1e9 * units.byte / units.second
    )
    result = smooth_max(compute, memory, 1.7)
    assert result.check("[time]")


def test_dimensions_catch_elements_for_bytes():
    pint = pytest.importorskip("pint")
    units = _registry()
    rate, bandwidth = 4e12 * units.flop / units.second, 1e9 * units.byte / units.second
    compute, memory = roof_times_s(2e12 * units.flop, 3e9 * units.flop, rate, bandwidth)
    with pytest.raises(pint.DimensionalityError):
        smooth_max(compute, memory, 1.7)
