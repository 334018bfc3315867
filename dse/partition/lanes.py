"""Lanes: one device sequence with one pair of micro-batches, in the form that bounds and searches share.

In a lane the objective is ``F(P_1..P_n, D_1..D_n) + theta * penalty`` with P and D the stage times and F a
sum of weighted maxima of linear forms, for every formula; so one bound and one search serve them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dse.partition.problem import Array, Goal, PipelineProblem

SLACK_FRAC = 1e-12  # sums in another order may differ by this much; capacities are widened by it


@dataclass(frozen=True)
class Maximum:
    """``weight * max_r(forms[r] @ x + constants[r])``: forms (R, 2n), constants (R)."""

    weight: float
    forms: Array
    constants: Array


@dataclass(frozen=True)
class Terms:
    """F(x) = linear @ x + constant + the maxima, x = (P_1..P_n, D_1..D_n).

    The maxima of all micro-batch sizes have the same rows, so that multipliers carry over between lanes.
    """

    linear: Array
    constant: float
    maxima: tuple[Maximum, ...]

    def value(self, x: Array) -> Array:
        """Evaluate rows x (..., 2n)."""
        total = x @ self.linear + self.constant
        for m in self.maxima:
            total = total + m.weight * (x @ m.forms.T + m.constants).max(axis=-1)
        return total


@dataclass(frozen=True)
class Lane:
    """Arrays of one lane.

    Attributes:
        devices: (n) device indices in stage order; prefill_index, decode_index: on the micro-batch axes.
        terms: F. theta: weight of the penalty.
        prefill_s, decode_s: (n, L, K); usable: (n, L, K) allowed and not dominated on that device.
        memory: (L, K) bytes; penalty: (L, K).
        fixed: (2n) embedding and head times; room: (n) bytes for layers.
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


def round_terms(
    n: int, hops_p: Array, hops_d: Array, k: int, m: int, tokens: int, *, drain: bool = False
) -> Terms:
    """Return F of the corrected round: see ``cost_models.pipeline``.

    With ``drain`` the last round ends when its last micro-batch leaves the last stage: it takes the sum of
    the stations plus (m - 1) times the slowest, as any flow shop of equal jobs.
    """
    eye, zero, none = np.eye(n), np.zeros((n, n)), np.zeros((1, 2 * n))
    longest_p, longest_d = (float(hops.max()) if len(hops) else 0.0 for hops in (hops_p, hops_d))
    slowest_prefill = Maximum(
        float(k - 1),
        np.concatenate([np.concatenate([eye, zero], axis=1), none]),
        np.append(np.zeros(n), longest_p),
    )
    whole = np.concatenate([np.zeros(n), np.ones(n)])[None]
    whole_round = Maximum(
        float(max(tokens - 1 - drain, 0)),
        np.concatenate([whole, np.concatenate([zero, m * eye], axis=1), none]),
        np.concatenate([[float(hops_d.sum())], np.zeros(n), [m * longest_d]]),
    )
    linear = np.concatenate([np.ones(n), np.zeros(n)])
    if not drain or tokens == 1:
        return Terms(linear, float(hops_p.sum()), (slowest_prefill, whole_round))
    last_round = Maximum(
        float(m - 1),
        np.concatenate([np.concatenate([zero, eye], axis=1), none]),
        np.append(np.zeros(n), longest_d),
    )
    constant = float(hops_p.sum() + hops_d.sum())
    return Terms(np.ones(2 * n), constant, (slowest_prefill, whole_round, last_round))


def llmpq_terms(n: int, floor_p: Array, floor_d: Array, k: int, m: int, tokens: int) -> Terms:
    """Return F as LLM-PQ (arXiv 2403.01136) publishes it, each stage time at least its transfer."""
    eye, none = np.eye(2 * n), np.zeros((1, 2 * n))
    floors = np.concatenate([floor_p, floor_d])
    maxima = [
        Maximum(1.0, np.concatenate([eye[i : i + 1], none]), np.array([0.0, floor]))
        for i, floor in enumerate(floors)
    ]
    for weight, rows, floor in (
        (k - 1, slice(0, n), floor_p),
        ((m - 1) * (tokens - 1), slice(n, 2 * n), floor_d),
    ):
        forms = np.concatenate([eye[rows], none])
        maxima.append(Maximum(float(weight), forms, np.append(np.zeros(n), floor.max())))
    return Terms(np.zeros(2 * n), 0.0, tuple(maxima))


