"""Unequal layers, and cache and activation formats as decisions, against every plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.formats.grammar import parse_precision
from dse.graph.units import units_of
from dse.partition.branch import Limits
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.pipeline import LayoutOptions, best_pipeline
from dse.partition.problem import Goal, Objective
from dse.sensitivity.noise import noise_table
from hardware_specs.spec import RuntimeProfile
from tests.factories import make_graph
from tests.layout_oracle import TinyInstance, least, tiny_instance

OBJECTIVES: tuple[Objective, ...] = ("time", "throughput", "tpot", "ttft")
FORMATS = ("bf16", "int8_row/int8_token/bf16", "int4_g64/bf16/int8_g64")


def unequal(
    seed: int, names: tuple[str, ...] = FORMATS, runtime: RuntimeProfile | None = None
) -> TinyInstance:
    """Layers of two templates in turn (as dense and wide ones are), with sensitivities of their own."""
    base = tiny_instance(seed)
    small, large = (
        make_graph(n_layers=3, ffn=512, n_kv_heads=2),
        make_graph(n_layers=3, ffn=4096, n_kv_heads=2),
    )
    blocks = (replace(small.blocks[0], layers=(0, 2)), replace(large.blocks[0], layers=(1,)))
    graph = replace(small, blocks=blocks)
    units, precisions = units_of(graph, "block"), tuple(parse_precision(name) for name in names)
    noise = noise_table(graph, units, precisions)
    factors = np.random.default_rng(seed).choice([0.5, 1.0, 3.0], len(units))
    table = replace(noise, penalty=noise.penalty * factors[:, None])
    inputs = ModelInputs(graph, units, precisions, table, runtime or base.inputs.runtime)
    return replace(base, inputs=inputs, max_penalty=float(table.penalty.max(axis=1).sum() * 0.6))


@pytest.mark.parametrize("seed", range(40, 48))
def test_unequal_layers_and_formats_equal_every_plan(seed: int) -> None:
    instance, objective = unequal(seed), OBJECTIVES[seed % 4]
    goal = Goal(objective=objective, max_penalty=instance.max_penalty)
    limits = Limits(time_s=None, gap_frac=1e-7)
    found = best_pipeline(
        instance.inputs, instance.cluster, instance.workload, goal, LayoutOptions(degrees=None), limits
    )
    best = least(instance, objective)
    assert (best is None) == (found.problem is None)
    if best is not None:
        assert found.value == pytest.approx(best, rel=1e-6)
        assert found.bound == pytest.approx(best, rel=3e-6)


def test_a_runtime_with_one_cache_format_gets_one() -> None:
    runtime = RuntimeProfile("one", "made up", kv_is_global=True)
    instance = unequal(41, ("bf16", "int4_g64", "bf16/bf16/int8_g64", "int4_g64/bf16/int8_g64"), runtime)
    options = LayoutOptions(degrees=None)
    limits = Limits(time_s=None, gap_frac=1e-6)
    goal = Goal(max_penalty=instance.max_penalty)
    found = best_pipeline(instance.inputs, instance.cluster, instance.workload, goal, options, limits)
    assert found.problem is not None
    assert found.solution.arrangement is not None
    assignment = found.problem.assignment_from(found.solution.arrangement.choices)
    assert len({precision.kv.name for _, precision in assignment.items}) == 1
    free = replace(instance.inputs, runtime=RuntimeProfile("any", "made up"))
    better = best_pipeline(free, instance.cluster, instance.workload, goal, options, limits)
    assert better.value <= found.value * (1 + 1e-6)
