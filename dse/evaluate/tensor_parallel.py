"""Tensor parallelism: equal devices that share every layer of a stage (Megatron-LM, arXiv 1909.08053).

Linears that read the hidden state are cut by outputs, those that write it by inputs; heads are shared out.
Two all-reduces a block put the parts together: after attention and after the feed-forward part. Norms are
computed everywhere. A group is a device of its own in a cost table, named ``group_name``; one that spans
machines reduces inside them first and then across (hierarchical all-reduce).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.collectives import all_reduce_time_s, hierarchical_all_reduce_s
from cost_models.energy import link_energy_j
from cost_models.work import Floats
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array
from dse.graph.operator import Attention, Block, Op, OperatorGraph
from hardware_specs.spec import Cluster, HardwareSpec, Link

ALL_REDUCES_PER_BLOCK = 2
INPUT_ROLES = (
    *("o_proj", "out_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "w2", "wo", "wo_proj"),
    *("fc_out", "output_dense"),
)
"""Last name parts of linears that write the hidden state, so that their inputs are shared out."""

SHARED_KINDS = ("activation", "rope")
"""Element-wise operators between two cut linears, which each device does for its own part."""


@dataclass(frozen=True)
class TensorGroup:
    """Equal devices that compute every layer together.

    Attributes:
        spec: each of them.
        degree: how many; it must divide the heads of every attention operator.
        link: between any two of them in one machine.
        n_nodes: machines, with equal parts of the devices; ``outer`` joins them.
    """

    spec: HardwareSpec
    degree: int
    link: Link
    n_nodes: int = 1
    outer: Link | None = None

    def __post_init__(self) -> None:
        if self.n_nodes < 1 or self.degree % self.n_nodes:
            raise ConfigError(
                f"{self.degree} devices cannot be shared out to {self.n_nodes} nodes",
                path="nodes",
                value=self.n_nodes,
            )
        if self.n_nodes > 1 and self.outer is None:
            raise ConfigError(f"{self.spec.name} has no link to other machines", path="nodes")

    @property
    def name(self) -> str:
        """Name on the device axis of a cost table."""
        return group_name(self.spec.name, self.degree, self.n_nodes)


def group_name(device: str, degree: int, n_nodes: int = 1) -> str:
    """Return the name of a group on the device axis of a cost table; a single device keeps its own."""
    name = device if degree == 1 else f"{device} x{degree}"
    return name if n_nodes == 1 else f"{name} on {n_nodes} nodes"


def group_of_cluster(cluster: Cluster, devices: Sequence[str]) -> TensorGroup:
    """Return the group of named devices of a cluster.

    Raises:
        ConfigError: devices of unlike types, unequal parts on the nodes, or no link between them.
    """
    types = {cluster.spec_of(device).name for device in devices}
    nodes = [device.partition("/")[0] for device in devices]
    counts = {node: nodes.count(node) for node in nodes}
    if len(types) > 1:
        raise ConfigError("devices that share layers must be of one type", value=sorted(types))
    if len(set(counts.values())) > 1:
        raise ConfigError("devices that share layers must be equally many on every node", value=counts)
    first, inside = devices[0], [device for device in devices if device.partition("/")[0] == nodes[0]]
    outside = [device for device in devices if device not in inside]
    outer = cluster.link_between(first, outside[0]) if outside else None
    inner = cluster.link_between(first, inside[1]) if len(inside) > 1 else outer
    if inner is None:
        raise ConfigError("a group needs at least two devices", value=list(devices))
    return TensorGroup(cluster.spec_of(first), len(devices), inner, len(counts), outer)


def linear_parts(linears: Sequence[Op], degree: int) -> tuple[Array, Array]:
    """Return (O,) the shares of the outputs and of the inputs that one device of a group has."""
    by_input = np.array([op.role in INPUT_ROLES for op in linears], dtype=bool)
    return np.where(by_input, 1.0, 1.0 / degree), np.where(by_input, 1.0 / degree, 1.0)


def attention_part(attention: Attention, degree: int) -> Attention:
    """Return what one device of a group computes: its query heads and the KV heads that they read.

    Raises:
        ConfigError: the degree does not divide the query heads.
    """
    if attention.n_heads % degree:
        raise ConfigError(
            f"{attention.n_heads} heads cannot be shared out to {degree} devices",
            path="tensor_parallel",
            value=degree,
        )
    kv_heads = max(1, attention.n_kv_heads // degree)
    return replace(attention, n_heads=attention.n_heads // degree, n_kv_heads=kv_heads)


def kv_copies(attention: Attention, degree: int) -> float:
    """Return how often a group holds each cached head: once, unless it has more devices than heads.

    A compressed cache (multi-head latent attention) is one head that all devices need.
    """
    return degree * max(1, attention.cached_heads // degree) / attention.cached_heads


def degrees_for(graph: OperatorGraph, n_devices: int) -> tuple[int, ...]:
    """Return the powers of two up to ``n_devices`` that can share out every layer of a model.

    A degree must divide the query heads, divide the KV heads or be a multiple of them, and divide the cut
    side of every linear.
    """
    attentions = [op.attention for block in graph.blocks for op in block.ops if op.attention is not None]
    linears = [op for block in graph.blocks for op in block.ops if op.weight_shape and op.experts is None]
    degrees = [2**i for i in range(n_devices.bit_length()) if 2**i <= n_devices]
    return tuple(
        degree
        for degree in degrees
        if all(
            attention.n_heads % degree == 0
            and (attention.cached_heads % degree == 0 or degree % attention.cached_heads == 0)
            for attention in attentions
        )
        and all(
            op.weight_shape[1 if op.role in INPUT_ROLES else 0] % degree == 0
            for op in linears
            if op.weight_shape is not None
        )
    )


def elementwise_parts(others: Sequence[Op], degree: int) -> Array:
    """Return (E,) the share of each element-wise operator that one device does."""
    return np.array([1.0 / degree if op.kind in SHARED_KINDS else 1.0 for op in others])


def graph_part(graph: OperatorGraph, degree: int) -> OperatorGraph:
    """Return what one device of a group computes and stores: the graph with its parts of every operator.

    Embedding and output head are cut by vocabulary, matrices rounded up to whole rows or columns.
    Activations between operators stay whole.

    Raises:
        ConfigError: the degree does not divide the query heads.
    """
    if degree == 1:
        return graph

    def part(block: Block) -> Block:
        return replace(block, ops=tuple(_op_part(op, degree) for op in block.ops))

    return replace(
        graph,
        prologue=part(graph.prologue),
        blocks=tuple(part(block) for block in graph.blocks),
        epilogue=part(graph.epilogue),
    )


def _op_part(op: Op, degree: int) -> Op:
    """Return one device's part of an operator."""
    share = 1.0 / degree
    if op.attention is not None:
        return replace(op, attention=attention_part(op.attention, degree))
    if op.kind == "embedding" and op.weight_shape is not None:
        return replace(op, parameters=-(-op.parameters // degree))
    if op.kind in SHARED_KINDS:
        return replace(
            op,
            vector_flop=op.vector_flop * share,
            read_elements=op.read_elements * share,
            write_elements=op.write_elements * share,
        )
    if op.kind != "linear" or op.weight_shape is None:
        return op
    outputs, inputs = op.weight_shape
    by_input = op.role in INPUT_ROLES
    whole = outputs * inputs
    shape = (outputs, -(-inputs // degree)) if by_input else (-(-outputs // degree), inputs)
    return replace(
        op,
        parameters=-(-op.parameters // degree),
        weight_shape=shape,
        flop=op.flop * (shape[0] * shape[1] / whole),
        read_elements=op.read_elements * share if by_input else op.read_elements,
        write_elements=op.write_elements if by_input else op.write_elements * share,
    )


def all_reduce_costs(group: TensorGroup, message_bytes: Array) -> Array:
    """Return (2, ...) seconds and joules of the all-reduces of one block."""
    each_s, each_j = all_reduce_of(group, message_bytes)
    return ALL_REDUCES_PER_BLOCK * np.stack([each_s, each_j])


def all_reduce_of(group: TensorGroup, message_bytes: Floats) -> tuple[Array, Array]:
    """Return seconds of one all-reduce, and joules of all links that it uses.

    Inside a machine every device sends the message 2 (n - 1) / n times; across machines each sends its own
    n-th of it 2 (N - 1) / N times.
    """
    message = np.asarray(message_bytes, dtype=np.float64)
    inside = group.degree // group.n_nodes
    sent = 2.0 * (inside - 1) * group.n_nodes * message
    energy_j = np.asarray(link_energy_j(sent, group.link))
    if group.n_nodes == 1 or group.outer is None:
        return np.asarray(all_reduce_time_s(message, group.degree, group.link)), energy_j
    time_s = hierarchical_all_reduce_s(message, inside, group.n_nodes, group.link, group.outer)
    across = 2.0 * (group.n_nodes - 1) * message
    return np.asarray(time_s), energy_j + np.asarray(link_energy_j(across, group.outer))
