"""Placement of layers on nodes for the largest flow of tokens: the problem of Helix (ASPLOS 2025).

Every node holds some consecutive layers, and then serves them at a measured rate that need not fall with
their number. With ample links a placement carries the least total rate over the layers. A tiered dynamic
program finds placements, integer programming improves them, and every answer has a proven upper bound.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

N_MIXTURES = 41
SCALE = 1000.0  # rates are whole numbers of 1 / SCALE tokens/s in the integer program


@dataclass(frozen=True)
class NodeKind:
    """Equal nodes: how many, and tokens/s by the number of layers that one holds."""

    name: str
    count: int
    rate_by_layers: Mapping[int, float]


@dataclass(frozen=True)
class Placement:
    """An answer with its proof.

    Attributes:
        nodes: (kind, first layer, last layer + 1), in the order of the layers.
        value, bound: tokens/s, bound from above; gap_frac: (bound - value) / value.
    """

    nodes: tuple[tuple[str, int, int], ...]
    value: float
    bound: float
    gap_frac: float
    status: Literal["optimal", "feasible", "infeasible"]
    time_s: float


def flow_of(kinds: Sequence[NodeKind], n_layers: int, nodes: Sequence[tuple[str, int, int]]) -> float:
    """Return the least total rate over the layers, tokens/s."""
    rates = {kind.name: kind.rate_by_layers for kind in kinds}
    total = np.zeros(n_layers)
    for name, first, end in nodes:
        total[first:end] += rates[name][end - first]
    return float(total.min())


def flow_bound(kinds: Sequence[NodeKind], n_layers: int) -> float:
    """Return a flow that no placement exceeds, tokens/s.

    To carry F, the rates over every layer sum to F at least. Let f map shares r = rate / F such that shares
    which sum to 1 have f's which sum to 1. Then sum_i max_k k f(rate_i(k) / F) >= L is necessary. Taken are
    min(r, 1) (no node adds more than F to any layer), 1 for r >= 1 and 1/2 below (a layer without a node that
    carries all needs two), and their mixtures; f falls with F, so bisection finds the largest F.
    """
    mixtures = np.linspace(0, 1, N_MIXTURES)[:, None]

    def holds(flow: float) -> bool:
        served = np.zeros(N_MIXTURES)
        for kind in kinds:
            k = np.array(list(kind.rate_by_layers))
            share = np.array(list(kind.rate_by_layers.values())) / flow
            f = mixtures * np.minimum(share, 1) + (1 - mixtures) * np.where(share >= 1, 1.0, 0.5)
            served += kind.count * (k * f).max(axis=1)
        return bool((served >= n_layers * (1 - 1e-12)).all())

    low, high = 0.0, sum(kind.count * max(kind.rate_by_layers.values()) for kind in kinds)
    if holds(high):
        return high
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def place(kinds: Sequence[NodeKind], n_layers: int, *, time_limit_s: float = 5.0) -> Placement:
    """Return a placement of the largest flow found within the limit, and a bound on every placement.

    Not all nodes have to be used. With a limit of 0 the tiered program alone is run.
    """
    began = time.monotonic()
    bound = flow_bound(kinds, n_layers)
    nodes = tiered(kinds, n_layers)
    value = flow_of(kinds, n_layers, nodes) if nodes else 0.0
    if time_limit_s > 0 and bound > value * (1 + 1e-9):
        nodes, value, bound = _by_integer_program(kinds, n_layers, nodes, value, bound, time_limit_s)
    gap = (bound - value) / value if value > 0 else math.inf
    status: Literal["optimal", "feasible", "infeasible"] = "optimal" if gap <= 1e-6 else "feasible"
    if not nodes:
        return Placement((), 0.0, bound, 0.0, "infeasible", time.monotonic() - began)
    return Placement(tuple(nodes), value, bound, max(gap, 0.0), status, time.monotonic() - began)


def tiered(kinds: Sequence[NodeKind], n_layers: int) -> list[tuple[str, int, int]]:
    """Return the best placement in which the nodes of a tier hold the same layers, by dynamic programming.

    State: layers that are placed and how many nodes of each kind are used; value: least rate so far.
    """
    shape = tuple(kind.count + 1 for kind in kinds)
    best = np.full((n_layers + 1, *shape), -np.inf)
    best[(0, *(0 for _ in kinds))] = np.inf
    came: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}
    longest = max(max(kind.rate_by_layers) for kind in kinds)
    tiers = [
        (k, used, sum(n * kind.rate_by_layers.get(k, 0.0) for n, kind in zip(used, kinds, strict=True)))
        for k in range(1, longest + 1)
        for used in itertools.product(*(range(n) for n in shape))
        if any(used) and all(n == 0 or k in kind.rate_by_layers for n, kind in zip(used, kinds, strict=True))
    ]
    for end in range(1, n_layers + 1):
        for k, used, rate in tiers:
            if k > end:
                continue
            target: Any = (end, *(slice(n, None) for n in used))
            source: Any = (end - k, *(slice(0, size - n) for n, size in zip(used, shape, strict=True)))
            value = np.minimum(best[source], rate)
            better = value > best[target]
            if better.any():
                best[target][better] = value[better]
                for offset in np.argwhere(better):
                    counts = tuple(int(o) + n for o, n in zip(offset, used, strict=True))
                    came[(end, *counts)] = (k, used)
    final = np.unravel_index(int(np.argmax(best[n_layers])), shape)
    if not np.isfinite(best[(n_layers, *final)]):
        return []
    nodes: list[tuple[str, int, int]] = []
    end, counts = n_layers, tuple(int(c) for c in final)
    while end > 0:
        k, used = came[(end, *counts)]
        for n, kind in zip(used, kinds, strict=True):
            nodes += [(kind.name, end - k, end)] * n
        end, counts = end - k, tuple(c - n for c, n in zip(counts, used, strict=True))
    return nodes[::-1]


def _by_integer_program(
    kinds: Sequence[NodeKind],
    n_layers: int,
    nodes: list[tuple[str, int, int]],
    value: float,
    bound: float,
    time_limit_s: float,
) -> tuple[list[tuple[str, int, int]], float, float]:
    """Improve a placement and its bound with CP-SAT over how many nodes of a kind hold which interval.

    Rates are rounded up for the bound, so it stays valid; the placement is priced with the true rates.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    columns = [
        (kind, k, first, math.ceil(rate * SCALE))
        for kind in kinds
        for k, rate in sorted(kind.rate_by_layers.items())
        for first in range(n_layers - k + 1)
    ]
    uses = [model.new_int_var(0, kind.count, "") for kind, _, _, _ in columns]
    flow = model.new_int_var(math.floor(value * SCALE), math.ceil(bound * SCALE), "flow")
    for kind in kinds:
        model.add(
            sum(use for use, column in zip(uses, columns, strict=True) if column[0] is kind) <= kind.count
        )
    for layer in range(n_layers):
        held = [
            rate * use
            for use, (_, k, first, rate) in zip(uses, columns, strict=True)
            if first <= layer < first + k
        ]
        model.add(sum(held) >= flow)
    for use, (kind, k, first, _) in zip(uses, columns, strict=True):
        model.add_hint(use, sum(node == (kind.name, first, first + k) for node in nodes))
    model.maximize(flow)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found = [
            (kind.name, first, first + k)
            for use, (kind, k, first, _) in zip(uses, columns, strict=True)
            for _ in range(solver.value(use))
        ]
        better = flow_of(kinds, n_layers, found)
        if better > value:
            nodes, value = sorted(found, key=lambda node: node[1:]), better
        bound = min(bound, solver.best_objective_bound / SCALE)
    return nodes, value, max(bound, value)
