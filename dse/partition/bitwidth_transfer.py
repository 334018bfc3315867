"""LLM-PQ's bitwidth-transfer heuristic (arXiv 2403.01136), as published: a descent from AdaBits.

The stage with most seconds, the straggler, gives layers to a faster one, a pioneer. Where the pioneer's own
layer has more bits than those it takes, that precision goes to the straggler in exchange, so that the memory
of both stays about what it was ("one 16 for two 8"); of equal bits there is nothing to exchange and the layer
just moves over. Layers stay in order: a stage is a list of precisions, and all boundaries between the two
stages move. It ends in a local optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dse.partition.objective import objective_s, ring_floor_s, stage_use, violations
from dse.partition.problem import Arrangement, Array, Goal, PipelineProblem

# (bits of the pioneer's layer, bits of the straggler's layers, how many of those), tried in this order
CONVERSIONS = ((16, 8, 2), (8, 8, 1), (16, 4, 4), (8, 4, 2), (4, 4, 1))

Slots = tuple[int, ...]


@dataclass(frozen=True)
class LayerPrecisions:
    """What the choices of a problem are, where each gives a whole layer one precision.

    Attributes:
        kinds: (L, K) the precision of each choice, as an index; no two choices of a layer have the same.
        bits: (Q) weight bits of each precision.
    """

    kinds: NDArray[np.int64]
    bits: tuple[int, ...]

    @classmethod
    def alike(cls, n_layers: int, bits: Sequence[int]) -> LayerPrecisions:
        """Return those of a problem whose layers all have the choices ``bits``."""
        return cls(np.tile(np.arange(len(bits)), (n_layers, 1)), tuple(bits))

    def penalties(self, problem: PipelineProblem, device: int) -> Array:
        """Return (L, Q) penalties, infinite where a layer has no such choice on the device."""
        found = np.full((len(self.kinds), len(self.bits)), np.inf)
        layer, choice = np.nonzero(problem.allowed[device])
        found[layer, self.kinds[layer, choice]] = problem.penalty[layer, choice]
        return found

    def choices(self, problem: PipelineProblem, device: int, first: int, slots: Slots) -> list[int]:
        """Return the choices that give layers from ``first`` on these precisions."""
        able = problem.allowed[device]
        return [
            int(np.flatnonzero((self.kinds[layer] == kind) & able[layer])[0])
            for layer, kind in enumerate(slots, start=first)
        ]


def bitwidth_transfer(
    problem: PipelineProblem, goal: Goal, start: Arrangement, precisions: LayerPrecisions
) -> Arrangement:
    """Return where the descent from an arrangement ends.

    A move counts if it lowers the goal's objective and fits; bounds of the goal are ignored, as the method
    has none. The first pioneer, fastest first, with such a move wins, with its best conversion.
    """
    free = Goal(goal.formula, theta_s=goal.theta_s, objective=goal.objective)
    current, value = start, objective_s(problem, free, start)
    while True:
        for pioneer in _pioneers(problem, current):
            moves = [
                plan
                for plan in transfers(problem, current, straggler_of(problem, current), pioneer, precisions)
                if not violations(problem, free, plan)
            ]
            best = min(moves, key=lambda plan: objective_s(problem, free, plan), default=current)
            if objective_s(problem, free, best) < value:
                current, value = best, objective_s(problem, free, best)
                break
        else:
            return current


def straggler_of(problem: PipelineProblem, plan: Arrangement) -> int:
    """Return the stage with the largest score."""
    return int(np.argmax(_scores(problem, plan)))


def _pioneers(problem: PipelineProblem, plan: Arrangement) -> list[int]:
    """Return the other stages, fastest first."""
    straggler = straggler_of(problem, plan)
    return [int(s) for s in np.argsort(_scores(problem, plan), kind="stable") if s != straggler]


def _scores(problem: PipelineProblem, plan: Arrangement) -> Array:
    """Return (S,) t_j = Tp_j (m_p - 1) + (n - 1)(m_d - 1) Td_j, each T_j at least its transfer."""
    use, floors = stage_use(problem, plan), ring_floor_s(problem, plan)
    prefill, decode = np.maximum(use.prefill_s, floors[0]), np.maximum(use.decode_s, floors[1])
    m_p = problem.n_prefill_passes(plan.prefill_micro_batch)
    m_d = problem.n_decode_passes(plan.decode_micro_batch)
    return prefill * (m_p - 1) + (problem.output_tokens - 1) * (m_d - 1) * decode


def transfers(
    problem: PipelineProblem, plan: Arrangement, straggler: int, pioneer: int, precisions: LayerPrecisions
) -> Iterator[Arrangement]:
    """Yield for every conversion that both stages have the layers for the move of least penalty."""
    stages = [
        tuple(int(precisions.kinds[layer, plan.choices[layer]]) for layer in range(first, end))
        for _, first, end in plan.stages
    ]
    for own_bits, given_bits, n in CONVERSIONS:
        own = [kind for kind in dict.fromkeys(stages[pioneer]) if precisions.bits[kind] == own_bits]
        given = [kind for kind in dict.fromkeys(stages[straggler]) if precisions.bits[kind] == given_bits]
        exchanged: list[int | None] = [None] * bool(own) if own_bits == given_bits else list(own)
        for back in exchanged:
            for kind in given:
                moved = _Transfer(problem, plan, precisions, straggler, pioneer, kind, n, back).best(stages)
                if moved is not None:
                    yield moved


@dataclass(frozen=True)
class _Transfer:
    """``n`` layers of precision ``kind`` go to the pioneer; ``back`` is the precision it gives for them."""

    problem: PipelineProblem
    plan: Arrangement
    precisions: LayerPrecisions
    straggler: int
    pioneer: int
    kind: int
    n: int
    back: int | None

    def best(self, stages: list[Slots]) -> Arrangement | None:
        """Return the least penalty over the pioneer's layer, the straggler's and where they are put.

        The penalties of the two stages add up, so that each is minimised by itself: the same minimum.
        """
        n_moved = self.n - (self.back is not None)
        sizes = [len(slots) for slots in stages]
        sizes[self.straggler] -= n_moved
        sizes[self.pioneer] += n_moved
        if sizes[self.straggler] < 1:
            return None
        ends = np.cumsum(sizes)
        costs = [
            self.precisions.penalties(self.problem, device)[end - size : end]
            for (device, _, _), size, end in zip(self.plan.stages, sizes, ends, strict=True)
        ]
        new: list[Slots | None] = list(stages)
        new[self.straggler] = self._given(stages[self.straggler], costs[self.straggler])
        new[self.pioneer] = self._taken(stages[self.pioneer], costs[self.pioneer])
        bounds, choices = [], []
        for (device, _, _), slots, size, end, cost in zip(
            self.plan.stages, new, sizes, ends, costs, strict=True
        ):
            if slots is None or not np.isfinite(cost[np.arange(size), list(slots)]).all():
                return None
            bounds.append((device, int(end - size), int(end)))
            choices += self.precisions.choices(self.problem, device, int(end - size), slots)
        return replace(self.plan, stages=tuple(bounds), choices=tuple(choices))

    def _given(self, slots: Slots, costs: Array) -> Slots | None:
        """Return the straggler's layers without ``n`` of them; what comes back takes the place of the first.

        Dynamic programming over (layers seen, layers given), as all combinations would be too many.
        """
        best: dict[int, tuple[float, Slots]] = {0: (0.0, ())}
        for slot in slots:
            following: dict[int, tuple[float, Slots]] = {}
            for n_given, (cost, kept) in best.items():
                options: list[tuple[int, Slots]] = [(n_given, (slot,))]
                if slot == self.kind and n_given < self.n:
                    in_place = () if self.back is None or n_given else (self.back,)
                    options.append((n_given + 1, in_place))
                for count, added in options:
                    if len(kept) + len(added) > len(costs):
                        continue
                    total = cost + sum(costs[len(kept), kind] for kind in added)
                    if count not in following or total < following[count][0]:
                        following[count] = (total, kept + added)
            best = following
        return best[self.n][1] if self.n in best else None

    def _taken(self, slots: Slots, costs: Array) -> Slots | None:
        """Return the pioneer's layers, its own one gone where it is exchanged, with the new ones put in."""
        owns = [i for i, slot in enumerate(slots) if slot == self.back]
        rests = [slots[:i] + slots[i + 1 :] for i in owns] if self.back is not None else [slots]
        options = [
            rest[:at] + (self.kind,) * self.n + rest[at:]
            for rest in dict.fromkeys(rests)
            for at in range(len(rest) + 1)
        ]
        if not options:
            return None
        totals = costs[np.arange(len(costs)), np.array(options)].sum(axis=1)
        return options[int(totals.argmin())]
