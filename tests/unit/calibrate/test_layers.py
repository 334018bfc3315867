"""The matrix kernels of T4 and V100 against the published layer times that they are fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.calibrate.layers import fit_layers, layer_times_s
from dse.evaluate.layer_times import LayerTime, read_layer_times
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from hardware_specs.loader import load_device
from studies.catalogue import resolve_model
from tests.factories import make_graph, make_spec

FP16 = parse_precision("fp16/fp16/fp16")


def test_recovers_the_kernel_that_made_the_times():
    """Oracle: layer times made with known efficiencies."""
    graph, spec = make_graph(n_layers=1, hidden=1024, ffn=4096), make_spec(native={"fp16": 5e13})
    truth = replace(spec.kernel("gemm"), flop_eff_frac=0.31, byte_eff_frac=0.62, tiling=None, depth=None)
    kernels = tuple(truth if entry.name == "gemm" else entry for entry in spec.kernels)
    device = replace(spec, kernels=kernels)
    rows = [
        LayerTime("toy", FP16.name, phase, batch, tokens, 1.0)
        for phase, tokens in (("prefill", 512.0), ("decode", 513.0))
        for batch in (2.0, 4.0, 8.0)
    ]
    rows = [replace(row, seconds=layer_times_s(graph, device, FP16, row)) for row in rows]
    found = fit_layers(graph, spec, FP16, rows)
    assert found.profile.flop_eff_frac == pytest.approx(0.31, rel=1e-3)
    assert found.profile.byte_eff_frac == pytest.approx(0.62, rel=1e-3)
    np.testing.assert_allclose(found.ratios, 1.0, rtol=1e-3)


@pytest.mark.parametrize(("gpu", "name"), [("T4", "nvidia_t4"), ("V100", "nvidia_v100_sxm2_32gb")])
def test_shipped_constants_are_the_fit(gpu: str, name: str, shared_data: Path):
    times = read_layer_times(shared_data / "planning" / "opt30b_layer_times.json")
    rows = [
        replace(row, tokens=row.tokens + (row.phase == "decode"))
        for row in times
        if row.device == gpu and row.precision == FP16.name
    ]
    graph, spec = load_graph(resolve_model("opt-30b")), load_device(name)
    shipped, found = spec.kernel("gemm"), fit_layers(graph, spec, FP16, rows)
    assert shipped.provenance == "calibrated"
    for part in ("flop_eff_frac", "byte_eff_frac"):
        assert getattr(shipped, part) == pytest.approx(getattr(found.profile, part), rel=1e-3)
    low, high = shipped.interval.low, shipped.interval.high
    assert (low, high) == pytest.approx((found.ratios.min(), found.ratios.max()), rel=2e-3)
    ratios = [row.seconds / layer_times_s(graph, spec, FP16, row) for row in rows]
    assert min(ratios) > 0.9
    assert max(ratios) < 1.14
