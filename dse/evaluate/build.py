"""Filling a ``CostTable``: every operator of every block template priced once, then summed into units.

Nothing is priced per layer: layers of one template share their costs, and units are sums over operators, so a
matrix that says which operator belongs to which unit turns operator costs into unit costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cost_models.energy import energy_gaps
from cost_models.pricing import join_provenance
from cost_models.work import Floats
from dse.errors import ConfigError
from dse.evaluate.beside import NO_EXTRAS, Extras
from dse.evaluate.cost_table import Array, CostTable
from dse.evaluate.device_costs import DeviceWays, device_ways, price_device
from dse.evaluate.footprint import (
    activation_peak_elements,
    block_fixed_bytes,
    block_state_bytes,
    edge_bytes,
    kv_bytes_per_token,
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
        prepared = prepare(self.fixed, sizes)
        stack = prepared.stack
        devices = [
            price_device(spec, graph, prepared, precisions, sizes, group, self.extras, ways)
            for (spec, group), ways in zip(self.members, self.ways, strict=True)
        ]
        names = (*specs, *(group.name for group in self.groups))
        members = [(spec, 1 if group is None else group.degree) for spec, group in self.members]
        unit, layer, first, last = (
            np.stack([getattr(device, part) for device in devices], axis=3)
            for part in ("unit", "layer", "first", "last")
        )
        provenance = devices[0].provenance
        for device in devices[1:]:
            provenance = join_provenance(provenance, device.provenance)
        static = [spec.power.static_w for spec, _ in members]
        edges = edge_bytes(graph)
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
            unit_kv_bytes_per_token=stack.attention_of_unit
            @ _kv_bytes(stack.attentions, precisions, workload.total_context),
            kv_copies=np.stack([_kv_copies(stack, degree) for _, degree in members]),
            layer_fixed_bytes=np.array([block_fixed_bytes(block) for block in graph.blocks])[
                stack.template_of_layer
            ],
            layer_state_bytes=np.array([block_state_bytes(block) for block in graph.blocks])[
                stack.template_of_layer
            ],
            first_bytes=edges.first,
            last_bytes=edges.last,
            tied_bytes=edges.tied,
            activation_bytes=_per_phase(
                sizes, lambda batch, query, context: activation_peak_elements(graph, batch, query, context)
            ),
            hop_bytes=_per_phase(
                sizes,
                lambda batch, query, context: batch * _crossing(graph, query, context) * graph.hidden_size,
            ),
            reserve_bytes=np.array([spec.reserve_bytes for spec, _ in members]),
            static_w=np.array([(value or 0.0) * n for value, (_, n) in zip(static, members, strict=True)]),
            energy_gaps=tuple(energy_gaps(spec, float_kind(spec)) for spec, _ in members),
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


def _kv_bytes(attentions: Sequence[Attention], precisions: Sequence[Precision], context: int) -> Array:
    """Return (A, Q) cached bytes per position."""
    table = [
        [kv_bytes_per_token(attention, precision.kv, context) for precision in precisions]
        for attention in attentions
    ]
    return np.asarray(table, dtype=np.float64).reshape(len(attentions), len(precisions))


def _kv_copies(stack: OpStack, degree: int) -> Array:
    """Return (U,) how often ``degree`` devices together hold the cache of a unit."""
    copies = np.array([kv_copies(attention, degree) for attention in stack.attentions])
    owners = stack.attention_of_unit.sum(axis=1)
    return np.where(owners > 0, stack.attention_of_unit @ copies / np.maximum(owners, 1.0), 1.0)


def _crossing(graph: OperatorGraph, query: Floats, context: Floats) -> Floats:
    """Return the positions that cross a cut: in the first pass an encoder's too."""
    return query + (graph.source_tokens or 0) if query == context else query


def _per_phase(sizes: Sizes, elements: Callable[[Array, Floats, Floats], Floats]) -> Array:
    """Return (P, M) bytes of 16-bit elements, at the longest context."""
    longest = (sizes.prompt, float(sizes.contexts.max()))
    shape = sizes.micro_batches.shape
    out = np.empty((2, *shape))
    for p, (_, batch, query, _) in enumerate(sizes.of_phases()):
        out[p] = SIXTEEN_BIT_BYTES * np.asarray(elements(batch, query, longest[p]))
    return out
