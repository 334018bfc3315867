"""Placement for flow. Oracles: all placements of tiny instances, and the published instance."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from dse.partition.placement import NodeKind, flow_bound, flow_of, place, tiered


def best_flow(kinds: list[NodeKind], n_layers: int) -> float:
    """Largest flow by enumeration of every interval of every node."""
    options = []
    for kind in kinds:
        rows = [np.zeros(n_layers)]
        for k, rate in kind.rate_by_layers.items():
            for first in range(n_layers - k + 1):
                row = np.zeros(n_layers)
                row[first : first + k] = rate
                rows.append(row)
        options += [rows] * kind.count
    return max(float(np.sum(rows, axis=0).min()) for rows in itertools.product(*options))


@pytest.mark.parametrize("seed", range(12))
def test_tiny_instances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = [
        NodeKind(f"n{i}", count, {k: float(rng.integers(5, 60)) / k**0.7 for k in range(1, most + 1)})
        for i, (count, most) in enumerate(((2, 3), (1, 4)))
    ]
    expected = best_flow(kinds, 5)
    assert flow_bound(kinds, 5) >= expected * (1 - 1e-9)
    found = place(kinds, 5, time_limit_s=10)
    assert found.value == pytest.approx(expected, rel=1e-3, abs=2e-3)
    assert found.value <= expected * (1 + 1e-9)
    assert found.bound >= expected * (1 - 1e-9)
    if found.nodes:
        assert flow_of(kinds, 5, found.nodes) == found.value
        assert flow_of(kinds, 5, tiered(kinds, 5)) <= found.value


def test_too_few_nodes() -> None:
    assert place([NodeKind("a", 2, {1: 5.0, 2: 4.0})], 5).status == "infeasible"


def test_published_placement_is_proven(shared_data: Path) -> None:
    """LLaMA-30B on 6 T4 and 4 L4: 286.59 tokens/s, which a commercial solver proved in 3803 s."""
    data = json.loads((shared_data / "planning" / "helix_llama30b_6t4_4l4.json").read_text())
    kinds = [
        NodeKind(
            node["type"], node["count"], {int(k): rate for k, rate in node["tokens_per_s_by_layers"].items()}
        )
        for node in data["nodes"]
    ]
    found = place(kinds, data["n_layers"])
    assert found.value == pytest.approx(data["best_known_tokens_per_s"], abs=1e-4)
    assert found.status == "optimal"
    assert found.bound == pytest.approx(found.value, rel=1e-9)
    assert found.bound < data["bound_capped_tokens_per_s"]
