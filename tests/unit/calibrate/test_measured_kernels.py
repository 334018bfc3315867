"""Shipped constants against a frozen sample of measured kernels (tests/data/kernel_times, see its NOTICE).

Rows of the calibration devices are of shapes that no fit has seen; H200, B200 and B60 were never fitted. The
bounds are the project's own bars plus what a sample of 60 rows may be off by; ``dse bench fidelity`` scores
thousands of rows.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cost_models.pricing import price
from dse.calibrate.constants import LEAST_ROOF_FRAC
from dse.calibrate.fidelity import naive_s
from dse.calibrate.fit import log_ratios, predicted_s
from dse.calibrate.profile_csv import read_profile
from dse.calibrate.rows import matmul_rows
from dse.errors import ConfigError, UnsupportedOnDevice
from dse.formats.grammar import parse_precision
from hardware_specs.loader import load_device

FILE = Path(__file__).parents[2] / "data" / "kernel_times" / "kernels.csv"
A100, H100 = "nvidia_a100_sxm_80gb", "nvidia_h100_sxm"
L40S, RTX = "nvidia_l40s", "nvidia_rtx_pro_6000_server"
FP8 = "fp8_e4m3/fp8_e4m3/bf16"

BOUNDS = {
    (A100, "matmul", "bf16"): 0.065,
    (H100, "matmul", "bf16"): 0.05,
    (L40S, "matmul", "bf16"): 0.13,
    (RTX, "matmul", "bf16"): 0.07,
    ("nvidia_h200_sxm", "matmul", "bf16"): 0.10,
    ("nvidia_b200_sxm", "matmul", "bf16"): 0.12,
    ("intel_arc_b60", "matmul", "bf16"): 0.20,
    (H100, "matmul", FP8): 0.08,
    (L40S, "matmul", FP8): 0.10,
    (RTX, "matmul", FP8): 0.10,
    ("nvidia_h200_sxm", "matmul", FP8): 0.10,
    ("nvidia_b200_sxm", "matmul", FP8): 0.15,
    (A100, "matmul", "int4_row"): 0.09,
    (A100, "matmul", "int8_row"): 0.09,
    (A100, "matmul", "int8_row/int8_token/bf16"): 0.09,
    (A100, "attention_prefill", "bf16"): 0.07,
    (H100, "attention_prefill", "bf16"): 0.07,
    (L40S, "attention_prefill", "bf16"): 0.13,
    (RTX, "attention_prefill", "bf16"): 0.13,
    ("nvidia_h200_sxm", "attention_prefill", "bf16"): 0.12,
    (A100, "attention_decode", "bf16"): 0.11,
    (H100, "attention_decode", "bf16"): 0.14,
    ("nvidia_h200_sxm", "attention_decode", "bf16"): 0.20,
}
SAMPLE_FACTOR = 1.5
"""How far the median error of 60 rows may lie above that of all."""

CALIBRATED = (A100, H100, L40S, RTX)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """(device, kind, precision) -> measurements."""
    folder = tmp_path_factory.mktemp("kernels")
    lines = FILE.read_text().splitlines()
    found = {}
    for device in {line.split(",")[0] for line in lines[1:]}:
        file = folder / f"{device}.csv"
        file.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.startswith(f"{device},"))]))
        for part in read_profile(file, load_device(device)):
            kind, precision = part.label.split(" ")
            found[device, kind, precision] = part
    return found


@pytest.mark.parametrize(("device", "kind", "precision"), BOUNDS)
def test_median_error(samples, device, kind, precision):
    part, spec = samples[device, kind, precision], load_device(device)
    if kind == "attention_decode":
        part = part.where(part.seconds >= LEAST_ROOF_FRAC * naive_s(part.work, spec))
    error = np.abs(np.expm1(-log_ratios(spec, part, spec.kernel(part.work.profile))))
    naive = np.abs(naive_s(part.work, spec) / part.seconds - 1)
    assert np.median(error) < SAMPLE_FACTOR * BOUNDS[device, kind, precision]
    assert np.median(error) < np.median(naive)


def test_coverage_of_intervals(samples):
    """An 80 % interval must hold 70 to 90 % of rows that no fit has seen: of all products and attention."""
    inside = []
    for (device, kind, _), part in samples.items():
        if device not in CALIBRATED:
            continue
        spec = load_device(device)
        interval = spec.kernel(part.work.profile).interval
        assert interval is not None
        ratios = np.exp(log_ratios(spec, part, spec.kernel(part.work.profile)))
        if kind == "attention_decode":
            ratios = ratios[part.seconds >= LEAST_ROOF_FRAC * naive_s(part.work, spec)]
        inside.append(((ratios > interval.low) & (ratios < interval.high)).mean())
    assert 0.7 < np.mean(inside) < 0.9


def test_never_below_the_physical_roof(samples):
    for (device, kind, _), part in samples.items():
        spec = load_device(device)
        predicted = predicted_s(part.work, spec, spec.kernel(part.work.profile))
        assert (predicted >= LEAST_ROOF_FRAC * naive_s(part.work, spec) * (1 - 1e-3)).all(), (device, kind)


def test_sign_of_low_bit_gains(samples):
    """Which of the low-bit and the bf16 kernel is faster, where measured times differ by more than 5 %."""
    file = FILE.with_name("pairs.csv")
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    right: dict[str, list[bool]] = {}
    for row in rows:
        spec = load_device(row["device"])
        m, n, k = (np.array([float(row[name])]) for name in ("m", "n", "k"))
        times = [
            matmul_rows("x", spec, parse_precision(name), m, n, k, np.ones(1))
            for name in (row["precision"], "bf16")
        ]
        low, wide = (predicted_s(part.work, spec, spec.kernel(part.work.profile))[0] for part in times)
        group = "calibrated" if row["device"] in CALIBRATED else "never"
        right.setdefault(group, []).append((low < wide) == (float(row["ratio"]) < 1))
    assert np.mean(right["calibrated"]) > 0.90
    assert np.mean(right["never"]) > 0.85


@pytest.mark.parametrize("device", [*CALIBRATED, "nvidia_h200_sxm", "intel_arc_b60", "rockchip_rk3588_npu"])
@pytest.mark.parametrize("precision", ["bf16", "int4_row", FP8, "int8_row/int8_token/bf16"])
def test_monotone_in_every_size(device, precision):
    """Time never falls when m, n or k grow, tile by tile."""
    spec = load_device(device)
    grid = np.array([1, 7, 16, 63, 64, 65, 127, 128, 129, 300, 1000, 4096, 4097, 20000], dtype=np.float64)
    m, n, k = (part.ravel() for part in np.meshgrid(grid, grid, grid, indexing="ij"))
    try:
        rows = matmul_rows("x", spec, parse_precision(precision), m, n, k, np.ones(len(m)))
    except UnsupportedOnDevice:
        pytest.skip("no kernel")
    time_s = np.asarray(price(rows.work, spec).time_s).reshape(3 * (len(grid),))
    for axis in range(3):
        assert (np.diff(time_s, axis=axis) >= -1e-12).all()


def test_csv_errors_name_the_line(tmp_path):
    file = tmp_path / "p.csv"
    spec = load_device(H100)
    for text, message in (
        ("kind,precision\nmatmul,bf16\n", "no column 'seconds'"),
        ("kind,precision,seconds\nmatmull,bf16,1\n", "line 2"),
        ("kind,precision,m,n,k,seconds\nmatmul,bf16,1,2,x,1\n", "'k' must be a positive number"),
        ("kind,precision,seconds\n", "no measurements"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_profile(file, spec)
