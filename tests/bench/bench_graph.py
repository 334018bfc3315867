"""Size, loading and evaluation of large graphs, in processor time of this process.

Run by name: ``pytest tests/bench/bench_graph.py -m slow -s``. Tracing all models of the catalogue is timed
in ``tests/integration/test_trace_models.py``, likewise slow.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from dse.content import canonical_json
from dse.graph.serialise import graph_from_json, graph_to_json
from dse.graph.trace import trace_model
from studies.catalogue import resolve_model

pytestmark = pytest.mark.slow
SIZES = ("flop", "read_elements", "write_elements", "kv_read_elements", "live_elements")


def best_of(n_runs: int, function: Callable[[], object]) -> float:
    """Return the shortest of several runs in seconds of processor time."""
    times = []
    for _ in range(n_runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def test_a_graph_of_126_blocks_is_small_and_loads_at_once() -> None:
    text = canonical_json(graph_to_json(trace_model(resolve_model("llama-3.1-405b"))))
    load_s = best_of(5, lambda: graph_from_json(json.loads(text)))
    sys.stdout.write(f"\n405B: {len(text) / 1e3:.0f} kB, loads in {1e3 * load_s:.1f} ms\n")
    assert len(text) < 2e6
    assert load_s < 0.05


def test_eighty_blocks_at_a_thousand_workloads() -> None:
    """All sizes of the whole model, with repeats counted, at 1,000 points (batch, query, context)."""
    graph = trace_model(resolve_model("llama-3.1-70b"))
    batch, context = np.arange(1, 1001), 7 * np.arange(1, 1001)
    all_s = best_of(5, lambda: [graph.at(size, batch, 1, context) for size in SIZES])
    one_s = best_of(5, lambda: [graph.at(size, 1, 1, 7) for size in SIZES])
    sys.stdout.write(
        f"\n{graph.n_layers} blocks, {len(SIZES)} sizes: 1,000 points in {1e3 * all_s:.2f} ms, "
        f"{1000 * one_s / all_s:.0f} times faster than one by one\n"
    )
    assert all_s < 0.05
    assert 1000 * one_s / all_s > 20
