"""Exact allocation under one budget: the multiple-choice knapsack of LLM-MQ and its relatives.

Minimise the summed penalty with one choice per unit and the summed size within a budget (METHODS of the
literature solve it with an integer program). Both routines are dynamic programs over units whose labels are
(size, penalty) pairs; a label that is nowhere better than another is dropped, so the result is exact.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REL_TOL = 1e-12  # differences below this share of the total are rounding, not improvement
N_BISECTIONS = 200


@dataclass(frozen=True)
class Allocation:
    """One choice per unit, with its proof.

    Attributes:
        choices: (U) indices, empty where nothing fits.
        penalty, size: their sums; None where nothing fits.
        bound: proven lower bound of the penalty within the budget; gap_frac: (penalty - bound) / penalty.
        status: "optimal" where the gap is closed; "infeasible" with ``missing_size`` above the budget.
    """

    choices: tuple[int, ...]
    penalty: float | None
    size: float | None
    bound: float | None
    gap_frac: float | None
    status: Literal["optimal", "feasible", "infeasible"]
    time_s: float
    missing_size: float = 0.0


@dataclass
class _Labels:
    """Partial allocations sorted by size, penalty strictly falling; history as (parent, choice) per unit."""

    size: Array
    penalty: Array
    parents: list[NDArray[np.int64]]
    picks: list[NDArray[np.int64]]

    def extend(
        self, sizes: Array, penalties: Array, choices: NDArray[np.int64], keep: NDArray[np.bool_]
    ) -> None:
        """Add a unit: (M, K) candidates of which ``keep`` may stay, dominated ones leave."""
        rows, cols = np.nonzero(keep)
        size, penalty = sizes[rows, cols], penalties[rows, cols]
        order = np.lexsort((penalty, size))
        sorted_penalty = penalty[order]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(sorted_penalty)[:-1]])
        tolerance = REL_TOL * np.abs(sorted_penalty).max(initial=0.0)
        best = order[sorted_penalty < best_before - tolerance]
        self.size, self.penalty = size[best], penalty[best]
        self.parents.append(rows[best])
        self.picks.append(choices[cols[best]])

    def take(self, index: NDArray[np.int64]) -> None:
        """Keep only some labels of the newest unit."""
        self.size, self.penalty = self.size[index], self.penalty[index]
        self.parents[-1], self.picks[-1] = self.parents[-1][index], self.picks[-1][index]

    def choices_of(self, index: int) -> tuple[int, ...]:
        """Trace a label back to its choices."""
        chosen: list[int] = []
        for parents, picks in zip(reversed(self.parents), reversed(self.picks), strict=True):
            chosen.append(int(picks[index]))
            index = int(parents[index])
        return tuple(reversed(chosen))


def allocate(
    penalty: Array,
    size: Array,
    budget: float,
    allowed: NDArray[np.bool_] | None = None,
    *,
    max_labels: int = 1_000_000,
) -> Allocation:
    """Return the allocation of least penalty within a budget.

    Args:
        penalty, size: (U, K), any finite numbers.
        budget: largest summed size.
        allowed: (U, K) choices that exist; None for all.
        max_labels: where the exact search would need more, the best allocation found so far is returned with
            its gap (status "feasible").
    """
    began = time.monotonic()
    penalty, size, allowed = _checked(penalty, size, allowed)
    least = np.where(allowed, size, np.inf).min(axis=1).sum()
    if least > budget * (1 + REL_TOL):
        return _infeasible(float(least - budget), time.monotonic() - began)
    price, bound = _best_price(penalty, size, budget, allowed)
    start = _fitting(penalty, size, budget, allowed, price)
    incumbent, complete = _search(penalty, size, budget, allowed, price, bound, start, max_labels)
    units = np.arange(len(incumbent))
    value = float(penalty[units, incumbent].sum())
    if complete:
        bound = value
    bound = min(bound, value)
    gap = (value - bound) / abs(value) if value != bound else 0.0
    return Allocation(
        choices=tuple(int(k) for k in incumbent),
        penalty=value,
        size=float(size[units, incumbent].sum()),
        bound=bound,
        gap_frac=gap,
        status="optimal" if complete else "feasible",
        time_s=time.monotonic() - began,
    )


def allocation_front(
    penalty: Array,
    size: Array,
    allowed: NDArray[np.bool_] | None = None,
    *,
    max_size: float | None = None,
    max_labels: int | None = None,
) -> list[Allocation]:
    """Return all non-dominated (size, penalty) allocations, smallest first.

    Args:
        penalty, size: (U, K).
        allowed: (U, K) choices that exist; None for all.
        max_size: leave out larger allocations.
        max_labels: None for the exact front. Otherwise labels beyond this number are thinned on a grid of the
            penalty, of each cell the smallest stays: then for every allocation there is one in the result
            that is no larger and whose penalty is at most ``penalty - bound`` above, the same error for all
            points.
    """
    began = time.monotonic()
    penalty, size, allowed = _checked(penalty, size, allowed)
    least_after = np.append(np.cumsum(np.where(allowed, size, np.inf).min(axis=1)[::-1])[::-1], 0.0)[1:]
    limit = np.inf if max_size is None else max_size * (1 + REL_TOL)
    labels = _Labels(np.zeros(1), np.zeros(1), [], [])
    error = 0.0
    for unit in range(len(size)):
        ks = np.flatnonzero(allowed[unit])
        sizes = labels.size[:, None] + size[unit, ks]
        penalties = labels.penalty[:, None] + penalty[unit, ks]
        keep = sizes + least_after[unit] <= limit
        if not keep.any():
            return []
        labels.extend(sizes, penalties, ks, keep)
        if max_labels is not None and len(labels.size) > max_labels:
            span = float(labels.penalty[0] - labels.penalty[-1])
            cell = span / max_labels
            grid = np.floor((labels.penalty - labels.penalty[-1]) / cell).astype(np.int64)
            first = np.concatenate([[True], grid[1:] != grid[:-1]])
            labels.take(np.flatnonzero(first))
            error += cell
    elapsed = time.monotonic() - began
    return [
        Allocation(
            choices=labels.choices_of(i),
            penalty=float(labels.penalty[i]),
            size=float(labels.size[i]),
            bound=float(labels.penalty[i]) - error,
            gap_frac=error / abs(float(labels.penalty[i])) if error else 0.0,
            status="feasible" if error else "optimal",
            time_s=elapsed,
        )
        for i in range(len(labels.size))
    ]


def _checked(
    penalty: Array, size: Array, allowed: NDArray[np.bool_] | None
) -> tuple[Array, Array, NDArray[np.bool_]]:
    penalty, size = np.asarray(penalty, np.float64), np.asarray(size, np.float64)
    if penalty.ndim != 2 or penalty.shape != size.shape or penalty.size == 0:
        raise ValueError(
            f"penalty and size must have one shape (U, K), but got {penalty.shape} and {size.shape}"
        )
    if allowed is None:
        allowed = np.ones(penalty.shape, dtype=bool)
    if allowed.shape != penalty.shape:
        raise ValueError(f"allowed must have shape {penalty.shape}, but got {allowed.shape}")
    if not allowed.any(axis=1).all():
        raise ValueError(f"unit {int(np.argmin(allowed.any(axis=1)))} has no allowed choice")
    if not (np.isfinite(penalty[allowed]).all() and np.isfinite(size[allowed]).all()):
        raise ValueError("penalties and sizes must be finite")
    return penalty, size, allowed


def _infeasible(missing: float, time_s: float) -> Allocation:
    return Allocation((), None, None, None, None, "infeasible", time_s, missing)


def _cheapest(
    penalty: Array, size: Array, allowed: NDArray[np.bool_], price: float
) -> tuple[NDArray[np.int64], Array]:
    """Return (U) choices of least ``penalty + price * size``, of equals the smallest; and costs (U, K)."""
    costs = np.where(allowed, penalty + price * size, np.inf)
    least = costs.min(axis=1, keepdims=True)
    ties = costs <= least + REL_TOL * np.abs(least)
    return np.where(ties, size, np.inf).argmin(axis=1), costs


def _best_price(
    penalty: Array, size: Array, budget: float, allowed: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the multiplier of the budget and the Lagrangian bound it proves.

    The bound is concave in the price, its slope is (size of the cheapest choices - budget): bisection.
    """

    def total_size(price: float) -> float:
        chosen, _ = _cheapest(penalty, size, allowed, price)
        return float(size[np.arange(len(size)), chosen].sum())

    def bound_at(price: float) -> float:
        return float(np.where(allowed, penalty + price * size, np.inf).min(axis=1).sum()) - price * budget

    if total_size(0.0) <= budget:
        return 0.0, bound_at(0.0)
    span = np.ptp(penalty[allowed]) or 1.0
    low, high = 0.0, float(span / (np.abs(size[allowed]).max() or 1.0))
    for _ in range(N_BISECTIONS):
        if total_size(high) <= budget:
            break
        low, high = high, 2 * high
    for _ in range(N_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if total_size(middle) <= budget:
            high = middle
        else:
            low = middle
    return max(((p, bound_at(p)) for p in (low, high)), key=lambda pair: pair[1])


def _fitting(
    penalty: Array, size: Array, budget: float, allowed: NDArray[np.bool_], price: float
) -> NDArray[np.int64]:
    """Return a feasible allocation: the cheapest at the price, with its largest units at their smallest."""
    units = np.arange(len(size))
    chosen, _ = _cheapest(penalty, size, allowed, price)
    smallest = np.where(allowed, size, np.inf).argmin(axis=1)
    spared = size[units, chosen] - size[units, smallest]
    excess = float(size[units, chosen].sum()) - budget
    if excess > 0:
        largest = np.argsort(-spared, kind="stable")
        n = int(np.searchsorted(np.cumsum(spared[largest]), excess)) + 1
        chosen[largest[:n]] = smallest[largest[:n]]
    return chosen if size[units, chosen].sum() <= budget else smallest


def _search(
    penalty: Array,
    size: Array,
    budget: float,
    allowed: NDArray[np.bool_],
    price: float,
    bound: float,
    start: NDArray[np.int64],
    max_labels: int,
) -> tuple[NDArray[np.int64], bool]:
    """Return the best allocation found from a feasible one, and whether it is proven.

    The core of the problem grows unit by unit, in the order of the least reduced cost of leaving the cheapest
    choice (Pisinger, EJOR 83(2), 1995). An allocation costs the Lagrangian bound plus the reduced costs of
    its choices: labels above the incumbent leave, and the search ends where no further unit stays below it.
    """
    units = np.arange(len(size))
    chosen, costs = _cheapest(penalty, size, allowed, price)
    reduced = costs - costs.min(axis=1, keepdims=True)
    others = np.where(np.arange(size.shape[1]) == chosen[:, None], np.inf, reduced).min(axis=1)
    more_size = size - size[units, chosen][:, None]
    more_penalty = penalty - penalty[units, chosen][:, None]
    room = budget + REL_TOL * abs(budget) - float(size[units, chosen].sum())
    base = float(penalty[units, chosen].sum())
    limit = float(penalty[units, start].sum())
    best, order = start, np.argsort(others, kind="stable")
    tolerance = 1e-12 * max(abs(limit), abs(bound))
    gap = limit - bound + tolerance
    possible = np.where(reduced <= gap, more_size, 0.0).min(axis=1)
    shrink_after = np.append(np.cumsum(possible[order][::-1])[::-1], 0.0)[1:]
    labels = _Labels(np.zeros(1), np.zeros(1), [], [])
    for step, unit in enumerate(order):
        if others[unit] > gap:
            break
        ks = np.flatnonzero(reduced[unit] <= gap)
        sizes = labels.size[:, None] + more_size[unit, ks]
        penalties = labels.penalty[:, None] + more_penalty[unit, ks]
        # the reduced costs of a label's choices are what its penalty and the price of its size come to
        keep = penalties + price * (sizes - room) + base <= bound + gap
        keep &= sizes + shrink_after[step] <= room
        labels.extend(sizes, penalties, ks, keep)
        if len(labels.size) > max_labels:
            return best, False
        at = int(np.searchsorted(labels.size, room, side="right")) - 1
        if at >= 0 and base + labels.penalty[at] < limit - tolerance:
            limit = base + float(labels.penalty[at])
            gap = limit - bound + tolerance
            best = chosen.copy()
            best[order[: step + 1]] = labels.choices_of(at)
        if len(labels.size) == 0:
            break
    return best, True
