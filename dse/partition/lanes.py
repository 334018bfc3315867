"""Lanes: one device sequence with one pair of micro-batches, in the form that bounds and searches share.

In a lane the objective is ``F(P_1..P_n, D_1..D_n) + theta * penalty`` with P and D the stage times and F a
sum of weighted maxima of linear forms, for every formula; so one bound and one search serve them all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dse.partition.problem import Array, Goal, Objective, PipelineProblem

MAX_SUBSET_DEVICES = 10  # of longer orders not every subset is tried
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

    def scaled(self, factor: float, constant: float = 0.0) -> Terms:
        """Return ``factor`` times the terms plus a constant."""
        return Terms(
            self.linear * factor,
            self.constant * factor + constant,
            tuple(Maximum(m.weight * factor, m.forms, m.constants) for m in self.maxima),
        )


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


def ttft_terms(n: int, hops_p: Array, k: int) -> Terms:
    """Return the seconds until every request has its first token (``cost_models.pipeline``)."""
    forms = np.concatenate([np.eye(n, 2 * n), np.zeros((1, 2 * n))])
    longest = float(hops_p.max()) if len(hops_p) else 0.0
    slowest = Maximum(float(k - 1), forms, np.append(np.zeros(n), longest))
    return Terms(np.repeat([1.0, 0.0], n), float(hops_p.sum()), (slowest,))


def tpot_terms(n: int, hops_d: Array, m: int) -> Terms:
    """Return the seconds of one decode round (``cost_models.pipeline``)."""
    whole = np.repeat([0.0, 1.0], n)[None]
    forms = np.concatenate([whole, m * np.eye(n, 2 * n, n), np.zeros((1, 2 * n))])
    longest = float(hops_d.max()) if len(hops_d) else 0.0
    constants = np.concatenate([[float(hops_d.sum())], np.zeros(n), [m * longest]])
    return Terms(np.zeros(2 * n), 0.0, (Maximum(1.0, forms, constants),))


def period_terms(n: int, hops_p: Array, hops_d: Array, k: int, m: int, tokens: int) -> Terms:
    """Return the seconds between batches in steady state, prefills and decodes of neighbours overlapping.

    A station is busy k P_s + (n - 1) m D_s for every batch, and a request stays sum P + (n - 1) sum D at
    least: with one batch in flight, its successor cannot come sooner (Little's law).
    """
    rounds = float(max(tokens - 1, 0))
    busy = k * np.eye(n, 2 * n) + rounds * m * np.eye(n, 2 * n, n)
    whole = np.repeat([1.0, rounds], n)[None]
    hop_busy = float((k * hops_p + rounds * m * hops_d).max()) if len(hops_p) else 0.0
    constants = np.concatenate([np.zeros(n), [float(hops_p.sum() + rounds * hops_d.sum()), hop_busy]])
    forms = np.concatenate([busy, whole, np.zeros((1, 2 * n))])
    return Terms(np.zeros(2 * n), 0.0, (Maximum(1.0, forms, constants),))


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
    _sequences: list[tuple[int, ...]] = field(default_factory=list)
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
        """Return device sequences without empty stages, one of each kind of interchangeable ones."""
        if not self._sequences:
            self._sequences.extend(self._find_sequences())
        return self._sequences

    def _find_sequences(self) -> list[tuple[int, ...]]:
        problem, n_layers = self.problem, self.problem.memory_bytes.shape[0]
        n_most = min(n_layers, self.goal.max_devices or n_layers)
        seen: dict[object, tuple[int, ...]] = {}
        kinds: dict[object, int] = {}
        alike = [kinds.setdefault(self.kind_of(device), len(kinds)) for device in range(len(problem.devices))]
        hops: dict[object, int] = {}
        apart = [
            [hops.setdefault(self._hop(a, b), len(hops)) for b in range(len(alike))]
            for a in range(len(alike))
        ]
        for order in problem.orders:
            for devices in self._subsets(order, alike):
                if len(devices) <= n_most and self._is_priced(devices):
                    after = devices[1:] + devices[:1]
                    pairs = tuple(apart[a][b] for a, b in zip(devices, after, strict=True))
                    if self.goal.formula != "llmpq" or len(devices) == 1:
                        pairs = pairs[:-1]
                    seen.setdefault((tuple(alike[device] for device in devices), pairs), devices)
        return sorted(seen.values(), key=lambda devices: (-len(devices), devices))

    def _is_priced(self, devices: tuple[int, ...]) -> bool:
        """Whether the devices' prices are known, where they matter."""
        if "cost" not in self.goal.quantities or self.quality_only:
            return True
        prices = self.problem.price_usd_per_h
        return prices is not None and all(prices[device] is not None for device in devices)

    def _subsets(self, order: tuple[int, ...], alike: list[int]) -> Iterator[tuple[int, ...]]:
        """Yield what may be left of an order without its unused devices.

        Of more than ``MAX_SUBSET_DEVICES`` whole runs of like devices are used or not.
        """
        if not self.problem.allow_empty:
            yield order
            return
        parts: list[tuple[int, ...]] = [(device,) for device in order]
        if len(order) > MAX_SUBSET_DEVICES:
            parts = [tuple(run) for _, run in itertools.groupby(order, key=lambda device: alike[device])]
        if len(parts) > MAX_SUBSET_DEVICES:
            yield order
            return
        for mask in range(1, 1 << len(parts)):
            yield tuple(device for i, part in enumerate(parts) if mask >> i & 1 for device in part)

    def _hop(self, a: int, b: int) -> object:
        """Return what makes two transfers equal."""
        problem = self.problem
        return tuple(problem.hop_prefill_s[:, a, b]), tuple(problem.hop_decode_s[:, a, b])

    def kind_of(self, device: int) -> object:
        """Return what makes two devices equal, transfers apart."""
        problem = self.problem
        prices = problem.price_usd_per_h if "cost" in self.goal.quantities else None
        price = None if prices is None else prices[device]
        return problem.device_types[device], float(problem.capacity_bytes[device]), price

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
            terms = self._quantity(name, devices, p, d, joules_fixed)
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
        problem, energy, index = self.problem, self.problem.energy, list(devices)
        if energy is None:
            raise ValueError("the problem has no energy tables")
        k, m = self._n_micro_batches(p, d)
        m *= problem.output_tokens - 1
        return (
            k * energy.first_prefill_j[p, index] + m * energy.first_decode_j[d, index],
            k * energy.last_prefill_j[p, index] + m * energy.last_decode_j[d, index],
        )

    def _n_micro_batches(self, p: int, d: int) -> tuple[int, int]:
        problem = self.problem
        return (
            math.ceil(problem.batch / problem.prefill_micro_batches[p]),
            math.ceil(problem.batch / problem.decode_micro_batches[d]),
        )

    def _energy(self, devices: tuple[int, ...], p: int, d: int) -> tuple[Array, float]:
        """Return (n, L, K) dynamic joules of the job, and those of embedding, head and transfers."""
        problem, energy = self.problem, self.problem.energy
        if energy is None:
            raise ValueError("the problem has no energy tables")
        k = problem.n_prefill_passes(problem.prefill_micro_batches[p])
        m = problem.n_decode_passes(problem.decode_micro_batches[d]) * (problem.output_tokens - 1)
        index, first, last = list(devices), devices[0], devices[-1]
        fixed = k * (energy.first_prefill_j[p, first] + energy.last_prefill_j[p, last])
        fixed += m * (energy.first_decode_j[d, first] + energy.last_decode_j[d, last])
        for a, b in itertools.pairwise(devices):
            fixed += k * energy.hop_prefill_j[p, a, b] + m * energy.hop_decode_j[d, a, b]
        return k * energy.prefill_j[p, index] + m * energy.decode_j[d, index], float(fixed)

    def _quantity(
        self, name: Objective, devices: tuple[int, ...], p: int, d: int, joules_fixed: float
    ) -> Terms:
        """Return the part of a quantity that the stage times decide, with its constants."""
        problem, n = self.problem, len(devices)
        k = problem.n_prefill_passes(problem.prefill_micro_batches[p])
        m = problem.n_decode_passes(problem.decode_micro_batches[d])
        hops_p, hops_d = problem.prefill_hops_s(devices, p), problem.decode_hops_s(devices, d)
        if name == "time":
            return self._terms(devices, p, d)
        if name == "ttft":
            return ttft_terms(n, hops_p, k)
        if name == "tpot":
            return tpot_terms(n, hops_d, m)
        if name == "throughput":
            return period_terms(n, hops_p, hops_d, k, m, problem.output_tokens)
        drain = self.goal.formula == "makespan"
        whole = round_terms(n, hops_p, hops_d, k, m, problem.output_tokens, drain=drain)
        n_tokens = problem.batch * problem.output_tokens
        if name == "energy":
            assert problem.energy is not None
            static_w = float(problem.energy.static_w[list(devices)].sum())
            return whole.scaled(static_w / n_tokens, joules_fixed / n_tokens)
        assert problem.price_usd_per_h is not None
        usd_per_h = sum(problem.price_usd_per_h[device] or 0.0 for device in devices)
        return whole.scaled(usd_per_h / 3600 * 1e6 / n_tokens)

    def _terms(self, devices: tuple[int, ...], p: int, d: int) -> Terms:
        problem, goal = self.problem, self.goal
        k = problem.n_prefill_passes(problem.prefill_micro_batches[p])
        m = problem.n_decode_passes(problem.decode_micro_batches[d])
        if goal.formula != "llmpq":
            return round_terms(
                len(devices),
                problem.prefill_hops_s(devices, p),
                problem.decode_hops_s(devices, d),
                k,
                m,
                problem.output_tokens,
                drain=goal.formula == "makespan",
            )
        pairs = list(zip(devices, devices[1:] + devices[:1], strict=True))
        hops_p = np.array([problem.hop_prefill_s[p, a, b] for a, b in pairs])
        hops_d = np.array([problem.hop_decode_s[d, a, b] for a, b in pairs])
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
