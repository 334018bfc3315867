"""Dense arrays of costs, filled once: allocators and planners only index them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.work import Provenance
from dse.formats.precision import Precision
from dse.graph.units import Unit

PHASES: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CostTable:
    """Costs of every choice.

    Axis letters: P phase (prefill, decode), M micro-batch size, D device type, U unit, Q precision, L layer.

    Attributes:
        units, devices, precisions, micro_batches: what the axes mean, in order. A group of devices that
            share every layer is a device of its own, named ``tensor_parallel.group_name``.
        supported: (D, Q) whether a device type can run a precision; ``reasons[device, precision name]``
            says why not. Entries of unsupported choices are 0 in the arrays and must not be read.
        unit_time_s, unit_energy_j: (P, M, D, U, Q) one micro-batch: all the prompt tokens in "prefill", one
            token per sequence in "decode" (mean over the growing context).
        layer_time_s, layer_energy_j: (P, M, D, L) what does not depend on the precision (norms, rope,
            element-wise).
        first_time_s, last_time_s (and _energy_j): (P, M, D) embedding; final norm and output head, which
            serve the last position of each sequence alone.
        unit_span_s, layer_span_s, first_span_s, last_span_s: (2, ...) the same times as nine of ten kernels
            exceed and stay below, if all err alike (``PlanCost``).
        unit_weight_bytes: (U, Q) stored weights with scales and zero points.
        unit_kv_bytes_per_token: (U, Q) per sequence and position, the mean over the full context where a
            sliding window drops positions. kv_copies: (D, U) how often a group of devices holds it in all:
            once, but as often as it has devices for every shared head.
        layer_state_bytes: (L,) recurrent state of one sequence, however long it is.
        layer_fixed_bytes: (L,) norms and biases; first_bytes, last_bytes: embedding; norm and head (the
            head counts here too when it is tied, because another device must hold its own copy;
            ``tied_bytes`` is what one device saves that holds both).
        activation_bytes: (P, M) peak of live activations of one stage.
        hop_bytes: (P, M) activations that cross a pipeline cut.
        reserve_bytes: (D,) runtime reserve.
        n_chunks: passes that the prefill of a micro-batch takes; the prefill entries are the mean pass.
        static_w: (D,) static power, 0 where it is unknown.
        energy_gaps: (D,) parts of each device's energy that are unknown and count 0: of "static", "memory",
            "compute".
    """

    units: tuple[Unit, ...]
    devices: tuple[str, ...]
    precisions: tuple[Precision, ...]
    micro_batches: tuple[int, ...]
    supported: NDArray[np.bool_]
    reasons: dict[tuple[str, str], str] = field(hash=False)
    unit_time_s: Array
    unit_energy_j: Array
    layer_time_s: Array
    layer_energy_j: Array
    first_time_s: Array
    first_energy_j: Array
    last_time_s: Array
    last_energy_j: Array
    unit_span_s: Array
    layer_span_s: Array
    first_span_s: Array
    last_span_s: Array
    unit_weight_bytes: Array
    unit_kv_bytes_per_token: Array
    kv_copies: Array
    layer_fixed_bytes: Array
    layer_state_bytes: Array
    first_bytes: float
    last_bytes: float
    tied_bytes: float
    activation_bytes: Array
    hop_bytes: Array
    reserve_bytes: Array
    static_w: Array
    energy_gaps: tuple[tuple[str, ...], ...]
    provenance: Provenance
    n_chunks: int = 1

    def micro_batch_index(self, size: int) -> int:
        """Return the position of a micro-batch size on the M axis."""
        return self.micro_batches.index(size)
