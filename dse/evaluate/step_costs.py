"""What one iteration of a serving engine costs on a stage: any mix of prompt chunks and decode sequences.

A cost table prices batches of equal requests; continuous batching runs unlike ones together. Everything but
attention depends on the number of tokens alone, the output head on the number of sequences, decode attention
on the number of sequences and their mean context, and prefill attention on each chunk and its prefix.

One prompt and any number of equal decode sequences cost exactly what the cost table says; of unlike ones,
decode attention takes the mean context (bytes and products are linear in it), and chunks share one launch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from cost_models.pricing import join_provenance, price
from cost_models.work import Provenance, Work
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array
from dse.evaluate.device_costs import UNQUANTIZED, fused_launches, part_of, part_of_head
from dse.evaluate.footprint import kv_bytes_per_token
from dse.evaluate.kernel_path import check_kv, float_kind, linear_path
from dse.evaluate.lowering import (
    BITS_PER_BYTE,
    SIXTEEN_BIT_BYTES,
    Phase,
    active_frac,
    attention_work,
    elementwise_work,
    linear_rows,
    linear_work,
    lower,
    runs,
    weight_bytes,
)
from dse.evaluate.sizes import LAST_POSITION
from dse.evaluate.tensor_parallel import (
    TensorGroup,
    all_reduce_costs,
    attention_part,
    elementwise_parts,
    linear_parts,
)
from dse.formats.precision import NumberFormat, Precision
from dse.formats.storage import row_bits
from dse.graph.operator import Attention, Op, OperatorGraph
from dse.graph.units import Unit
from hardware_specs.spec import HardwareSpec, RuntimeProfile


@dataclass(frozen=True)
class StageOps:
    """The operators of a stage, equal ones once with their number.

    Attributes:
        linears: (operator, precision, part of a kernel launch, number of layers that hold it so).
        attentions: (attention, KV format, number).
        others: (element-wise operator, number).
        first, last: operators before the first and after the last block, where the stage holds them.
        n_layers: layers of the stage; hidden_size: of the model.
    """

    linears: tuple[tuple[Op, Precision, float, int], ...]
    attentions: tuple[tuple[Attention, NumberFormat, int], ...]
    others: tuple[tuple[Op, int], ...]
    first: tuple[Op, ...]
    last: tuple[Op, ...]
    n_layers: int
    hidden_size: int


def stage_ops(
    graph: OperatorGraph,
    units: tuple[Unit, ...],
    precision_of_unit: Mapping[str, Precision],
    layers: tuple[int, int],
    runtime: RuntimeProfile | None = None,
) -> StageOps:
    """Collect the operators of the layers from ``layers[0]`` to ``layers[1]`` - 1.

    Raises:
        ConfigError: a unit has no precision, or the model does not decode (an encoder) or has an encoder.
    """
    if graph.source_tokens is not None or any(
        op.attention is not None and not op.attention.causal for block in graph.blocks for op in block.ops
    ):
        raise ConfigError("only decoder-only models are served by continuous batching", value=graph.model)
    for unit in units:
        if unit.name not in precision_of_unit:
            raise ConfigError(f"unit '{unit.name}' has no precision", path="assignment")
    of_place = {
        (unit.layer, name): precision_of_unit[unit.name]
        for unit in units
        for name in (*unit.ops, *unit.attention_ops)
    }
    fused = runtime.ties if runtime is not None and runtime.fuses_ties else ()
    launches = iter(fused_launches(graph, fused).tolist())
    launch_of = {
        (id(block), op.name): next(launches)
        for block in graph.blocks
        for op in block.ops
        if op.kind == "linear"
    }
    linears: Counter[tuple[Op, Precision, float]] = Counter()
    attentions: Counter[tuple[Attention, NumberFormat]] = Counter()
    others: Counter[Op] = Counter()
    for layer in range(*layers):
        block = graph.block_of_layer[layer]
        for op in block.ops:
            precision = of_place.get((layer, op.name), UNQUANTIZED)
            if op.kind == "linear":
                linears[op, precision, launch_of[id(block), op.name]] += 1
            elif op.attention is not None:
                attentions[op.attention, precision.kv] += 1
            else:
                others[op] += 1
    return StageOps(
        tuple((*key, n) for key, n in linears.items()),
        tuple((*key, n) for key, n in attentions.items()),
        tuple(others.items()),
        graph.prologue.ops if layers[0] == 0 else (),
        graph.epilogue.ops if layers[1] == graph.n_layers else (),
        layers[1] - layers[0],
        graph.hidden_size,
    )


@dataclass(frozen=True)
class StagePricer:
    """Prices iterations of a stage on its device or group, vectorised; energy is without static power.

    Attributes:
        ops: what the stage holds.
        spec: of each device.
        group: the devices that share every layer, None for a single device.
        overhead_s: host time of an iteration, on the first stage.
    """

    ops: StageOps
    spec: HardwareSpec
    group: TensorGroup | None = None
    overhead_s: float = 0.0

    @property
    def degree(self) -> int:
        """Devices of the stage."""
        return 1 if self.group is None else self.group.degree

    def tokens(self, tokens: ArrayLike, phase: Phase) -> Array:
        """Return (2, N) seconds and joules of all but attention and head, for N numbers of tokens.

        "decode": as many sequences of one token; "prefill": one sequence, or a mix, which keeps recurrent
        states once.
        """
        n = np.asarray(tokens, dtype=np.float64)
        batch, query = (n, np.ones_like(n)) if phase == "decode" else (np.ones_like(n), n)
        total = np.zeros((2, *n.shape))
        for op, precision, launch, count in self.ops.linears:
            if runs(op, phase):
                total += count * self._cost(self._linear(op, precision, launch, batch, query), n.shape)
        for op, count in self.ops.others:
            if runs(op, phase):
                share = elementwise_parts([op], self.degree)[0]
                work = elementwise_work(op, float_kind(self.spec), batch, query, query)
                total += count * self._cost(part_of(work, share), n.shape)
        for op in self.ops.first:
            work = lower(op, UNQUANTIZED, self.spec, phase, batch, query, query)
            if op.kind == "linear":
                work = part_of_head(work, self.degree)
            total += self._cost(work, n.shape)
        if self.group is not None:
            messages = n * (SIXTEEN_BIT_BYTES * self.ops.hidden_size)
            total += self.ops.n_layers * all_reduce_costs(self.group, messages)
        if self.ops.first:
            total[0] += self.overhead_s
        return total

    def head(self, sequences: ArrayLike) -> Array:
        """Return (2, N) of the final norm and output head, one position of each sequence; 0 elsewhere."""
        n = np.asarray(sequences, dtype=np.float64)
        total = np.zeros((2, *n.shape))
        for op in self.ops.last:
            work = lower(op, UNQUANTIZED, self.spec, "decode", n, LAST_POSITION, 1.0)
            if op.kind == "linear":
                work = part_of_head(work, self.degree)
            total += self._cost(work, n.shape)
        return total

    def decode_attention(self, sequences: ArrayLike, context: ArrayLike) -> Array:
        """Return (2, ...) of sequences with this mean number of positions, the new one included."""
        batch, positions = np.broadcast_arrays(
            np.asarray(sequences, dtype=np.float64), np.asarray(context, dtype=np.float64)
        )
        total = np.zeros((2, *batch.shape))
        for attention, kv, count in self.ops.attentions:
            part = attention_part(attention, self.degree)
            work = attention_work(part, kv, self.spec, "decode", batch, 1.0, positions)
            total += count * self._cost(work, batch.shape)
        return total

    def chunk_attention(self, query: ArrayLike, context: ArrayLike) -> Array:
        """Return (2, ...) of chunks of ``query`` tokens attending to ``context`` positions, no launch."""
        q, c = np.broadcast_arrays(np.asarray(query, dtype=np.float64), np.asarray(context, dtype=np.float64))
        total = np.zeros((2, *q.shape))
        for attention, kv, count in self.ops.attentions:
            part = attention_part(attention, self.degree)
            work = attention_work(part, kv, self.spec, "prefill", 1.0, q, c)
            total += count * self._cost(work, q.shape)
        total[0] -= self.chunk_launch_s()
        return total

    def chunk_launch_s(self) -> float:
        """Return the seconds that prefill attention takes once in an iteration, however many chunks."""
        floor_s = self.spec.kernel("attention_prefill").floor_s
        return floor_s * sum(count for _, _, count in self.ops.attentions)

    def kv_bytes_per_token(self, context_tokens: int) -> float:
        """Return what each device caches per position, the mean over a full context where a window slides."""
        return sum(
            count * kv_bytes_per_token(attention_part(attention, self.degree), kv, context_tokens)
            for attention, kv, count in self.ops.attentions
        )

    @property
    def provenance(self) -> Provenance:
        """What the kernel profiles in use have in common."""
        names = {linear_path(self.spec, precision).profile for _, precision, _, _ in self.ops.linears}
        names |= {"attention_prefill", "attention_decode", "elementwise"}
        kinds = [self.spec.kernel(name).provenance for name in sorted(names)]
        found: Provenance = kinds[0]
        for kind in kinds[1:]:
            found = join_provenance(found, kind)
        return found

    def check(self) -> None:
        """Price one token.

        Raises:
            UnsupportedOnDevice: the device has no kernel for a precision of the stage.
        """
        for _, kv, _ in self.ops.attentions:
            check_kv(self.spec, kv)
        self.tokens([1.0], "decode")

    def _linear(self, op: Op, precision: Precision, launch: float, batch: Array, query: Array) -> Work:
        outputs, inputs = op.weight_shape or (0, 0)
        (of_outputs,), (of_inputs,) = linear_parts([op], self.degree)
        used = active_frac(op, batch, query)
        matrices = used * (1 if op.experts is None else op.experts.n_experts)
        work = linear_work(
            linear_path(self.spec, precision),
            linear_rows(op, batch, query, query),
            outputs * of_outputs * used,
            inputs * of_inputs,
            weight_bytes(op, precision.weights) * (used / self.degree),
            row_bits(precision.activations, inputs) / BITS_PER_BYTE * (of_inputs * matrices),
        )
        return replace(work, n_launches=launch)

    def _cost(self, work: Work, shape: tuple[int, ...]) -> Array:
        cost = price(work, self.spec)
        out = np.empty((2, *shape))
        out[0], out[1] = cost.time_s, cost.energy_j * self.degree
        return out
