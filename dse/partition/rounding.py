"""Good assignments from a relaxation: enumerate its fractional layers, then improve layer by layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dse.partition.labels import Found
from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import Relaxed, stage_of_layers

MAX_COMBINATIONS = 2048
MAX_MOVES = 200


class CutEvaluator:
    """Evaluates assignments of one cut in bulk.

    ``totals`` of an assignment are (2n) stage times, (n) stage memories, the penalty and the (E) extra costs,
    all additive in layers.
    """

    def __init__(self, lane: Lane, cut: NDArray[np.int64], max_penalty: float | None) -> None:
        self.lane = lane
        self.max_penalty = max_penalty
        self.stage = stage_of_layers(cut)
        n, n_layers, n_choices = lane.n, *lane.memory.shape
        self.cost = np.zeros((n_layers, n_choices, 3 * n + 1 + len(lane.extra)))
        layers = np.arange(n_layers)
        self.cost[layers, :, self.stage] = lane.prefill_s[self.stage, layers]
        self.cost[layers, :, n + self.stage] = lane.decode_s[self.stage, layers]
        self.cost[layers, :, 2 * n + self.stage] = lane.memory
        self.cost[:, :, 3 * n] = lane.penalty
        self.cost[:, :, 3 * n + 1 :] = np.moveaxis(lane.extra[:, self.stage, layers], 0, -1)

    def totals(self, choices: NDArray[np.int64]) -> Array:
        """(..., 3n + 1 + E) totals of assignments (..., L)."""
        return self.cost[np.arange(len(self.stage)), choices].sum(axis=-2)

    def score(self, totals: Array) -> tuple[Array, Array]:
        """Return (violation, value) of totals (..., 3n + 1 + E); violation is relative, 0 if feasible."""
        n = self.lane.n
        x, extra = totals[..., : 2 * n] + self.lane.fixed, totals[..., 3 * n + 1 :]
        value = self.lane.terms.value(x)
        value = value + self.lane.theta * totals[..., 3 * n] + extra @ self.lane.extra_weight
        over = np.maximum(totals[..., 2 * n : 3 * n] - self.lane.room, 0.0)
        violation = (over / np.maximum(np.abs(self.lane.room), 1.0)).sum(axis=-1)
        if self.max_penalty is not None:
            excess = np.maximum(totals[..., 3 * n] - self.max_penalty, 0.0)
            violation = violation + excess / max(abs(self.max_penalty), 1e-300)
        for bound in self.lane.bounds:
            excess = np.maximum(bound.terms.value(x) + extra @ bound.extra_weight - bound.limit, 0.0)
            violation = violation + excess / (abs(bound.limit) or 1.0)
        return violation, value


def round_relaxed(
    lane: Lane,
    cut: NDArray[np.int64],
    usable: NDArray[np.bool_],
    relaxed: Relaxed,
    max_penalty: float | None,
) -> Found | None:
    """Return a feasible assignment near the relaxation, or None where none was met."""
    evaluator = CutEvaluator(lane, cut, max_penalty)
    choices = _combinations(relaxed, lane.n_layers)
    violation, value = evaluator.score(evaluator.totals(choices))
    best = choices[int(np.lexsort((value, violation))[0])]
    best = _improve(evaluator, best, usable)
    totals = evaluator.totals(best)
    violation, value = evaluator.score(totals)
    if violation > 0:
        return None
    return Found(best, float(value), float(totals[3 * lane.n]))


def _combinations(relaxed: Relaxed, n_layers: int) -> NDArray[np.int64]:
    """Return (M, L): the relaxation's choices, with all combinations of the most fractional layers."""
    options: list[NDArray[np.int64]] = []
    for layer in range(n_layers):
        here = relaxed.layer == layer
        order = np.argsort(-relaxed.weight[here], kind="stable")
        options.append(relaxed.choice[here][order])
    base = np.array([ks[0] for ks in options])
    count, rows = 1, base[None]
    for layer in sorted(range(n_layers), key=lambda i: (-len(options[i]), i)):
        if len(options[layer]) == 1 or count * len(options[layer]) > MAX_COMBINATIONS:
            break
        repeated = np.repeat(rows, len(options[layer]), axis=0)
        repeated[:, layer] = np.tile(options[layer], count)
        rows, count = repeated, count * len(options[layer])
    return rows


def _improve(
    evaluator: CutEvaluator, choices: NDArray[np.int64], usable: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Change single layers while violation, then value, goes down."""
    layers = np.arange(len(choices))
    current = choices.copy()
    totals = evaluator.totals(current)
    score = tuple(float(part) for part in evaluator.score(totals))
    for _ in range(MAX_MOVES):
        moved = totals + evaluator.cost - evaluator.cost[layers, current][:, None, :]
        violation, value = evaluator.score(moved)
        value = np.where(usable, value, np.inf)
        violation = np.where(usable, violation, np.inf)
        best = int(np.lexsort((value.ravel(), violation.ravel()))[0])
        candidate = (float(violation.flat[best]), float(value.flat[best]))
        if not candidate < (score[0], score[1] - 1e-12 * abs(score[1])):
            break
        layer, choice = divmod(best, usable.shape[1])
        current[layer] = choice
        totals = evaluator.totals(current)
        score = tuple(float(part) for part in evaluator.score(totals))
    return current
