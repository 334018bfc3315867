"""Filling a cost table against pricing its entries one by one, as a ratio measured in one run.

Run by name: ``pytest tests/bench/bench_cost_table.py -m slow -s``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from cost_models.pricing import price
from dse.evaluate.build import build_cost_table
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from tests.factories import make_graph, make_spec

PRECISIONS = tuple(
    parse_precision(name)
    for name in (
        "bf16",
        "int3_g64",
        "int4_g64",
        "int4_g128",
        "int8_row",
        "int4_g64/bf16/int8_head",
        "int8_row/bf16/int8_head",
        "int8_row/int8_token/bf16",
    )
)
MICRO_BATCHES = (1, 2, 4, 8)
WORKLOAD = Workload(32, 512, 100)


def best_of(n_runs: int, function: Callable[[], object]) -> float:
    """Return the shortest of several runs in seconds."""
    times_s = []
    for _ in range(n_runs):
        start_s = time.perf_counter()
        function()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["block", "linear"])
def test_table_of_80_layers(granularity, capsys):
    graph = make_graph(80, 8192, 28672, 64, 8, 128256)
    specs = {name: make_spec(name) for name in ("a", "b", "c")}
    units = units_of(graph, granularity)
    ops = [op for op in graph.blocks[0].ops if op.kind == "linear"]

    def one_layer_one_by_one() -> None:
        for spec in specs.values():
            for precision in PRECISIONS:
                for size in MICRO_BATCHES:
                    for op in ops:
                        price(lower(op, precision, spec, "prefill", size, 512.0, 512.0), spec)
                        price(lower(op, precision, spec, "decode", size, 1.0, 562.0), spec)

    table_s = best_of(5, lambda: build_cost_table(graph, units, PRECISIONS, specs, WORKLOAD, MICRO_BATCHES))
    layer_s = best_of(2, one_layer_one_by_one)
    ratio = table_s / (80 * layer_s)
    with capsys.disabled():
        sys.stdout.write(f"{granularity}: {table_s * 1e3:.1f} ms, {1 / ratio:.0f} times one by one\n")
    assert ratio < 1 / 50
