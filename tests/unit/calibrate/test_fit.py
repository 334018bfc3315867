"""Fits against constants that are known because the measurements were made from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.calibrate.calibrate import calibrate, overlay_text
from dse.calibrate.constants import MAX_EFF, constants_of, values_of, with_values
from dse.calibrate.fit import fit_profile, interval_of, log_ratios, predicted_s
from dse.calibrate.rows import HELD_OUT_TENTHS, Measured, matmul_rows, shape_tenths
from dse.calibrate.tables import SERIES
from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from hardware_specs.kernels import Depth, Interval, KernelProfile, Tiling
from hardware_specs.loader import load_device

H200 = load_device("nvidia_h200_sxm")
TRUE = KernelProfile(
    *("gemm", 0.6, 0.7, 9e-6, 2.0, "calibrated", "made up"),
    activation_eff_frac=0.5,
    tiling=Tiling(0.3, 1.1, 0.2),
    depth=Depth(4e-6, 1.2),
)


def measurements(n_rows: int, noise: float, seed: int = 0, profile: KernelProfile = TRUE) -> Measured:
    generator = np.random.default_rng(seed)
    m = 2.0 ** generator.integers(0, 14, n_rows)
    n, k = 2.0 ** generator.integers(10, 15, (2, n_rows))
    rows = matmul_rows("made up", H200, parse_precision("bf16"), m, n, k, np.ones(n_rows))
    seconds = predicted_s(rows.work, H200, profile) * np.exp(noise * generator.standard_normal(n_rows))
    return replace(rows, seconds=seconds)


def test_many_measurements_recover_the_constants():
    fit = fit_profile([(H200, measurements(6000, 0.01))], H200.kernel("gemm"))
    assert fit.profile.flop_eff_frac == pytest.approx(0.6, rel=0.02)
    assert fit.profile.byte_eff_frac == pytest.approx(0.7, rel=0.02)
    assert fit.profile.floor_s + 4e-6 == pytest.approx(13e-6, rel=0.1)
    assert np.median(np.abs(log_ratios(H200, measurements(500, 0.0, 1), fit.profile))) < 0.01


def test_odd_kernels_do_not_decide():
    # A tenth of the rows takes a fallback that is five times slower.
    rows = measurements(1000, 0.02)
    seconds = rows.seconds.copy()
    seconds[::10] *= 5
    fit = fit_profile([(H200, replace(rows, seconds=seconds))], H200.kernel("gemm"))
    assert np.median(np.abs(log_ratios(H200, measurements(500, 0.0, 1), fit.profile))) < 0.02


def test_few_measurements_update_the_prior():
    prior = H200.kernel("gemm")
    unseen = measurements(500, 0.0, 1)
    errors = [np.median(np.abs(log_ratios(H200, unseen, prior)))]
    for n_rows in (12, 100, 1000):
        fits = [fit_profile([(H200, measurements(n_rows, 0.05, seed))], prior) for seed in range(5)]
        errors.append(np.mean([np.median(np.abs(log_ratios(H200, unseen, fit.profile))) for fit in fits]))
    assert errors[3] <= errors[2] * 1.2 < errors[1] * 1.2 < errors[0]


def test_what_the_data_do_not_say_stays_at_the_prior():
    # One row each: all bound by the weights' bytes, so the arithmetic is unknown.
    generator = np.random.default_rng(0)
    n, k = 2.0 ** generator.integers(11, 15, (2, 60))
    rows = matmul_rows("made up", H200, parse_precision("bf16"), np.ones(60), n, k, np.ones(60))
    rows = replace(rows, seconds=predicted_s(rows.work, H200, TRUE))
    prior = H200.kernel("gemm")
    fit = fit_profile([(H200, rows)], prior)
    assert "flop_eff_frac" in fit.undetermined
    assert fit.profile.flop_eff_frac == pytest.approx(prior.flop_eff_frac, rel=0.15)
    assert "floor_s" in fit.determined
    assert abs(fit.profile.byte_eff_frac - 0.7) < 0.5 * abs(prior.byte_eff_frac - 0.7)


@pytest.mark.parametrize("n_rows", [1, 5])
def test_too_few_measurements_are_refused(n_rows):
    with pytest.raises(ConfigError, match="at least 6 measurements"):
        calibrate(H200, "gemm", [measurements(n_rows, 0.0)], "test")


def test_one_shape_is_refused():
    rows = matmul_rows(
        "x", H200, parse_precision("bf16"), *np.full((3, 9), 1024.0), np.linspace(1e-5, 1e-4, 9)
    )
    with pytest.raises(ConfigError, match="at least 3 different shapes"):
        calibrate(H200, "gemm", [rows], "test")


def test_overlay_is_a_device(tmp_path):
    found = calibrate(H200, "gemm", [measurements(200, 0.05)], "bench of 24 November")
    file = tmp_path / "mine.yaml"
    file.write_text(overlay_text(H200, "mine", [found], "bench of 24 November"))
    spec = load_device(file)
    assert spec.name == "mine"
    assert spec.kernel("gemm").provenance == "calibrated"
    assert spec.kernel("gemm").source == "bench of 24 November"
    assert spec.kernel("gemm").flop_eff_frac == pytest.approx(found.profile.flop_eff_frac, rel=1e-3)
    assert spec.kernel("gemm_fp8") == H200.kernel("gemm_fp8")
    assert spec.main_memory == H200.main_memory
    assert found.after < found.before


def test_intervals_hold_what_they_say():
    """Coverage: of rows that the fit never saw, an 80 % interval must hold 70 to 90 %."""
    for noise in (0.03, 0.15):
        found = calibrate(H200, "gemm", [measurements(300, noise)], "test")
        interval = found.profile.interval
        assert interval is not None
        ratios = np.exp(log_ratios(H200, measurements(2000, noise, 5), found.profile))
        assert 0.7 < ((ratios > interval.low) & (ratios < interval.high)).mean() < 0.9


def test_interval_is_the_tenths():
    # Oracle: numpy's quantiles of 0..10.
    assert interval_of(np.log(np.linspace(1, 11, 11))) == Interval(pytest.approx(2), pytest.approx(10))


def test_constants_round_trip():
    constants = constants_of(H200, "gemm")
    values = values_of(TRUE, constants)
    assert with_values(TRUE, constants, values) == TRUE


def test_no_fit_passes_the_physical_roof():
    for name in ("gemm", "gemm_fp8", "gemm_weight_only", "attention_prefill", "attention_decode"):
        for constant in constants_of(H200, name):
            if constant.path.endswith("eff_frac") and not constant.path.startswith("exp"):
                assert constant.high <= MAX_EFF


def test_held_out_shapes_are_fixed():
    """The split is part of every published number: a change here makes old ones incomparable."""
    n, k = (grid.ravel() for grid in np.meshgrid(2.0 ** np.arange(7, 17), 2.0 ** np.arange(7, 17)))
    held = shape_tenths(n, k) < HELD_OUT_TENTHS
    assert 0.15 < held.mean() < 0.45
    assert int("".join("1" if value else "0" for value in held[:32]), 2) == HELD_BITS


HELD_BITS = 106955842


def test_never_fitted_devices_are_marked():
    for series in SERIES:
        never = series.device in ("nvidia_h200_sxm", "nvidia_b200_sxm", "intel_arc_b60")
        assert (series.role == "never") == never
