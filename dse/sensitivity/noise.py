"""A penalty that needs no weights: the noise of a uniform quantizer, weighted by parameters."""

from __future__ import annotations

import numpy as np

from dse.content import content_hash
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.sensitivity.table import SensitivityTable

METRIC = "quantizer_noise"


def noise_table(
    graph: OperatorGraph, units: tuple[Unit, ...], precisions: tuple[Precision, ...]
) -> SensitivityTable:
    """Return the expected relative noise power that each choice adds, for architectures without weights.

    A uniform quantizer of b bits over a fixed range has a step of range / (2^b - 1) and a noise power of
    step^2 / 12 (Bennett 1948); relative to the range that is 1 / (12 (2^b - 1)^2). It is weighted by the
    share of the model's parameters. It knows nothing of real weights or activations: every unit of equal
    size is equally sensitive, so it ranks widths, not units. Activations and KV cache count like weights of
    their width.
    """
    sizes = np.array([_parameters(graph, unit) for unit in units], dtype=np.float64)
    noise = np.array([_noise(precision) for precision in precisions])
    return SensitivityTable(
        metric=METRIC,
        unit="arbitrary",
        units=tuple(unit.name for unit in units),
        precisions=precisions,
        penalty=np.outer(sizes / graph.parameters, noise),
        model=graph.model,
        calibration_hash=content_hash([METRIC, graph.config_hash]),
        seed=0,
        n_tokens=0,
        provenance="analytic",
    )


def _parameters(graph: OperatorGraph, unit: Unit) -> int:
    ops = {op.name: op for op in graph.block_of_layer[unit.layer].ops}
    return sum(ops[name].parameters for name in unit.ops)


def _noise(precision: Precision) -> float:
    formats = (precision.weights, precision.activations, precision.kv)
    return sum(0.0 if fmt.is_float else 1.0 / (12.0 * (2**fmt.bits - 1) ** 2) for fmt in formats)
