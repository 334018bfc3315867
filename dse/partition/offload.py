"""Layers whose weights lie in host memory or on an SSD, as further choices of the planner.

An offloaded layer keeps its cache on the device and streams its weights in every pass, beside the computing
of its neighbours: with two buffers a pass takes the longer of computing and fetching (FlexGen, arXiv
2303.06865, section 4.1). Each device of a group fetches its part over its own host link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dse.evaluate.cost_table import Array, CostTable
from dse.evaluate.offload import N_BUFFERS, OffloadLevel, parse_offload
from dse.partition.from_table import TableProblem
from hardware_specs.spec import Cluster


def buffer_sizes_bytes(built: TableProblem, table: CostTable) -> tuple[float, ...]:
    """Return the sizes of one buffer that make a difference: the largest layer of every choice."""
    weights = layer_weight_bytes(built, table)
    return tuple(sorted({float(size) for size in weights.max(axis=0) if size > 0}))


def with_offload(
    built: TableProblem, table: CostTable, cluster: Cluster, ways: Sequence[str], buffer_bytes: float
) -> TableProblem:
    """Return the problem with an offloaded variant of every choice whose layer fits a buffer.

    Args:
        built: without offload.
        table: what it was built from.
        cluster: its host links, and its host memories where they are stated: choices that would not fit
            there with all layers are left out.
        ways: one level, as ``parse_offload`` reads it ("host", "ssd:3.5GB/s").
        buffer_bytes: of one of the buffers that every group sets aside.

    Raises:
        ConfigError: a device without a host link, where no bandwidth is given.
    """
    problem = built.problem
    weights = layer_weight_bytes(built, table)
    levels: dict[str, OffloadLevel] = {}
    for group in built.groups:
        offload = parse_offload(cluster.specs[group.device], ways)
        assert offload is not None
        levels[group.device] = offload.levels[0]
    degrees = np.array([group.degree for group in built.groups])[:, None, None]
    rate = np.array([levels[group.device].bandwidth_bytes_per_s for group in built.groups])[:, None, None]
    latency = np.array([levels[group.device].latency_s for group in built.groups])[:, None, None]
    fetch_s = latency + weights / (degrees * rate)
    fits = (weights > 0) & (weights <= buffer_bytes)
    held = np.array([_host_bytes(cluster, group.node, levels[group.device].name) for group in built.groups])
    able = problem.allowed & fits & (weights.sum(axis=0) <= held[:, None, None])
    energy = problem.energy
    if energy is not None:
        j_per_bit = np.array([levels[group.device].energy_j_per_bit for group in built.groups])
        fetch_j = 8.0 * j_per_bit[:, None, None] * weights
        energy = replace(
            energy,
            prefill_j=_both(energy.prefill_j, energy.prefill_j + fetch_j),
            decode_j=_both(energy.decode_j, energy.decode_j + fetch_j),
        )
    changed = replace(
        problem,
        prefill_s=_both(problem.prefill_s, np.maximum(problem.prefill_s, fetch_s)),
        decode_s=_both(problem.decode_s, np.maximum(problem.decode_s, fetch_s)),
        allowed=np.concatenate([problem.allowed, able], axis=2),
        memory_bytes=_both(problem.memory_bytes, problem.memory_bytes - weights),
        penalty=_both(problem.penalty, problem.penalty),
        capacity_bytes=problem.capacity_bytes - N_BUFFERS * buffer_bytes,
        energy=energy,
    )
    return replace(built, problem=changed, offloaded_from=problem.memory_bytes.shape[1])


def layer_weight_bytes(built: TableProblem, table: CostTable) -> Array:
    """Return (L, K) stored weights of every choice, without norms and cache; 0 for choices that pad."""
    row = {unit.name: u for u, unit in enumerate(table.units)}
    found = np.zeros((len(built.units), built.width))
    for layer, (units, combinations) in enumerate(zip(built.units, built.combinations, strict=True)):
        rows = [row[unit] for unit in units]
        for choice, picks in enumerate(combinations):
            found[layer, choice] = table.unit_weight_bytes[rows, list(picks)].sum()
    return np.tile(found, built.problem.memory_bytes.shape[1] // built.width)


def _both(resident: Array, offloaded: Array) -> Array:
    return np.concatenate([resident, offloaded], axis=-1)


def _host_bytes(cluster: Cluster, node: str, level: str) -> float:
    """Return what a machine's own memory of a level holds, infinite where the cluster does not state it."""
    memories = next(entry.host_memory for entry in cluster.nodes if entry.name == node)
    named = [tier for tier in memories if tier.weights and (tier.kind == "NVMe") == (level == "ssd")]
    return sum(tier.capacity_bytes for tier in named) if named else float("inf")