@dataclass
class LaneFactory:
    """Builds the lanes of a problem; dominance of choices is worked out once per device and micro-batches.

    ``quality_only`` builds lanes whose objective is the penalty alone.
    """

    problem: PipelineProblem
    goal: Goal
    quality_only: bool = False
    _usable: dict[tuple[int, int, int], NDArray[np.bool_]] = field(default_factory=dict)

    def lanes(self) -> list[Lane]:
        """Return every lane, in a fixed order."""
        problem = self.problem
        if self.quality_only and problem.activation_bytes is None:
            pairs = [(0, 0)]
        elif self.quality_only and problem.activation_bytes is not None:
            # only memory tells the pairs apart, so the one with the least activations is enough
            least = int(np.argmin(problem.activation_bytes))
            pairs = [divmod(least, len(problem.decode_micro_batches))]
        else:
            pairs = [
                (p, d)
                for p in range(len(problem.prefill_micro_batches))
                for d in range(len(problem.decode_micro_batches))
            ]
        return [self._lane(devices, p, d) for devices in self.sequences() for p, d in pairs]

    def sequences(self) -> list[tuple[int, ...]]:
        """Return device sequences without empty stages, one of each kind of interchangeable ones."""
        problem, n_layers = self.problem, self.problem.memory_bytes.shape[0]
        seen: dict[object, tuple[int, ...]] = {}
        for order in problem.orders:
            subsets = range(1, 1 << len(order)) if problem.allow_empty else [(1 << len(order)) - 1]
            for mask in subsets:
                devices = tuple(device for i, device in enumerate(order) if mask >> i & 1)
                if len(devices) <= n_layers:
                    seen.setdefault(self._kind(devices), devices)
        return sorted(seen.values(), key=lambda devices: (-len(devices), devices))

    def _kind(self, devices: tuple[int, ...]) -> object:
        """Return what makes two sequences equal: device types and the transfers between neighbours."""
        problem = self.problem
        ring = list(zip(devices, devices[1:] + devices[:1], strict=True))
        hops = [
            (tuple(problem.hop_prefill_s[:, a, b]), tuple(problem.hop_decode_s[:, a, b])) for a, b in ring
        ]
        if self.goal.formula != "llmpq" or len(devices) == 1:
            hops = hops[:-1]
        types = tuple((problem.device_types[d], float(problem.capacity_bytes[d])) for d in devices)
        return types, tuple(hops)

    def _lane(self, devices: tuple[int, ...], p: int, d: int) -> Lane:
        problem, n = self.problem, len(devices)
        index = list(devices)
        fixed = np.zeros(2 * n)
        fixed[0] += problem.first_prefill_s[p, devices[0]]
        fixed[n - 1] += problem.last_prefill_s[p, devices[-1]]
        fixed[n] += problem.first_decode_s[d, devices[0]]
        fixed[2 * n - 1] += problem.last_decode_s[d, devices[-1]]
        room = problem.capacity_bytes[index].astype(float) * (1 + SLACK_FRAC)
        if problem.activation_bytes is not None:
            room -= problem.activation_bytes[p, d]
        room[0] -= problem.first_bytes
        room[-1] -= problem.last_bytes
        if n == 1:
            room[0] += problem.tied_bytes
        return Lane(
            devices=devices,
            prefill_index=p,
            decode_index=d,
            terms=Terms(np.zeros(2 * n), 0.0, ()) if self.quality_only else self._terms(devices, p, d),
            theta=1.0 if self.quality_only else self.goal.theta_s,
            prefill_s=problem.prefill_s[p, index],
            decode_s=problem.decode_s[d, index],
            usable=np.stack([self._usable_on(device, p, d) for device in devices]),
            memory=problem.memory_bytes,
            penalty=problem.penalty,
            fixed=fixed,
            room=room,
        )

    def _terms(self, devices: tuple[int, ...], p: int, d: int) -> Terms:
        problem, goal = self.problem, self.goal
        k = math.ceil(problem.batch / problem.prefill_micro_batches[p])
        m = math.ceil(problem.batch / problem.decode_micro_batches[d])
        after = devices[1:] + devices[:1]
        pairs = list(zip(devices, after, strict=True))
        hops_p = np.array([problem.hop_prefill_s[p, a, b] for a, b in pairs])
        hops_d = np.array([problem.hop_decode_s[d, a, b] for a, b in pairs])
        if goal.formula != "llmpq":
            return round_terms(
                len(devices),
                hops_p[:-1],
                hops_d[:-1],
                k,
                m,
                problem.output_tokens,
                drain=goal.formula == "makespan",
            )
        if len(devices) == 1:
            hops_p, hops_d = np.zeros(1), np.zeros(1)
        return llmpq_terms(len(devices), hops_p, hops_d, k, m, problem.output_tokens)

    def _usable_on(self, device: int, p: int, d: int) -> NDArray[np.bool_]:
        """(L, K) choices that the device can run and no other choice beats in everything that counts."""
        key = (device, p, d)
        if key not in self._usable:
            problem = self.problem
            costs = [problem.memory_bytes]
            if not self.quality_only:
                costs += [problem.prefill_s[p, device], problem.decode_s[d, device]]
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
