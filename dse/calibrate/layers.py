"""Fitting a device's matrix kernel to times of whole layers, where nobody measured its kernels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dse.calibrate.rows import Array
from dse.evaluate.build import CostModel
from dse.evaluate.cost_table import PHASES
from dse.evaluate.layer_times import LayerTime
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import units_of
from dse.graph.workload import Workload
from hardware_specs.kernels import Interval, KernelProfile
from hardware_specs.spec import HardwareSpec


@dataclass(frozen=True)
class LayerFit:
    """A matrix kernel fitted to layers.

    Attributes:
        profile: flop and byte efficiency fitted; floor and exponent are the prior's, which whole layers do
            not determine, and it has no tiles. What runs beside the products keeps its constants, so their
            errors (eager attention, copies of the cache) are in these two.
        ratios: (N,) measured over predicted time of each row, its batch left out of the fit; the interval of
            ``profile`` spans them.
    """

    profile: KernelProfile
    ratios: Array


def layer_times_s(graph: OperatorGraph, spec: HardwareSpec, precision: Precision, at: LayerTime) -> float:
    """Return the predicted time of one layer at a measurement's sizes."""
    model = CostModel(graph, units_of(graph, "block"), (precision,), {spec.name: spec})
    prompt = int(at.tokens) if at.phase == "prefill" else int(at.tokens) - 1
    table = model.table(Workload(int(at.batch), prompt, 1), (int(at.batch),))
    p = PHASES.index(at.phase)
    return float(table.unit_time_s[p, 0, 0, 0, 0] + table.layer_time_s[p, 0, 0, 0])


def fit_layers(
    graph: OperatorGraph, spec: HardwareSpec, precision: Precision, rows: Sequence[LayerTime]
) -> LayerFit:
    """Fit the efficiencies of ``gemm`` to measured layers, least squares of the logarithm of the ratio.

    The decode's tokens are its cached positions with the new one. The interval comes from fits that leave one
    batch size out each.
    """
    prior = spec.kernel("gemm")
    start = KernelProfile(
        "gemm",
        prior.flop_eff_frac,
        prior.byte_eff_frac,
        prior.floor_s,
        prior.exponent,
        "calibrated",
        prior.source,
    )
    ratios = np.ones(len(rows))
    for batch in {row.batch for row in rows}:
        kept = _fitted(graph, spec, precision, [row for row in rows if row.batch != batch], start)
        left = _with_gemm(spec, kept)
        for index, row in enumerate(rows):
            if row.batch == batch:
                ratios[index] = row.seconds / layer_times_s(graph, left, precision, row)
    interval = Interval(float(ratios.min()), float(ratios.max()))
    return LayerFit(replace(_fitted(graph, spec, precision, rows, start), interval=interval), ratios)


def _fitted(
    graph: OperatorGraph,
    spec: HardwareSpec,
    precision: Precision,
    rows: Sequence[LayerTime],
    start: KernelProfile,
) -> KernelProfile:
    from scipy.optimize import least_squares

    def profile_of(logs: Array) -> KernelProfile:
        flop, byte = np.exp(logs)
        return replace(start, flop_eff_frac=float(flop), byte_eff_frac=float(byte))

    def errors(logs: Array) -> Array:
        device = _with_gemm(spec, profile_of(logs))
        found = [layer_times_s(graph, device, precision, row) / row.seconds for row in rows]
        return np.log(np.array(found))

    origin = np.log([start.flop_eff_frac, start.byte_eff_frac])
    return profile_of(least_squares(errors, origin, bounds=(np.log(0.01), 0.0)).x)


def _with_gemm(spec: HardwareSpec, profile: KernelProfile) -> HardwareSpec:
    kernels = tuple(profile if entry.name == profile.name else entry for entry in spec.kernels)
    return replace(spec, kernels=kernels)
