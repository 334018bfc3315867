"""What is alike in a problem of groups: classes of stages and classes of layers.

Groups of one kind in nodes of one kind are interchangeable, and so are layers with equal costs. Layers that
differ in their penalties alone are joined into few classes with the least of each, which only lowers a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.partition.groups import DeviceGroup, node_kinds
from dse.partition.problem import Array, PipelineProblem
from hardware_specs.spec import Cluster

MAX_PENALTY_CLASSES = 12


@dataclass(frozen=True)
class StageClass:
    """Interchangeable groups: ``members`` of a problem's devices, at most ``most`` of them in a pipeline."""

    node_kind: int
    degree: int
    members: tuple[int, ...]
    most: int

    @property
    def device(self) -> int:
        """One of them."""
        return self.members[0]


@dataclass(frozen=True)
class StageClasses:
    """The classes of a cluster's groups.

    Attributes:
        groups: the problem's devices; n_devices: of every node kind; node_sizes: devices of every node.
    """

    groups: tuple[DeviceGroup, ...]
    classes: tuple[StageClass, ...]
    n_devices: dict[int, int]
    node_sizes: dict[str, int]


@dataclass(frozen=True)
class LayerClass:
    """Layers that cost alike: how many, and their arrays without the layer axis."""

    n_layers: int
    prefill_s: Array
    decode_s: Array
    allowed: NDArray[np.bool_]
    memory_bytes: Array
    penalty: Array
    prefill_j: Array | None
    decode_j: Array | None


def stage_classes(cluster: Cluster, groups: Sequence[DeviceGroup]) -> StageClasses:
    """Return the classes of groups."""
    alike = node_kinds(cluster)
    counts: dict[int, int] = {}
    for node in cluster.nodes:
        counts[alike[node.name]] = counts.get(alike[node.name], 0) + node.n_devices
    members: dict[tuple[int, int], list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault((alike[group.node], group.degree), []).append(index)
    return StageClasses(
        tuple(groups),
        tuple(
            StageClass(kind, degree, tuple(found), len(found)) for (kind, degree), found in members.items()
        ),
        counts,
        {node.name: node.n_devices for node in cluster.nodes},
    )


def layer_classes(problem: PipelineProblem) -> tuple[LayerClass, ...]:
    """Return the classes of layers of a problem."""
    energy = problem.energy
    alike: dict[bytes, list[int]] = {}
    for layer in range(problem.memory_bytes.shape[0]):
        arrays = [
            problem.prefill_s[:, :, layer].tobytes(),
            problem.decode_s[:, :, layer].tobytes(),
            problem.allowed[:, layer].tobytes(),
            problem.memory_bytes[layer].tobytes(),
        ]
        if energy is not None:
            arrays += [energy.prefill_j[:, :, layer].tobytes(), energy.decode_j[:, :, layer].tobytes()]
        alike.setdefault(b"|".join(arrays), []).append(layer)
    found = []
    for layers in alike.values():
        by_penalty = sorted(layers, key=lambda layer: float(problem.penalty[layer].sum()))
        distinct = len({problem.penalty[layer].tobytes() for layer in layers})
        n_parts = min(distinct, MAX_PENALTY_CLASSES)
        parts = np.array_split(np.array(by_penalty), n_parts)
        found += [_layer_class(problem, part) for part in parts]
    return tuple(found)


def _layer_class(problem: PipelineProblem, layers: NDArray[np.int64]) -> LayerClass:
    first, energy = layers[0], problem.energy
    return LayerClass(
        len(layers),
        problem.prefill_s[:, :, first],
        problem.decode_s[:, :, first],
        problem.allowed[:, first],
        problem.memory_bytes[first],
        problem.penalty[layers].min(axis=0),
        None if energy is None else energy.prefill_j[:, :, first],
        None if energy is None else energy.decode_j[:, :, first],
    )


def least_hops_s(problem: PipelineProblem, stages: StageClasses, p: int, d: int) -> tuple[Array, Array]:
    """Return the least transfer into a stage of each class, prefill and decode; 0 where there is none.

    A stage's neighbour in its own node is another group beside it, so the node must have devices for both.
    """
    found = np.zeros((2, len(stages.classes)))
    for c, entry in enumerate(stages.classes):
        own = stages.groups[entry.device]
        into = [
            i
            for i, other in enumerate(stages.groups)
            if i != entry.device
            and (other.node != own.node or own.degree + other.degree <= stages.node_sizes[own.node])
        ]
        if into:
            found[0, c] = problem.hop_prefill_s[p, into, entry.device].min()
            found[1, c] = problem.hop_decode_s[d, into, entry.device].min()
    return found[0], found[1]
