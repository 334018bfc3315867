"""The data-free penalty against a simulated quantizer."""

from __future__ import annotations

import numpy as np
import pytest

from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.sensitivity.noise import noise_table
from tests.tiny_llama import tiny_graph


def test_noise_of_a_uniform_quantizer() -> None:
    """Oracle: the mean squared error of rounding a million uniform numbers, times the units' share."""
    graph = tiny_graph()
    units = units_of(graph, "block")
    precisions = tuple(parse_precision(name) for name in ("int3_g64_asym", "int6_g64_asym", "bf16"))
    table = noise_table(graph, units, precisions)
    share = sum(op.parameters for op in graph.blocks[0].ops if op.kind == "linear") / graph.parameters
    x = np.random.default_rng(0).random(1_000_000)
    for column, bits in enumerate((3, 6)):
        levels = 2**bits - 1
        mse = float(np.mean((np.round(x * levels) / levels - x) ** 2))
        assert table.penalty[0, column] == pytest.approx(share * mse, rel=0.01)
    assert (table.penalty[:, 2] == 0).all()
    assert table.provenance == "analytic"


def test_activations_and_cache_count() -> None:
    graph = tiny_graph()
    precisions = tuple(parse_precision(p) for p in ("int8_row", "int8_row/int8_token/int8_head"))
    table = noise_table(graph, units_of(graph, "block"), precisions)
    assert table.penalty[:, 1] == pytest.approx(3 * table.penalty[:, 0])
