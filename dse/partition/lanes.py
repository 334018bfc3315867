"""Lanes: one device sequence with one pair of micro-batches, in the form that bounds and searches share.

In a lane the objective is ``F(P_1..P_n, D_1..D_n) + theta * penalty`` with P and D the stage times and F of
``dse.partition.terms``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dse.partition.problem import Array, Goal, Objective, PipelineProblem
from dse.partition.sequences import device_sequences
from dse.partition.terms import Terms, quantity_terms

SLACK_FRAC = 1e-12  # sums in another order may differ by this much; capacities are widened by it


@dataclass(frozen=True)
class Bound:
    """``terms(x) + extra_weight @ e <= limit``, with e the lane's extra totals."""

    name: Objective
    terms: Terms
    extra_weight: Array
    limit: float


@dataclass(frozen=True)
class Lane:
    """Arrays of one lane.

    Attributes:
        devices: (n) device indices in stage order; prefill_index, decode_index: on the micro-batch axes.
        terms: F. theta: weight of the penalty.
        prefill_s, decode_s: (n, L, K); usable: (n, L, K) allowed and not dominated on that device.
        memory: (L, K) bytes; penalty: (L, K).
        fixed: (2n) embedding and head times; room: (n) bytes for layers.
        extra: (E, n, L, K) further costs that are summed over the layers (energy); extra_weight: (E) theirs
            in the objective. bounds: constraints beside memory and penalty, the same ones in every lane.
    """

    devices: tuple[int, ...]
    prefill_index: int
    decode_index: int
    terms: Terms
    theta: float
    prefill_s: Array
    decode_s: Array
    usable: NDArray[np.bool_]
    memory: Array
    penalty: Array
    fixed: Array
    room: Array
    extra: Array
    extra_weight: Array
    bounds: tuple[Bound, ...]

    @property
    def n(self) -> int:
        """Number of stages."""
        return len(self.devices)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.memory.shape[0]

    @cached_property
    def least_memory(self) -> Array:
        """(n, L + 1) prefix sums of the smallest usable memory; 0 for layers that no choice can serve."""
        least = np.where(self.usable, self.memory, np.inf).min(axis=2)
        return _prefix(np.where(np.isfinite(least), least, 0.0))

    @cached_property
    def n_unusable(self) -> Array:
        """(n, L + 1) prefix counts of the layers that the device cannot run at all."""
        return _prefix((~self.usable.any(axis=2)).astype(float))

    @cached_property
    def same_as_next(self) -> NDArray[np.bool_]:
        """(n, L - 1) whether a layer and the next one are interchangeable on a stage."""
        same = (self.memory[1:] == self.memory[:-1]).all(axis=1)
        same &= (self.penalty[1:] == self.penalty[:-1]).all(axis=1)
        alike = np.broadcast_to(same, (self.n, len(same))).copy()
        for table in (self.prefill_s, self.decode_s, self.usable, *self.extra):
            alike &= (table[:, 1:] == table[:, :-1]).all(axis=2)
        return alike

    def fits(self, cuts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which cuts (C, n + 1) fit into memory with every layer at its smallest usable choice."""
        stages = np.arange(self.n)
        need = self.least_memory[stages, cuts[:, 1:]] - self.least_memory[stages, cuts[:, :-1]]
        blocked = self.n_unusable[stages, cuts[:, 1:]] - self.n_unusable[stages, cuts[:, :-1]]
        slack = SLACK_FRAC * np.abs(self.room)
        return ((need <= self.room + slack) & (blocked == 0)).all(axis=1)


def _prefix(per_layer: Array) -> Array:
    """Return (n, L + 1) sums of (n, L) over the layers before each position."""
    return np.concatenate([np.zeros((len(per_layer), 1)), np.cumsum(per_layer, axis=1)], axis=1)


@dataclass
class LaneFactory:
    """Builds the lanes of a problem; dominance of choices is worked out once per device and micro-batches.

    ``quality_only`` builds lanes whose objective is the penalty alone.
    """

    problem: PipelineProblem
    goal: Goal
    quality_only: bool = False
    _sequences: list[tuple[int, ...]] | None = None
    _usable: dict[tuple[int, int, int], NDArray[np.bool_]] = field(default_factory=dict)

    def lanes(self) -> list[Lane]:
        """Return every lane, in a fixed order."""
        return [self.lane(devices, p, d) for devices in self.sequences() for p, d in self.pairs()]

    def pairs(self) -> list[tuple[int, int]]:
        """Return the pairs of micro-batches worth a lane, as indices.

        A phase that nothing depends on takes the size that leaves most memory, where sizes differ in it.
        """
        shape = len(self.problem.prefill_micro_batches), len(self.problem.decode_micro_batches)
        active = self.problem.activation_bytes
        least = np.zeros(shape) if active is None else active.sum(axis=2)
        counted = frozenset[Objective]() if self.quality_only else self.goal.quantities
        if not counted:
            p, d = divmod(int(np.argmin(least)), shape[1])
            return [(p, d)]
        if counted == {"ttft"}:
            return [(p, int(np.argmin(least[p]))) for p in range(shape[0])]
        if counted == {"tpot"}:
            return [(int(np.argmin(least[:, d])), d) for d in range(shape[1])]
        return list(np.ndindex(shape))

    def sequences(self) -> list[tuple[int, ...]]:
        """Return the device sequences of the goal (``device_sequences``)."""
        if self._sequences is None:
            self._sequences = device_sequences(self.problem, self.goal)
        return self._sequences

    def lane(self, devices: tuple[int, ...], p: int, d: int) -> Lane:
        """Return the lane of a device sequence and a pair of micro-batches."""
        problem, n = self.problem, len(devices)
        index = list(devices)
        fixed = np.zeros(2 * n)
        fixed[0] += problem.first_prefill_s[p, devices[0]]
        fixed[n - 1] += problem.last_prefill_s[p, devices[-1]]
        fixed[n] += problem.first_decode_s[d, devices[0]]
        fixed[2 * n - 1] += problem.last_decode_s[d, devices[-1]]
        room = problem.capacity_bytes[index].astype(float) * (1 + SLACK_FRAC)
        if problem.activation_bytes is not None:
            room -= problem.activation_bytes[p, d, index]
        room[0] -= problem.first_bytes
        room[-1] -= problem.last_bytes
        if n == 1:
            room[0] += problem.tied_bytes
        counted = () if self.quality_only else self.goal.quantities
        joules, joules_fixed = self._energy(devices, p, d) if "energy" in counted else (None, 0.0)
        extra = np.zeros((0, n, *problem.memory_bytes.shape)) if joules is None else joules[None]

        def quantity(name: Objective) -> tuple[Terms, Array]:
            terms = quantity_terms(problem, self.goal.formula, name, devices, (p, d), joules_fixed)
            weight = 1.0 / (problem.batch * problem.output_tokens) if name == "energy" else 0.0
            return terms, np.full(len(extra), weight)

        terms, extra_weight = Terms(np.zeros(2 * n), 0.0, ()), np.zeros(len(extra))
        bounds: tuple[Bound, ...] = ()
        if not self.quality_only:
            terms, extra_weight = quantity(self.goal.objective)
            bounds = tuple(
                Bound(name, *quantity(name), limit + SLACK_FRAC * abs(limit))
                for name, limit in self.goal.bounds.items()
            )
        return Lane(
            devices=devices,
            prefill_index=p,
            decode_index=d,
            terms=terms,
            theta=1.0 if self.quality_only else self.goal.theta_s,
            prefill_s=problem.prefill_s[p, index],
            decode_s=problem.decode_s[d, index],
            usable=np.stack([self._usable_on(device, p, d) for device in devices]),
            memory=problem.memory_bytes,
            penalty=problem.penalty,
            fixed=fixed,
            room=room,
            extra=extra,
            extra_weight=extra_weight,
            bounds=bounds,
        )

    def ends_j(self, devices: tuple[int, ...], p: int, d: int) -> tuple[Array, Array]:
        """Return (n) joules of the job for the embedding, and for the head, on each of the devices."""
        energy, index = self.problem.energy, list(devices)
        if energy is None:
            raise ValueError("the problem has no energy tables")
        k, m = self._n_passes(p, d)
        return (
            k * energy.first_prefill_j[p, index] + m * energy.first_decode_j[d, index],
            k * energy.last_prefill_j[p, index] + m * energy.last_decode_j[d, index],
        )

    def _n_passes(self, p: int, d: int) -> tuple[int, int]:
        """Return how often a job passes a stage in the prefill, and in all rounds of the decode."""
        problem = self.problem
        return (
            problem.n_prefill_passes(problem.prefill_micro_batches[p]),
            problem.n_decode_passes(problem.decode_micro_batches[d]) * (problem.output_tokens - 1),
        )

    def _energy(self, devices: tuple[int, ...], p: int, d: int) -> tuple[Array, float]:
        """Return (n, L, K) dynamic joules of the job, and those of embedding, head and transfers."""
        energy = self.problem.energy
        if energy is None:
            raise ValueError("the problem has no energy tables")
        k, m = self._n_passes(p, d)
        index, first, last = list(devices), devices[0], devices[-1]
        fixed = k * (energy.first_prefill_j[p, first] + energy.last_prefill_j[p, last])
        fixed += m * (energy.first_decode_j[d, first] + energy.last_decode_j[d, last])
        for a, b in itertools.pairwise(devices):
            fixed += k * energy.hop_prefill_j[p, a, b] + m * energy.hop_decode_j[d, a, b]
        return k * energy.prefill_j[p, index] + m * energy.decode_j[d, index], float(fixed)

    def _usable_on(self, device: int, p: int, d: int) -> NDArray[np.bool_]:
        """(L, K) choices that the device can run and no other choice beats in everything that counts."""
        key = (device, p, d)
        if key not in self._usable:
            problem = self.problem
            costs = [problem.memory_bytes]
            if not self.quality_only:
                costs += [problem.prefill_s[p, device], problem.decode_s[d, device]]
                if "energy" in self.goal.quantities:
                    costs.append(self._energy((device,), p, d)[0][0])
            if self.quality_only or self.goal.theta_s > 0 or self.goal.max_penalty is not None:
                costs.append(problem.penalty)
            self._usable[key] = undominated(np.stack(costs), problem.allowed[device])
        return self._usable[key]


def undominated(costs: Array, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (L, K): allowed choices that no allowed one of the layer beats or equals in all (C, L, K) costs.

    Of equal choices the first stays.
    """
    n_choices = allowed.shape[1]
    no_worse = np.ones((*allowed.shape, n_choices), dtype=bool)
    better = np.zeros_like(no_worse)
    for cost in costs:
        no_worse &= cost[:, :, None] <= cost[:, None, :]
        better |= cost[:, :, None] < cost[:, None, :]
    earlier = np.arange(n_choices)[:, None] < np.arange(n_choices)[None, :]
    beats = no_worse & (better | earlier) & allowed[:, :, None]
    return allowed & ~beats.any(axis=1)
