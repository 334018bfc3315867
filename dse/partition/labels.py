"""Exact search of one cut: all combinations whose Lagrangian cost stays below what is still to be won.

Given multipliers, every combination of choices costs at least ``bound + sum of reduced costs``. So an
improving one has reduced costs below ``incumbent - bound``; per stage, the combinations that pass are
enumerated layer by layer as labels (prefill, decode, memory, penalty, extra costs), and a label that another
one beats in all of them is dropped. Then the stages' label sets are joined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import Relaxed, layer_costs, stage_of_layers

N_STRONG = 48  # labels that all others are compared with; a full comparison would cost more than it saves


class TooManyLabels(Exception):
    """The search of the cut would exceed its label limit: branch instead."""


@dataclass(frozen=True)
class Found:
    """An assignment of a cut: choices (L), value of the objective, penalty."""

    choices: NDArray[np.int64]
    value: float
    penalty: float


@dataclass
class _Labels:
    """Labels of a stage: reduced (M); cost (M, 4 + E): prefill, decode, memory, penalty, extra; history."""

    reduced: Array
    cost: Array
    choices: NDArray[np.int16]


def search_cut(
    lane: Lane,
    cut: NDArray[np.int64],
    usable: NDArray[np.bool_],
    relaxed: Relaxed,
    max_penalty: float | None,
    limit: float,
    max_labels: int,
) -> Found | None:
    """Return the best assignment with a value below ``limit``, or None if there is none.

    Raises:
        TooManyLabels: more than ``max_labels`` labels in a stage, or pairs in a join.
    """
    stage = stage_of_layers(cut)
    costs = np.where(usable, layer_costs(lane, relaxed.multipliers)[stage, np.arange(lane.n_layers)], np.inf)
    reduced = costs - costs.min(axis=1, keepdims=True)
    gap = limit - relaxed.bound
    if gap <= 0:
        return None
    # a rounding error must not cut off an improving combination
    gap += 1e-12 * abs(limit)
    counts_penalty = max_penalty is not None or lane.theta > 0
    least_penalty = np.where(usable, lane.penalty, np.inf).min(axis=1)
    spare = np.inf if max_penalty is None else max_penalty - least_penalty.sum()
    if spare < -1e-9 * abs(max_penalty or 0.0):
        return None
    sets = [
        _stage_labels(lane, s, range(cut[s], cut[s + 1]), reduced, gap, counts_penalty, spare, max_labels)
        for s in range(lane.n)
    ]
    if any(labels is None for labels in sets):
        return None
    return _join(lane, [labels for labels in sets if labels is not None], gap, limit, max_penalty, max_labels)


def _stage_labels(
    lane: Lane,
    stage: int,
    layers: range,
    reduced: Array,
    gap: float,
    counts_penalty: bool,
    spare_penalty: float,
    max_labels: int,
) -> _Labels | None:
    """Enumerate one stage; None if nothing passes."""
    open_layers = list(layers)
    least_memory = {
        layer: lane.memory[layer, reduced[layer] <= gap].min(initial=np.inf) for layer in open_layers
    }
    memory_rest = sum(least_memory.values())
    room = float(lane.room[stage])
    worst = sum(lane.memory[layer, reduced[layer] <= gap].max(initial=0.0) for layer in open_layers)
    counts_memory = worst > room
    least_penalty = {layer: lane.penalty[layer, np.isfinite(reduced[layer])].min() for layer in open_layers}
    labels = _Labels(np.zeros(1), np.zeros((1, 4 + len(lane.extra))), np.zeros((1, 0), np.int16))
    extra_penalty = 0.0
    for layer in open_layers:
        ks = np.flatnonzero(reduced[layer] <= gap)
        if len(ks) == 0:
            return None
        step = np.stack(
            [
                lane.prefill_s[stage, layer, ks],
                lane.decode_s[stage, layer, ks],
                lane.memory[layer, ks],
                lane.penalty[layer, ks],
                *lane.extra[:, stage, layer, ks],
            ],
            axis=1,
        )
        total = labels.reduced[:, None] + reduced[layer, ks][None, :]
        keep = total <= gap
        memory_rest -= least_memory[layer]
        if counts_memory:
            memory = labels.cost[:, 2, None] + step[None, :, 2]
            keep &= memory + memory_rest <= room * (1 + 1e-12)
        extra_penalty += least_penalty[layer]
        if np.isfinite(spare_penalty):
            penalty = labels.cost[:, 3, None] + step[None, :, 3]
            keep &= penalty - extra_penalty <= spare_penalty + 1e-9 * abs(spare_penalty)
        rows, cols = np.nonzero(keep)
        if len(rows) == 0:
            return None
        if len(rows) > 8 * max_labels:
            raise TooManyLabels
        cost = labels.cost[rows] + step[cols]
        dims = [0, 1] + ([2] if counts_memory else []) + ([3] if counts_penalty else [])
        dims += range(4, cost.shape[1])
        best = strong_filter(total[rows, cols], cost[:, dims])
        if len(best) > max_labels:
            raise TooManyLabels
        rows, cols = rows[best], cols[best]
        labels = _Labels(
            total[rows, cols],
            cost[best],
            np.concatenate([labels.choices[rows], ks[cols][:, None].astype(np.int16)], axis=1),
        )
    return labels


def strong_filter(reduced: Array, cost: Array) -> NDArray[np.int64]:
    """Return indices, sorted by reduced cost, of labels that no strong label beats in every cost.

    Equal labels leave the first. Rounding noise of sums in another order counts as equal.
    """
    order = np.lexsort((*cost.T[::-1], reduced))
    costs = cost[order]
    # layers of equal shape make the same totals by permutation: of those keep the least last column
    scale = np.abs(costs).max(axis=0)
    keys = np.round(costs / np.where(scale > 0, scale, 1.0), 11)
    by_key = np.lexsort(keys.T[::-1])
    sorted_keys = keys[by_key]
    first = np.ones(len(by_key), dtype=bool)
    if cost.shape[1] > 1:
        first[1:] = (sorted_keys[1:, :-1] != sorted_keys[:-1, :-1]).any(axis=1)
    else:
        first[1:] = False
    keep = np.zeros(len(order), dtype=bool)
    keep[by_key[first]] = True
    order, keys = order[keep], keys[keep]
    alive = np.ones(len(order), dtype=bool)
    i = 0
    for _ in range(N_STRONG):
        while i < len(order) and not alive[i]:
            i += 1
        if i >= len(order):
            break
        beaten = np.ones(len(order), dtype=bool)
        for column in range(keys.shape[1]):
            beaten &= keys[:, column] >= keys[i, column]
        beaten[i] = False
        alive &= ~beaten
        i += 1
    return order[alive]


def _join(
    lane: Lane, sets: list[_Labels], gap: float, limit: float, max_penalty: float | None, max_labels: int
) -> Found | None:
    """Combine one label of every stage; the stages with few labels first."""
    order = sorted(range(lane.n), key=lambda s: (len(sets[s].reduced), s))
    smallest = {s: float(sets[s].reduced.min()) for s in order}
    rest = sum(smallest.values())
    reduced = np.zeros(1)
    picks = np.zeros((1, 0), np.int64)
    for s in order:
        rest -= smallest[s]
        by_reduced = np.argsort(sets[s].reduced, kind="stable")
        values = sets[s].reduced[by_reduced]
        n_fit = np.searchsorted(values, gap - rest - reduced, side="right")
        if n_fit.sum() > 64 * max_labels:
            raise TooManyLabels
        rows = np.repeat(np.arange(len(reduced)), n_fit)
        cols = np.arange(n_fit.sum()) - np.repeat(np.cumsum(n_fit) - n_fit, n_fit)
        reduced = reduced[rows] + values[cols]
        picks = np.concatenate([picks[rows], by_reduced[cols][:, None]], axis=1)
    if len(picks) == 0:
        return None
    x = np.empty((len(picks), 2 * lane.n))
    penalty, extra = np.zeros(len(picks)), np.zeros((len(picks), len(lane.extra)))
    fits = np.ones(len(picks), dtype=bool)
    for column, s in enumerate(order):
        cost = sets[s].cost[picks[:, column]]
        x[:, s], x[:, lane.n + s] = cost[:, 0], cost[:, 1]
        penalty += cost[:, 3]
        extra += cost[:, 4:]
        fits &= cost[:, 2] <= lane.room[s]
    if max_penalty is not None:
        fits &= penalty <= max_penalty
    for bound in lane.bounds:
        fits &= bound.terms.value(x + lane.fixed) + extra @ bound.extra_weight <= bound.limit
    value = lane.terms.value(x + lane.fixed) + lane.theta * penalty + extra @ lane.extra_weight
    value = np.where(fits, value, np.inf)
    best = int(np.lexsort((penalty, value))[0])
    if not value[best] < limit:
        return None
    chosen = [np.empty(0, np.int64)] * lane.n
    for column, s in enumerate(order):
        chosen[s] = sets[s].choices[picks[best, column]].astype(np.int64)
    return Found(np.concatenate(chosen), float(value[best]), float(penalty[best]))
