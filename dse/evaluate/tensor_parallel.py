"""Tensor parallelism: equal devices that share every layer of a stage (Megatron-LM, arXiv 1909.08053).

Linears that read the hidden state are cut by outputs, those that write it by inputs; heads are shared out.
Two all-reduces a block put the parts together: after attention and after the feed-forward part. Norms are
computed everywhere. A group is a device of its own in a cost table, named ``group_name``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cost_models.collectives import all_reduce_time_s
from cost_models.energy import link_energy_j
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array
from dse.graph.operator import Attention, Op, OperatorGraph
from hardware_specs.spec import HardwareSpec, Link

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
        link: between any two of them.
    """

    spec: HardwareSpec
    degree: int
    link: Link

    @property
    def name(self) -> str:
        """Name on the device axis of a cost table."""
        return group_name(self.spec.name, self.degree)


def group_name(device: str, degree: int) -> str:
    """Return the name of a group on the device axis of a cost table; a single device keeps its own."""
    return device if degree == 1 else f"{device} x{degree}"


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


def all_reduce_costs(group: TensorGroup, message_bytes: Array) -> Array:
    """Return (2, ...) seconds and joules of the all-reduces of one block."""
    degree = group.degree
    time_s = ALL_REDUCES_PER_BLOCK * np.asarray(all_reduce_time_s(message_bytes, degree, group.link))
    moved = ALL_REDUCES_PER_BLOCK * 2.0 * (degree - 1) * message_bytes
    return np.stack([time_s, np.asarray(link_energy_j(moved, group.link))])
