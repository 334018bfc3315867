"""What one iteration of a serving engine costs on a stage: any mix of prompt chunks and decode sequences.

A cost table prices batches of equal requests; continuous batching runs unlike ones together. Everything but
attention depends on the number of tokens alone, the output head on the number of sequences, decode attention
on the number of sequences and their mean context, and prefill attention on each chunk and its prefix.

One prompt and any number of equal decode sequences cost exactly what the cost table says; of unlike ones,
decode attention takes the mean context (bytes and products are linear in it), and chunks share one launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from cost_models.pricing import join_provenance, price
from cost_models.work import Provenance, Work
from dse.errors import ConfigError, UnsupportedOnDevice
from dse.evaluate.cost_table import PHASES, Array
from dse.evaluate.device_costs import DeviceCosts, price_device
from dse.evaluate.footprint import block_fixed_bytes, edge_bytes, kv_bytes_per_token
from dse.evaluate.fusion import with_fused_norms
from dse.evaluate.kernel_path import supports
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES, Phase, attention_work
from dse.evaluate.prepared import FixedParts, fixed_parts, prepare
from dse.evaluate.sizes import Sizes
from dse.evaluate.tensor_parallel import TensorGroup, attention_part
from dse.formats.precision import NumberFormat, Precision
from dse.graph.operator import Attention, Block, OperatorGraph
from dse.graph.units import Unit
from hardware_specs.spec import HardwareSpec, RuntimeProfile


@dataclass(frozen=True)
class StageModel:
    """The layers of a stage, equal ones once: a graph of one layer per kind, without attention.

    Attributes:
        graph: its blocks are the kinds of layers; prologue and epilogue are those of the whole model.
        units, precisions: of the kinds; ``choice`` (U,) index of each unit's precision.
        counts: (K,) layers of each kind.
        attentions: (attention, KV format, number of them).
        first, last: whether the stage holds the prologue and the epilogue.
        runtime: fused launches and host time.
    """

    graph: OperatorGraph
    units: tuple[Unit, ...]
    precisions: tuple[Precision, ...]
    choice: tuple[int, ...]
    counts: tuple[int, ...]
    attentions: tuple[tuple[Attention, NumberFormat, int], ...]
    first: bool
    last: bool
    runtime: RuntimeProfile | None = None

    @cached_property
    def fixed(self) -> FixedParts:
        """What no size changes."""
        return fixed_parts(self.graph, self.units, self.precisions, self.runtime)

    @property
    def weight_bytes(self) -> float:
        """Stored parameters of the stage, embedding and head included."""
        fixed = self.fixed
        of_unit = (fixed.stack.linear_of_unit @ fixed.stored)[range(len(self.units)), self.choice]
        total = sum(self.counts[unit.layer] * of_unit[u] for u, unit in enumerate(self.units))
        blocks = zip(self.counts, self.graph.blocks, strict=True)
        total += sum(count * block_fixed_bytes(block) for count, block in blocks)
        edges = edge_bytes(self.graph)
        total += edges.first * self.first + edges.last * self.last
        return float(total - edges.tied * (self.first and self.last))

    @property
    def state_bytes(self) -> float:
        """Recurrent states that one sequence keeps, in 16 bits."""
        elements = sum(
            count * float(op.state_elements(1.0, 1.0, 1.0))
            for count, block in zip(self.counts, self.graph.blocks, strict=True)
            for op in block.ops
        )
        return SIXTEEN_BIT_BYTES * elements

    def kv_bytes_per_token(self, context_tokens: int, degree: int = 1) -> float:
        """Return what each of ``degree`` devices caches per position; the mean over a full context."""
        return sum(
            count * kv_bytes_per_token(attention_part(attention, degree), kv, context_tokens)
            for attention, kv, count in self.attentions
        )


def stage_model(
    graph: OperatorGraph,
    units: Sequence[Unit],
    precision_of_unit: Mapping[str, Precision],
    layers: tuple[int, int],
    runtime: RuntimeProfile | None = None,
) -> StageModel:
    """Collect the layers from ``layers[0]`` to ``layers[1]`` - 1.

    Raises:
        ConfigError: a unit has no precision, or the model is no decoder or has an encoder.
    """
    if graph.source_tokens is not None or any(
        op.attention is not None and not op.attention.causal for block in graph.blocks for op in block.ops
    ):
        raise ConfigError("only decoder-only models are served by continuous batching", value=graph.model)
    of_layer: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.name not in precision_of_unit:
            raise ConfigError(f"unit '{unit.name}' has no precision", path="assignment")
        of_layer.setdefault(unit.layer, []).append(unit)
    fused = with_fused_norms(graph, runtime)
    kinds: Counter[tuple[int, tuple[Precision, ...]]] = Counter()
    example: dict[tuple[int, tuple[Precision, ...]], int] = {}
    template = {layer: index for index, block in enumerate(fused.blocks) for layer in block.layers}
    attentions: Counter[tuple[Attention, NumberFormat]] = Counter()
    for layer in range(*layers):
        here = of_layer.get(layer, [])
        kind = template[layer], tuple(precision_of_unit[unit.name] for unit in here)
        kinds[kind] += 1
        example.setdefault(kind, layer)
        kv_of = {name: precision_of_unit[unit.name].kv for unit in here for name in unit.attention_ops}
        for op in fused.blocks[template[layer]].ops:
            if op.attention is not None:
                attentions[op.attention, kv_of[op.name]] += 1
    columns = {precision: q for q, precision in enumerate(dict.fromkeys(p for _, ps in kinds for p in ps))}
    pairs = [
        (Unit(f"{k}.{u}", k, unit.ops), columns[precision])
        for k, kind in enumerate(kinds)
        for u, (unit, precision) in enumerate(zip(of_layer.get(example[kind], []), kind[1], strict=True))
    ]
    return StageModel(
        replace(fused, blocks=tuple(_bare(fused.blocks[index], k) for k, (index, _) in enumerate(kinds))),
        tuple(unit for unit, _ in pairs),
        tuple(columns),
        tuple(column for _, column in pairs),
        tuple(kinds.values()),
        tuple((attention, kv, count) for (attention, kv), count in attentions.items()),
        layers[0] == 0,
        layers[1] == graph.n_layers,
        runtime,
    )


def _bare(block: Block, layer: int) -> Block:
    """Return a block without its attention operators, as the only one of a layer."""
    gone = {op.name for op in block.ops if op.attention is not None}
    return replace(
        block,
        layers=(layer,),
        ops=tuple(op for op in block.ops if op.name not in gone),
        edges=tuple(edge for edge in block.edges if not {edge.source, edge.target} & gone),
    )


@dataclass(frozen=True)
class StagePricer:
    """Prices iterations of a stage on its device or group, vectorised; energy is without static power.

    Attributes:
        model: what the stage holds.
        spec: of each device.
        group: the devices that share every layer, None for a single device.
    """

    model: StageModel
    spec: HardwareSpec
    group: TensorGroup | None = None

    def __post_init__(self) -> None:
        for precision in self.model.precisions:
            reason = supports(self.spec, precision)
            if reason is not None:
                raise UnsupportedOnDevice(self.spec.name, precision.name, known=[], reason=reason)

    @property
    def degree(self) -> int:
        """Devices of the stage."""
        return 1 if self.group is None else self.group.degree

    def tokens(self, tokens: ArrayLike, phase: Phase) -> Array:
        """Return (2, ...) seconds and joules of all but attention and head, for any numbers of tokens.

        "decode": as many sequences of one token; "prefill": one sequence, or a mix, which keeps recurrent
        states once.
        """
        n = np.asarray(tokens, dtype=np.float64)
        costs = self._device_costs(n.ravel(), phase)
        p = PHASES.index(phase)
        of_unit = np.array([self.model.counts[unit.layer] for unit in self.model.units], dtype=np.float64)
        chosen = costs.unit[:2, p][:, :, np.arange(len(of_unit)), list(self.model.choice)]
        total: Array = chosen @ of_unit + costs.layer[:2, p] @ np.array(self.model.counts, dtype=np.float64)
        if self.model.first:
            total = total + costs.first[:2, p]
            total[0] += 0.0 if self.model.runtime is None else self.model.runtime.step_overhead_s
        return total.reshape(2, *n.shape)

    def head(self, sequences: ArrayLike) -> Array:
        """Return (2, ...) of final norm and output head, one position per sequence; 0 on other stages."""
        n = np.asarray(sequences, dtype=np.float64)
        if not self.model.last:
            return np.zeros((2, *n.shape))
        last = self._device_costs(n.ravel(), "decode").last[:2, PHASES.index("decode")]
        return last.reshape(2, *n.shape)

    def decode_attention(self, sequences: ArrayLike, context: ArrayLike) -> Array:
        """Return (2, ...) of sequences with this mean number of positions, the new one included."""
        batch, positions = np.broadcast_arrays(
            np.asarray(sequences, dtype=np.float64), np.asarray(context, dtype=np.float64)
        )
        total = np.zeros((2, *batch.shape))
        for attention, kv, count in self.model.attentions:
            part = attention_part(attention, self.degree)
            work = attention_work(part, kv, self.spec, "decode", batch, 1.0, positions)
            total += count * self._cost(work, batch.shape)
        return total

    def chunk_attention(self, query: ArrayLike, context: ArrayLike) -> Array:
        """Return (2, ...) of chunks of ``query`` tokens attending to ``context`` positions, no launch."""
        q, c = np.broadcast_arrays(np.asarray(query, dtype=np.float64), np.asarray(context, dtype=np.float64))
        total = np.zeros((2, *q.shape))
        for attention, kv, count in self.model.attentions:
            part = attention_part(attention, self.degree)
            work = attention_work(part, kv, self.spec, "prefill", 1.0, q, c)
            total += count * self._cost(work, q.shape)
        total[0] -= self.chunk_launch_s
        return total

    @cached_property
    def chunk_launch_s(self) -> float:
        """Seconds that prefill attention takes once in an iteration, however many chunks it has."""
        floor_s = self.spec.kernel("attention_prefill").floor_s
        return floor_s * sum(count for _, _, count in self.model.attentions)

    @cached_property
    def provenance(self) -> Provenance:
        """What the constants in use have in common, else "mixed"."""
        found = self._device_costs(np.ones(1), "decode").provenance
        for name in ("attention_prefill", "attention_decode"):
            found = join_provenance(found, self.spec.kernel(name).provenance)
        return found

    def _device_costs(self, n: Array, phase: Phase) -> DeviceCosts:
        one = np.ones_like(n)
        sizes = Sizes(1.0, n, np.ones(1)) if phase == "decode" else Sizes(n, one, np.ones(1))
        model = self.model
        prepared = prepare(model.fixed, sizes)
        return price_device(self.spec, model.graph, prepared, model.precisions, sizes, self.group)

    def _cost(self, work: Work, shape: tuple[int, ...]) -> Array:
        cost = price(work, self.spec)
        out = np.empty((2, *shape))
        out[0], out[1] = cost.time_s, cost.energy_j * self.degree
        return out
