"""Recurrent states in the memory of plans. Oracle: the closed form of Mamba 2's state and convolution."""

from __future__ import annotations

import pytest

from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_document import cost_document
from dse.evaluate.plan_cost import predict
from dse.formats.grammar import parse_precision
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.plan import Assignment, Plan, Stage
from tests.factories import make_cluster, make_spec
from tests.small_models import DECODERS

BF16 = parse_precision("bf16")
LAYER_BYTES = 2 * ((12 * 8 + 2 * 2 * 16) * 4 + 12 * 8 * 16)
"""12 heads of 8 with a state of 16 each; 4 positions of the convolved heads and of B and C in 2 groups
(arXiv 2405.21060, section 7)."""


@pytest.mark.parametrize("output_tokens", [2, 200])
def test_states_are_held_by_the_stage_that_has_their_layers(output_tokens: int) -> None:
    graph = trace_model(ModelSource("mamba-2", DECODERS["mamba-2"]))
    spec, workload, units = make_spec(), Workload(4, 16, output_tokens), units_of(graph, "block")
    table = build_cost_table(graph, units, (BF16,), {"toy": spec}, workload, (4,))
    stages = (Stage(("n_toy/0",), (0, 1)), Stage(("n_toy/1",), (1, 3)))
    plan = Plan("m", "c", Assignment.uniform(tuple(u.name for u in units), BF16), stages, 4, 4)
    held = predict(plan, table, make_cluster({"toy": spec}, {"toy": 2}), workload).memory_bytes
    assert [held[f"n_toy/{i}"].kv for i in (0, 1)] == [4 * LAYER_BYTES, 4 * 2 * LAYER_BYTES]
    document = cost_document(graph, spec, BF16, workload)
    assert document["memory_bytes"]["kv"] == 4 * 3 * LAYER_BYTES
    assert 2 * graph.cache_elements(4, 999) == 4 * 3 * LAYER_BYTES
