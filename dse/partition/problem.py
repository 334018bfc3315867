"""The joint problem of bits, partition and micro-batches, as plain arrays that any solver can read.

Sets: L layers, N devices (each one stage at most), K choices per layer, P and D candidate micro-batch sizes
of the prefill and the decode. LLM-PQ (arXiv 2403.01136) is the special case of K bit widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Status = Literal["optimal", "feasible", "infeasible"]
Formula = Literal["round", "makespan", "llmpq"]
Objective = Literal["time", "ttft", "tpot", "throughput", "energy", "cost"]
BOUND_FIELDS: dict[Objective, str] = {
    "time": "max_time_s",
    "ttft": "max_ttft_s",
    "tpot": "max_tpot_s",
    "throughput": "max_period_s",
    "energy": "max_energy_j_per_token",
    "cost": "max_cost_usd_per_mtok",
}


@dataclass(frozen=True)
class EnergyTables:
    """Joules, in the shapes of the times they belong to, and what devices draw and cost all the time.

    Attributes:
        prefill_j (P, N, L, K), decode_j (D, N, L, K): dynamic energy of one layer, one micro-batch or round.
        first_prefill_j (P, N), first_decode_j (D, N), last_prefill_j, last_decode_j: of embedding and head.
        hop_prefill_j (P, N, N), hop_decode_j (D, N, N): of transfers.
        static_w: (N) power that a device of the plan draws over the whole job, 0 where it is unknown.
    """

    prefill_j: Array
    decode_j: Array
    first_prefill_j: Array
    first_decode_j: Array
    last_prefill_j: Array
    last_decode_j: Array
    hop_prefill_j: Array
    hop_decode_j: Array
    static_w: Array


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
        energy: joules, None where no energy is asked for.
        price_usd_per_h: (N) rent, None for a device whose price is unknown; None where none is asked for.
        batch, output_tokens: the job.
        activation_bytes: (P, D, N) live activations of every stage, which grow with the micro-batches and
            come off ``capacity_bytes``; None where the capacity already excludes them.
        n_chunks: passes that the prefill of one micro-batch takes; ``prefill_s`` is one of them.
        handover_s: (P) a last station of the prefill, which each pass occupies after the last stage (the
            cache on its way to other devices that decode); None for none.
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
    energy: EnergyTables | None = None
    price_usd_per_h: tuple[float | None, ...] | None = None
    allow_empty: bool = True
    activation_bytes: Array | None = None
    n_chunks: int = 1
    handover_s: Array | None = None

    def n_prefill_passes(self, micro_batch: int) -> int:
        """Return how often the prefill of the batch passes each stage."""
        return math.ceil(self.batch / micro_batch) * self.n_chunks

    def n_decode_passes(self, micro_batch: int) -> int:
        """Return how often one decode round passes each stage."""
        return math.ceil(self.batch / micro_batch)

    def prefill_hops_s(self, devices: Sequence[int], p: int) -> Array:
        """Return the prefill's stations between and after the stages: transfers, then the hand-over."""
        hops = [self.hop_prefill_s[p, a, b] for a, b in pairwise(devices)]
        return np.array(hops if self.handover_s is None else [*hops, self.handover_s[p]])

    def decode_hops_s(self, devices: Sequence[int], d: int) -> Array:
        """Return the times of the same stations in a decode round; a hand-over has none there."""
        hops = [self.hop_decode_s[d, a, b] for a, b in pairwise(devices)]
        return np.array(hops if self.handover_s is None else [*hops, 0.0])


@dataclass(frozen=True)
class Goal:
    """What to minimise and what to keep within bounds; None is no bound.

    Attributes:
        formula: "round" (corrected decode round, hops additive), "makespan" (the same, plus the drain of the
            last round, as an event simulation counts it) or "llmpq" (as published, for replays).
        theta_s: weight of the penalty in the objective, in the objective's unit.
        max_penalty: upper bound on the summed penalty.
        objective: "time" (seconds of the batch job by the formula), "ttft" (s, all prefills), "tpot" (s, one
            decode round), "throughput" (s between batches in steady state), "energy" (J per generated token)
            or "cost" (USD per million generated tokens).
        max_time_s, max_ttft_s, max_tpot_s, max_period_s, max_energy_j_per_token, max_cost_usd_per_mtok:
            bounds on the same quantities.
        max_devices: how many devices a plan may use.
    """

    formula: Formula = "round"
    theta_s: float = 0.0
    max_penalty: float | None = None
    objective: Objective = "time"
    max_time_s: float | None = None
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    max_period_s: float | None = None
    max_energy_j_per_token: float | None = None
    max_cost_usd_per_mtok: float | None = None
    max_devices: int | None = None

    @property
    def bounds(self) -> dict[Objective, float]:
        """Bounds that are set, beside the penalty and the number of devices."""
        found = {name: getattr(self, field) for name, field in BOUND_FIELDS.items()}
        return {name: bound for name, bound in found.items() if bound is not None}

    def with_bound(self, name: Objective, limit: float | None) -> Goal:
        """Return the goal with another bound on a quantity."""
        changed: dict[str, Any] = {BOUND_FIELDS[name]: limit}
        return replace(self, **changed)

    @property
    def quantities(self) -> frozenset[Objective]:
        """Everything that the objective and the bounds need."""
        return frozenset((self.objective, *self.bounds))


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
        value: objective of the arrangement under the goal (in its unit); bound: proven lower bound.
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
