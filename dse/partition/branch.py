"""Best-first branch and bound over lanes, cuts and, where a cut resists, subsets of its choices.

Bounds come from ``relax``; a cut is closed by ``labels`` or split. Nothing is dropped without a proof, so the
lowest bound still open is valid whenever the search stops.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dse.partition.cuts import count_cuts, cuts_in_box, lowest_bound_in_box, split_box
from dse.partition.labels import TooManyLabels, search_cut
from dse.partition.lanes import Lane
from dse.partition.problem import Array
from dse.partition.relax import (
    Multipliers,
    Relaxed,
    constant_part,
    cut_bounds,
    layer_prefix,
    relax_cut,
    stage_of_layers,
    uniform_multipliers,
)
from dse.partition.rounding import round_relaxed

BLOCK_CUTS = 20_000


@dataclass(frozen=True)
class Limits:
    """When to stop and how precise to be.

    Attributes:
        time_s: wall clock; None for no limit. n_relaxations: LPs solved, the same on every machine.
        gap_frac: a branch is dropped once it cannot improve the incumbent by more than this share.
        max_labels: size of an enumeration above which a cut is branched instead.
    """

    time_s: float | None = None
    n_relaxations: int | None = None
    gap_frac: float = 1e-9
    max_labels: int = 6000


@dataclass
class Incumbent:
    """The best assignment so far."""

    value: float = float("inf")
    penalty: float = float("inf")
    lane: Lane | None = None
    cut: NDArray[np.int64] | None = None
    choices: NDArray[np.int64] | None = None


@dataclass
class _Block:
    """Cuts of a lane with their bounds so far; ``n_seen`` multipliers of the lane are in them."""

    lane: int
    cuts: NDArray[np.int64]
    bounds: Array
    n_seen: int = 0


@dataclass
class _Box:
    """A box of cuts of a lane: lo, hi (n + 1) for every boundary."""

    lane: int
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]


@dataclass
class _Node:
    """One cut with some choices forbidden."""

    lane: int
    cut: NDArray[np.int64]
    usable: NDArray[np.bool_]
    relaxed: Relaxed
    depth: int


@dataclass
class Memory:
    """Multipliers of every lane that proved useful; they carry over to other penalty bounds."""

    of_lane: dict[int, list[Multipliers]] = field(default_factory=dict)


@dataclass
class Outcome:
    """Result of a search: incumbent, proven bound (infinite: nothing is feasible), statistics."""

    incumbent: Incumbent
    bound: float
    finished: bool
    relaxed: Relaxed | None
    n_relaxations: int
    n_searched: int
    n_branched: int


class BranchAndBound:
    """One search for one penalty bound."""

    def __init__(
        self, lanes: list[Lane], max_penalty: float | None, limits: Limits, memory: Memory, start: Incumbent
    ) -> None:
        self.lanes = lanes
        self.max_penalty = max_penalty
        self.limits = limits
        self.memory = memory
        self.best = start
        self.best_relaxed: Relaxed | None = None
        self.heap: list[tuple[float, int, _Block | _Box | _Node]] = []
        self.counter = itertools.count()
        self.n_relaxations = self.n_searched = self.n_branched = 0
        self.deadline = None if limits.time_s is None else time.monotonic() + limits.time_s
        self.evaluated: dict[int, list[tuple[Array, float]]] = {}
        self.dropped = float("inf")

    @property
    def limit(self) -> float:
        """Values at or above this are not looked for."""
        if self.best.value == float("inf"):
            return float("inf")
        return self.best.value - self.limits.gap_frac * abs(self.best.value)

    def run(self) -> Outcome:
        """Search until the gap is closed or a limit is met."""
        for index, lane in enumerate(self.lanes):
            n, n_layers = lane.n, lane.n_layers
            lo = np.arange(n + 1)
            hi = n_layers - n + lo
            lo[n] = n_layers
            hi[0] = 0
            known = self.memory.of_lane.setdefault(index, [])
            if not known:
                known.append(uniform_multipliers(lane))
            self._push_box(_Box(index, lo, hi))
        finished = True
        while self.heap:
            bound, _, item = heapq.heappop(self.heap)
            if bound >= self.limit:
                self.dropped = min(self.dropped, bound)
                break
            if self._out_of_budget():
                heapq.heappush(self.heap, (bound, next(self.counter), item))
                finished = False
                break
            if isinstance(item, _Box):
                self._open_box(item)
            elif isinstance(item, _Block):
                self._open_block(item)
            else:
                self._open_node(item)
        bound = min(self.heap[0][0], self.limit, self.dropped) if self.heap else min(self.limit, self.dropped)
        return Outcome(
            self.best,
            max(bound, 0.0) if bound == float("-inf") else bound,
            finished,
            self.best_relaxed,
            self.n_relaxations,
            self.n_searched,
            self.n_branched,
        )

    def _out_of_budget(self) -> bool:
        limits = self.limits
        if limits.n_relaxations is not None and self.n_relaxations >= limits.n_relaxations:
            return True
        return self.deadline is not None and time.monotonic() > self.deadline

    def _push(self, bound: float, item: _Block | _Box | _Node) -> None:
        if bound < self.limit:
            heapq.heappush(self.heap, (bound, next(self.counter), item))
        elif bound < float("inf"):
            self.dropped = min(self.dropped, bound)

    def _bounds_of(self, lane: int) -> list[tuple[Array, float]]:
        """Return (prefix, constant) of every multiplier set known for the lane."""
        known = self.memory.of_lane[lane]
        done = self.evaluated.setdefault(lane, [])
        for multipliers in known[len(done) :]:
            done.append(
                (
                    layer_prefix(self.lanes[lane], multipliers),
                    constant_part(self.lanes[lane], multipliers, self.max_penalty),
                )
            )
        return done

    def _push_box(self, box: _Box) -> None:
        if count_cuts(box.lo, box.hi) <= BLOCK_CUTS:
            self._push_block(box)
            return
        bound = max(
            lowest_bound_in_box(prefix, constant, box.lo, box.hi)
            for prefix, constant in self._bounds_of(box.lane)
        )
        self._push(bound, box)

    def _push_block(self, box: _Box) -> None:
        lane = self.lanes[box.lane]
        cuts = cuts_in_box(box.lo, box.hi)
        fits = lane.fits(cuts)
        block = _Block(box.lane, cuts[fits], np.full(int(fits.sum()), -np.inf))
        self._refresh(block)
        if len(block.cuts):
            self._push(float(block.bounds.min()), block)

    def _refresh(self, block: _Block) -> None:
        bounds = self._bounds_of(block.lane)
        for prefix, constant in bounds[block.n_seen :]:
            np.maximum(block.bounds, cut_bounds(prefix, constant, block.cuts), out=block.bounds)
        block.n_seen = len(bounds)
        keep = block.bounds < self.limit
        if not keep.all():
            self.dropped = min(self.dropped, float(block.bounds[~keep].min()))
            block.cuts, block.bounds = block.cuts[keep], block.bounds[keep]

    def _open_box(self, box: _Box) -> None:
        for lo, hi in split_box(box.lo, box.hi):
            if count_cuts(lo, hi):
                self._push_box(_Box(box.lane, lo, hi))

    def _open_block(self, block: _Block) -> None:
        """Take the cut with the lowest bound out of the block and relax it."""
        self._refresh(block)
        if not len(block.cuts):
            return
        index = int(np.argmin(block.bounds))
        bound = float(block.bounds[index])
        if self.heap and bound > self.heap[0][0]:
            self._push(bound, block)
            return
        cut = block.cuts[index]
        block.cuts = np.delete(block.cuts, index, axis=0)
        block.bounds = np.delete(block.bounds, index)
        lane = self.lanes[block.lane]
        usable = lane.usable[stage_of_layers(cut), np.arange(lane.n_layers)]
        self._relax(block.lane, cut, usable, bound, 0)
        if len(block.cuts):
            self._refresh(block)
        if len(block.cuts):
            self._push(float(block.bounds.min()), block)

    def _relax(
        self,
        lane_index: int,
        cut: NDArray[np.int64],
        usable: NDArray[np.bool_],
        bound: float,
        depth: int,
    ) -> None:
        lane = self.lanes[lane_index]
        if not usable.any(axis=1).all():
            return
        self.n_relaxations += 1
        relaxed = relax_cut(lane, cut, usable, self.max_penalty)
        if relaxed is None:
            return
        if depth == 0:
            self.memory.of_lane[lane_index].append(relaxed.multipliers)
        bound = max(bound, relaxed.bound)
        if bound >= self.limit:
            self.dropped = min(self.dropped, bound)
            return
        found = round_relaxed(lane, cut, usable, relaxed, self.max_penalty)
        if found is not None:
            self._offer(lane, cut, found.choices, found.value, found.penalty, relaxed)
        self._push(bound, _Node(lane_index, cut, usable, relaxed, depth))

    def _offer(
        self,
        lane: Lane,
        cut: NDArray[np.int64],
        choices: NDArray[np.int64],
        value: float,
        penalty: float,
        relaxed: Relaxed,
    ) -> None:
        if value < self.best.value or (value == self.best.value and penalty < self.best.penalty):
            self.best = Incumbent(value, penalty, lane, cut, choices)
            self.best_relaxed = relaxed

    def _open_node(self, node: _Node) -> None:
        lane = self.lanes[node.lane]
        if self.limit < float("inf"):
            try:
                self.n_searched += 1
                found = search_cut(
                    lane,
                    node.cut,
                    node.usable,
                    node.relaxed,
                    self.max_penalty,
                    self.limit,
                    self.limits.max_labels,
                )
            except TooManyLabels:
                pass
            else:
                if found is not None:
                    self._offer(lane, node.cut, found.choices, found.value, found.penalty, node.relaxed)
                return
        self._branch(node)

    def _branch(self, node: _Node) -> None:
        """Split the choices of the layer that the relaxation mixes most (or that has most choices)."""
        self.n_branched += 1
        low, high = split_choices(self.lanes[node.lane], node.usable, node.relaxed)
        for usable in (low, high):
            self._relax(node.lane, node.cut, usable, node.relaxed.bound, node.depth + 1)


def split_choices(
    lane: Lane, usable: NDArray[np.bool_], relaxed: Relaxed
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks that share the choices of one layer between them, and keep all others."""
    top = np.zeros(lane.n_layers)
    np.maximum.at(top, relaxed.layer, relaxed.weight)
    layer = int(np.argmin(top))
    if top[layer] > 1 - 1e-7:
        layer = int(np.argmax(usable.sum(axis=1)))
    here = relaxed.layer == layer
    ks = np.flatnonzero(usable[layer])
    by_penalty = ks[np.lexsort((ks, lane.memory[layer, ks], lane.penalty[layer, ks]))]
    mean = float((relaxed.weight[here] * lane.penalty[layer, relaxed.choice[here]]).sum())
    n_low = int((lane.penalty[layer, by_penalty] <= mean).sum())
    n_low = min(max(n_low, 1), len(by_penalty) - 1)
    low, high = usable.copy(), usable.copy()
    low[layer, by_penalty[n_low:]] = False
    high[layer, by_penalty[:n_low]] = False
    return low, high
