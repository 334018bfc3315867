"""The joint problem of bits, partition and micro-batches, as plain arrays that any solver can read.

Sets: L layers, N devices (each one stage at most), K choices per layer, P and D candidate micro-batch sizes
of the prefill and the decode. LLM-PQ (arXiv 2403.01136) is the special case of K bit widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Status = Literal["optimal", "feasible", "infeasible"]
Formula = Literal["round", "makespan", "llmpq"]


@dataclass(frozen=True)
class PipelineProblem:
    """Contiguous stages on ordered devices with one choice per layer.

    Attributes:
        devices: (N) names; ``device_types``: (N) names of their types, equal types are interchangeable.
        orders: candidate device orders, each a tuple of indices into ``devices``; a stage may be empty (its
            device is then unused) where ``allow_empty`` is True.
        prefill_micro_batches, decode_micro_batches: candidate sizes.
        prefill_s: (P, N, L, K) time of one layer with one choice on one device, one micro-batch.
        decode_s: (D, N, L, K) likewise, one round (one token per sequence of the micro-batch).
        allowed: (N, L, K) whether the device can run the choice.
        memory_bytes: (L, K) weights and the KV cache of the whole batch.
        capacity_bytes: (N) what is left for layers after the reserve and activations.
        first_bytes, last_bytes: extra memory on the stage with the first and the last layer;
            ``tied_bytes`` is saved when both are on one stage.
        first_prefill_s (P, N), first_decode_s (D, N), last_prefill_s, last_decode_s: extra time there.
        hop_prefill_s (P, N, N), hop_decode_s (D, N, N): transfer between the stages' devices.
        penalty: (L, K) quality loss, additive.
        energy_j: (N, L, K) dynamic energy of the whole job, or None.
        batch, output_tokens: the job.
        activation_bytes: (P, D) live activations of every stage, which grow with the micro-batches and come
            off ``capacity_bytes``; None where the capacity already excludes them.
    """

    devices: tuple[str, ...]
    device_types: tuple[str, ...]
    orders: tuple[tuple[int, ...], ...]
    prefill_micro_batches: tuple[int, ...]
    decode_micro_batches: tuple[int, ...]
    prefill_s: Array
    decode_s: Array
    allowed: NDArray[np.bool_]
    memory_bytes: Array
    capacity_bytes: Array
    first_bytes: float
    last_bytes: float
    tied_bytes: float
    first_prefill_s: Array
    first_decode_s: Array
    last_prefill_s: Array
    last_decode_s: Array
    hop_prefill_s: Array
    hop_decode_s: Array
    penalty: Array
    batch: int
    output_tokens: int
    energy_j: Array | None = None
    allow_empty: bool = True
    activation_bytes: Array | None = None


@dataclass(frozen=True)
class Goal:
    """What to minimise: seconds of the batch job plus ``theta_s`` seconds per unit of penalty.

    Attributes:
        formula: "round" (corrected decode round, hops additive), "makespan" (the same, plus the drain of the
            last round, as an event simulation counts it) or "llmpq" (as published, for replays).
        theta_s: weight of the penalty in the objective.
        max_penalty: upper bound on the summed penalty, None for no bound.
    """

    formula: Formula = "round"
    theta_s: float = 0.0
    max_penalty: float | None = None


@dataclass(frozen=True)
class Arrangement:
    """A point of the problem: ``stages`` are (device index, first layer, last layer + 1), none empty."""

    stages: tuple[tuple[int, int, int], ...]
    choices: tuple[int, ...]
    prefill_micro_batch: int
    decode_micro_batch: int


@dataclass(frozen=True)
class Solution:
    """An answer with its proof.

    Attributes:
        value: objective of the arrangement under the goal (seconds); bound: proven lower bound.
        gap_frac: (value - bound) / value; status "optimal" only when the gap is closed.
        binding: a sentence on what limits the value, e.g. "memory of t4/0".
    """

    status: Status
    arrangement: Arrangement | None
    value: float | None
    bound: float | None
    gap_frac: float | None
    time_s: float
    penalty: float | None
    binding: str
