"""Filling a ``CostTable``: every operator of every block template priced once, then summed into units.

Nothing is priced per layer: layers of one template share their costs, and units are sums over operators, so a
matrix that says which operator belongs to which unit turns operator costs into unit costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from cost_models.energy import energy_gaps
from cost_models.pricing import join_provenance
from dse.errors import ConfigError
from dse.evaluate.beside import NO_EXTRAS, Extras
from dse.evaluate.cost_table import Array, CostTable
from dse.evaluate.device_costs import DeviceWays, device_ways, price_device
from dse.evaluate.footprint import (
    EdgeBytes,
    LivePeak,
    block_fixed_bytes,
    block_state_bytes,
    edge_bytes,
    kept_frac,
    kv_position_bytes,
)
from dse.evaluate.fusion import with_fused_norms
from dse.evaluate.kernel_path import float_kind
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES
from dse.evaluate.prepared import FixedParts, fixed_parts, prepare
from dse.evaluate.sizes import Sizes, decode_contexts
from dse.evaluate.stack import OpStack
from dse.evaluate.tensor_parallel import TensorGroup, kv_copies
from dse.formats.precision import Precision
from dse.graph.operator import Attention, OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec, RuntimeProfile


@dataclass(frozen=True)
class CostModel:
    """A model in some precisions on some devices, looked up once: tables of many workloads take less each.

    The fields are the arguments of ``build_cost_table``.
    """

    graph: OperatorGraph
    units: tuple[Unit, ...]
    precisions: tuple[Precision, ...]
    specs: Mapping[str, HardwareSpec]
    groups: tuple[TensorGroup, ...] = ()
    runtime: RuntimeProfile | None = None
    extras: Extras = NO_EXTRAS

    @cached_property
    def fused(self) -> OperatorGraph:
        """The graph as the runtime fuses it."""
        return with_fused_norms(self.graph, self.runtime)

    @cached_property
    def fixed(self) -> FixedParts:
        """What no size changes."""
        return fixed_parts(self.fused, self.units, self.precisions, self.runtime, self.extras)

    @cached_property
    def members(self) -> tuple[tuple[HardwareSpec, TensorGroup | None], ...]:
        """Devices and groups in the order of the device axis."""
        alone = tuple((spec, None) for spec in self.specs.values())
        return (*alone, *((group.spec, group) for group in self.groups))

    @cached_property
    def ways(self) -> tuple[DeviceWays, ...]:
        """The kernels of each member for each precision."""
        return tuple(device_ways(spec, self.precisions) for spec, _ in self.members)

    @cached_property
    def peak(self) -> LivePeak:
        """When activations are live."""
        return LivePeak.of(self.fused)

    @cached_property
    def layer_bytes(self) -> LayerBytes:
        """What layers hold beside weights."""
        return LayerBytes.of(self.fused, self.fixed.stack, self.precisions)

    @cached_property
    def facts(self) -> DeviceFacts:
        """What the members need no pricing for."""
        return DeviceFacts.of(self.members, self.fixed.stack)

    def table(self, workload: Workload, micro_batches: Sequence[int], n_chunks: int = 1) -> CostTable:
        """Return the dense table of a workload (see ``build_cost_table``)."""
        _check(self.precisions, self.specs, micro_batches)
        _check_chunks(self.graph, n_chunks)
        graph, precisions, specs, units = self.fused, self.precisions, self.specs, self.units
        overhead_s = 0.0 if self.runtime is None else self.runtime.step_overhead_s
        sizes = Sizes(
            float(workload.prompt_tokens),
            np.asarray(micro_batches, dtype=np.float64),
            decode_contexts(workload),
            n_chunks,
        )
        at_longest = sizes.at_longest_contexts()
        prepared = prepare(self.fixed, sizes)
        stack = prepared.stack
        devices = [
            price_device(spec, graph, prepared, precisions, sizes, group, self.extras, ways)
            for (spec, group), ways in zip(self.members, self.ways, strict=True)
        ]
        names = (*specs, *(group.name for group in self.groups))
        unit, layer, first, last = (
            np.stack([getattr(device, part) for device in devices], axis=3)
            for part in ("unit", "layer", "first", "last")
        )
        provenance = reduce(join_provenance, (device.provenance for device in devices))
        held, facts = self.layer_bytes, self.facts
        return CostTable(
            units=tuple(units),
            devices=names,
            precisions=tuple(precisions),
            micro_batches=tuple(micro_batches),
            supported=np.array([[reason is None for reason in device.reasons] for device in devices]),
            reasons={
                (name, precision.name): reason
                for name, device in zip(names, devices, strict=True)
                for precision, reason in zip(precisions, device.reasons, strict=True)
                if reason is not None
            },
            unit_time_s=unit[0],
            unit_energy_j=unit[1],
            layer_time_s=layer[0],
            layer_energy_j=layer[1],
            first_time_s=first[0] + overhead_s,
            first_energy_j=first[1],
            last_time_s=last[0],
            last_energy_j=last[1],
            unit_span_s=unit[2:],
            layer_span_s=layer[2:],
            first_span_s=first[2:] + overhead_s,
            last_span_s=last[2:],
            unit_weight_bytes=stack.linear_of_unit @ prepared.stored,
            unit_kv_bytes_per_token=stack.attention_of_unit @ held.cached_per_token(workload.total_context),
            kv_copies=facts.kv_copies,
            layer_fixed_bytes=held.fixed,
            layer_state_bytes=held.state,
            first_bytes=held.edges.first,
            last_bytes=held.edges.last,
            tied_bytes=held.edges.tied,
            activation_bytes=SIXTEEN_BIT_BYTES * np.asarray(self.peak(*at_longest)),
            hop_bytes=SIXTEEN_BIT_BYTES * graph.hidden_size * _crossing(graph, at_longest),
            reserve_bytes=facts.reserve_bytes,
            static_w=facts.static_w,
            energy_gaps=facts.energy_gaps,
            provenance=provenance,
            n_chunks=n_chunks,
        )


def _check_chunks(graph: OperatorGraph, n_chunks: int) -> None:
    attentions = [op.attention for block in graph.blocks for op in block.ops if op.attention is not None]
    if n_chunks > 1 and not all(attention.causal for attention in attentions):
        raise ConfigError(
            f"{graph.model} attends in both directions, so its prefill has no chunks", path="chunk"
        )


def build_cost_table(
    graph: OperatorGraph,
    units: Sequence[Unit],
    precisions: Sequence[Precision],
    specs: Mapping[str, HardwareSpec],
    workload: Workload,
    micro_batches: Sequence[int],
    groups: Sequence[TensorGroup] = (),
    runtime: RuntimeProfile | None = None,
    n_chunks: int = 1,
    extras: Extras = NO_EXTRAS,
) -> CostTable:
    """Price every choice and return the dense table.

    Args:
        graph: the traced model.
        units: parts that get one precision each; they must cover all linears and attention operators.
        precisions: the choices; unsupported ones get a reason per device instead of a cost.
        specs: device type name -> spec.
        workload: prompt and output lengths. Its batch does not matter here.
        micro_batches: sizes to price, in sequences.
        groups: devices that share layers by tensor parallelism, further entries of the device axis.
        runtime: what it fuses saves launches and traffic (see ``dse.evaluate.fusion``), and its host time is
            added to every pass of a micro-batch, with the embedding. None prices every operator as a launch
            and no host time.
        n_chunks: passes that the prefill of a micro-batch takes; prefill entries are the mean pass.
        extras: what a quantization method adds: online rotations, products with kept outliers.

    Raises:
        ConfigError: a linear belongs to no unit or to two, a list is empty, a micro-batch is below 1, or the
            model's prefill cannot be cut into chunks.
        UnsupportedOnDevice: a device cannot even run the unquantized parts.
    """
    model = CostModel(graph, tuple(units), tuple(precisions), specs, tuple(groups), runtime, extras)
    return model.table(workload, micro_batches, n_chunks)


def _check(
    precisions: Sequence[Precision], specs: Mapping[str, HardwareSpec], micro_batches: Sequence[int]
) -> None:
    for name, entries in (("precisions", precisions), ("devices", specs), ("micro_batches", micro_batches)):
        if not entries:
            raise ConfigError("must not be empty", path=name)
    for size in micro_batches:
        if size < 1:
            raise ConfigError(f"must be at least 1, but got {size}", path="micro_batches", value=size)


@dataclass(frozen=True)
class LayerBytes:
    """What layers hold beside weights.

    Attributes:
        attentions, of_position: the (A, Q) cached bytes of a position that each attention operator keeps.
        fixed, state: (L,) bytes of norms and of recurrent state.
        edges: embedding and head.
    """

    attentions: tuple[Attention, ...]
    of_position: Array
    fixed: Array
    state: Array
    edges: EdgeBytes

    @classmethod
    def of(cls, graph: OperatorGraph, stack: OpStack, precisions: Sequence[Precision]) -> LayerBytes:
        """Look up a graph."""
        shape = (len(stack.attentions), len(precisions))
        table = [[kv_position_bytes(part, entry.kv) for entry in precisions] for part in stack.attentions]
        fixed, state = (
            np.array([count(block) for block in graph.blocks])[stack.template_of_layer]
            for count in (block_fixed_bytes, block_state_bytes)
        )
        of_position = np.asarray(table, dtype=np.float64).reshape(shape)
        return cls(stack.attentions, of_position, fixed, state, edge_bytes(graph))

    def cached_per_token(self, context: int) -> Array:
        """Return (A, Q) cached bytes per position, the mean over a context."""
        kept = np.array([kept_frac(attention, context) for attention in self.attentions])
        return kept.reshape(-1, 1) * self.of_position


@dataclass(frozen=True)
class DeviceFacts:
    """What of a cost table no size changes: its fields of these names."""

    kv_copies: Array
    reserve_bytes: Array
    static_w: Array
    energy_gaps: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, members: Sequence[tuple[HardwareSpec, TensorGroup | None]], stack: OpStack) -> DeviceFacts:
        """Look up devices and groups."""
        degrees = [1 if group is None else group.degree for _, group in members]
        static = [(spec.power.static_w or 0.0) * n for (spec, _), n in zip(members, degrees, strict=True)]
        return cls(
            np.stack([_kv_copies(stack, degree) for degree in degrees]),
            np.array([spec.reserve_bytes for spec, _ in members]),
            np.array(static),
            tuple(energy_gaps(spec, float_kind(spec)) for spec, _ in members),
        )


def _kv_copies(stack: OpStack, degree: int) -> Array:
    """Return (U,) how often ``degree`` devices together hold the cache of a unit."""
    copies = np.array([kv_copies(attention, degree) for attention in stack.attentions])
    owners = stack.attention_of_unit.sum(axis=1)
    return np.where(owners > 0, stack.attention_of_unit @ copies / np.maximum(owners, 1.0), 1.0)


def _crossing(graph: OperatorGraph, sizes: tuple[Array, Array, Array]) -> Array:
    """Return (P, M) positions that cross a cut: in the first pass an encoder's too."""
    batch, query, context = sizes
    return batch * (query + np.where(query == context, float(graph.source_tokens or 0), 0.0))
