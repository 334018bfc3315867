"""Best-first branch and bound over lanes, cuts and, where a cut resists, subsets of its choices.

Bounds come from ``relax``; a cut is closed by ``labels`` or split. Nothing is dropped without a proof, so the
lowest bound still open is valid whenever the search stops.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.partition.cuts import (
    best_cut_in_box,
    count_cuts,
    cuts_in_box,
    lowest_bounds_in_box,
    split_box_at,
    tightened,
)
from dse.partition.families import (
    Family,
    RelaxedFamily,
    Space,
    cuts_below,
    for_lane,
    relax_family,
    split,
    whole_box,
)
from dse.partition.labels import TooManyLabels, search_cut
from dse.partition.lanes import Lane
from dse.partition.memory import ROUNDING_FRAC, Memory, QualityFilter
from dse.partition.nodes import Block, Box, CutNode, FamilyNode, Item
from dse.partition.problem import Array
from dse.partition.relax import (
    Multipliers,
    Relaxed,
    cut_bounds,
    layer_costs,
    prefixes_and_constants,
    relax_cut,
    stage_of_layers,
)
from dse.partition.relax_box import RelaxedBox, relax_box
from dse.partition.rounding import CutEvaluator, round_relaxed
from dse.partition.splitting import split_choices

BLOCK_CUTS = 2_000  # blocks are held for all lanes at once, boxes hold no cuts
BATCH_MULTIPLIERS = 16


@dataclass(frozen=True)
class Limits:
    """When to stop and how precise to be.

    Attributes:
        time_s: wall clock; None for no limit. n_relaxations: LPs solved, the same on every machine.
        gap_frac: a branch is dropped once it cannot improve the incumbent by more than this share.
        first_labels: size of an enumeration above which a cut is branched instead; it doubles with every
            fourth branching, up to ``max_labels``: small enumerations are cheap, deep trees are dear.
    """

    time_s: float | None = None
    n_relaxations: int | None = None
    gap_frac: float = 1e-9
    first_labels: int = 300
    max_labels: int = 6000

    def labels_at(self, depth: int) -> int:
        """Return the size limit after so many branchings."""
        return min(self.first_labels << min(depth // 4, 20), self.max_labels)


@dataclass
class Incumbent:
    """The best assignment so far."""

    value: float = float("inf")
    penalty: float = float("inf")
    lane: Lane | None = None
    cut: NDArray[np.int64] | None = None
    choices: NDArray[np.int64] | None = None


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
        self,
        space: Space,
        max_penalty: float | None,
        limits: Limits,
        memory: Memory,
        start: Incumbent,
        quality: QualityFilter | None = None,
    ) -> None:
        self.space = space
        self.lanes = space.lanes
        self.max_penalty = max_penalty
        self.limits = limits
        self.memory = memory
        self.best = start
        self.quality = quality
        self.best_relaxed: Relaxed | None = None
        self.heap: list[tuple[float, int, Item]] = []
        self.counter = itertools.count()
        self.n_relaxations = self.n_searched = self.n_branched = 0
        self.deadline = None if limits.time_s is None else time.monotonic() + limits.time_s
        self.evaluated: dict[int, tuple[Array, Array]] = {}
        self.tried: set[tuple[int, bytes]] = set()
        memory.forget()
        self.dropped = float("inf")

    @property
    def limit(self) -> float:
        """Values at or above this are not looked for."""
        if self.best.value == float("inf"):
            return float("inf")
        return self.best.value - self.limits.gap_frac * abs(self.best.value)

    def run(self) -> Outcome:
        """Search until the gap is closed or a limit is met."""
        for family in self.space.families:
            self._push(float("-inf"), FamilyNode(family, whole_box(family)))
        for index, lane in enumerate(self.lanes[: self.space.n_single]):
            n, n_layers = lane.n, lane.n_layers
            lo = np.arange(n + 1)
            hi = n_layers - n + lo
            lo[n] = n_layers
            hi[0] = 0
            self._push_box(Box(index, lo, hi))
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
            if isinstance(item, Box):
                self._open_box(item)
            elif isinstance(item, FamilyNode):
                self._open_family(item)
            elif isinstance(item, Block):
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

    def _push(self, bound: float, item: Item) -> None:
        if bound < self.limit:
            heapq.heappush(self.heap, (bound, next(self.counter), item))
        elif bound < float("inf"):
            self.dropped = min(self.dropped, bound)

    def _bounds_of(self, lane_index: int, upto: int) -> tuple[Array, Array]:
        """Return prefixes (T, n, L + 1) and constants (T) of the first ``upto`` multipliers of the lane."""
        lane = self.lanes[lane_index]
        done = self.evaluated.get(lane_index)
        n_done = 0 if done is None else len(done[1])
        fresh = self.memory.known(lane)[n_done:upto]
        if fresh:
            prefixes, constants = prefixes_and_constants(lane, fresh, self.max_penalty)
            if done is not None:
                prefixes = np.concatenate([done[0], prefixes])
                constants = np.concatenate([done[1], constants])
            self.evaluated[lane_index] = done = (prefixes, constants)
        assert done is not None
        return done

    def _push_box(self, box: Box) -> None:
        if count_cuts(box.lo, box.hi) <= BLOCK_CUTS:
            self._push_cuts(box.lane, cuts_in_box(box.lo, box.hi))
            return
        n_known = len(self.memory.known(self.lanes[box.lane]))
        bounds = lowest_bounds_in_box(*self._bounds_of(box.lane, n_known), box.lo, box.hi)
        self._push(float(bounds.max()), box)

    def _push_cuts(self, index: int, cuts: NDArray[np.int64]) -> None:
        """Bound some cuts of a lane by what is known, and keep those that are left."""
        lane = self.lanes[index]
        fits = lane.fits(cuts)
        if self.quality is not None and self.max_penalty is not None:
            fits &= self.quality.reaches(lane, cuts, self.max_penalty)
        n_fit = int(fits.sum())
        block = Block(index, cuts[fits], np.full(n_fit, -np.inf), np.zeros(n_fit, np.int64))
        self._refresh(block)
        if len(block.cuts):
            self._push(float(block.bounds.min()), block)

    def _refresh(self, block: Block) -> bool:
        """Apply the next batch of multipliers to a block; return whether there was one."""
        upto = min(block.n_seen + BATCH_MULTIPLIERS, len(self.memory.known(self.lanes[block.lane])))
        prefixes, constants = self._bounds_of(block.lane, upto)
        for t in range(block.n_seen, upto):
            bounds = cut_bounds(prefixes[t], float(constants[t]), block.cuts)
            higher = bounds > block.bounds
            block.bounds[higher], block.source[higher] = bounds[higher], t
        applied, block.n_seen = upto > block.n_seen, upto
        keep = block.bounds < self.limit
        if not keep.all():
            self.dropped = min(self.dropped, float(block.bounds[~keep].min()))
            block.take(keep)
        return applied

    def _open_box(self, box: Box) -> None:
        """Relax a box, and when its turn comes again, split it where the relaxation is least decided."""
        lane = self.lanes[box.lane]
        if box.relaxed is None:
            self.n_relaxations += 1
            relaxed = relax_box(lane, box.lo, box.hi, self.max_penalty)
            if relaxed is None:
                return
            prefixes, constants = prefixes_and_constants(lane, [relaxed.multipliers], self.max_penalty)
            bound = float(lowest_bounds_in_box(prefixes, constants, box.lo, box.hi)[0])
            self.memory.known(lane).append(relaxed.multipliers)
            for cut in self._candidate_cuts(box, relaxed, prefixes[0]):
                self._try_cut(box.lane, cut)
            self._push(bound, Box(box.lane, box.lo, box.hi, relaxed))
            return
        width = box.hi - box.lo
        undecided = np.where(width > 0, box.relaxed.spread + 1e-6 * width, -1.0)
        at = int(np.argmax(undecided))
        middle = int(np.clip(np.floor(box.relaxed.boundary[at]), box.lo[at], box.hi[at] - 1))
        for lo, hi in split_box_at(box.lo, box.hi, at, middle):
            if count_cuts(lo, hi):
                self._push_box(Box(box.lane, lo, hi))

    def _open_family(self, node: FamilyNode) -> None:
        """Relax a box of layer counts, and when its turn comes again, split it, or go over to its cuts."""
        family, relaxed = node.family, node.relaxed
        if relaxed is None:
            self.n_relaxations += 1
            relaxed = relax_family(family, node.box, self.max_penalty)
            if relaxed is None:
                return
            for devices, cut in self._candidate_orders(family, relaxed):
                self._try_cut(self._lane_of(family, devices), cut)
            self._push(relaxed.bound, FamilyNode(family, node.box, relaxed))
        elif node.box.is_point:
            for found in cuts_below(family, node.box, relaxed.multipliers, self.max_penalty, self.limit):
                index = self._lane_of(family, found.devices)
                lane = self.lanes[index]
                known = self.memory.known(lane)
                known.extend(for_lane(family, lane, relaxed.multipliers, order) for order in found.positions)
                self._push_cuts(index, found.cuts)
        else:
            for box in split(family, node.box, relaxed):
                self._push(relaxed.bound, FamilyNode(family, box))

    def _lane_of(self, family: Family, devices: tuple[int, ...]) -> int:
        return self.space.index(devices, family.lane.prefill_index, family.lane.decode_index)

    def _candidate_orders(
        self, family: Family, relaxed: RelaxedFamily
    ) -> list[tuple[tuple[int, ...], NDArray[np.int64]]]:
        """Return cuts of the cheapest order: the cheapest one, and the mean one rounded."""
        order = [family.kinds[position] for position in relaxed.stages]
        like = [s for s in family.sequences if [family.kind_of[device] for device in s] == order]
        rounded = np.round(np.append(0.0, np.cumsum(relaxed.counts[list(relaxed.stages)]))).astype(np.int64)
        cuts = [cut for cut in (relaxed.cut, rounded) if (np.diff(cut) > 0).all()]
        return [(like[0], cut) for cut in cuts] if like else []

    def _candidate_cuts(self, box: Box, relaxed: RelaxedBox, prefix: Array) -> list[NDArray[np.int64]]:
        """Return cuts near the relaxation of a box: the rounded mean and the cheapest one."""
        lo, hi = tightened(np.maximum(np.round(relaxed.boundary).astype(np.int64), box.lo), box.hi)
        found = [np.minimum(lo, hi), best_cut_in_box(prefix, box.lo, box.hi)]
        return [cut for cut in found if cut is not None and (np.diff(cut) > 0).all()]

    def _try_cut(self, lane_index: int, cut: NDArray[np.int64]) -> None:
        """Look for an incumbent in one cut, once, unless its bounds rule it out."""
        lane = self.lanes[lane_index]
        if (lane_index, cut.tobytes()) in self.tried or not lane.fits(cut[None])[0]:
            return
        self.tried.add((lane_index, cut.tobytes()))
        prefixes, constants = self._bounds_of(lane_index, len(self.memory.known(lane)))
        stages = np.arange(lane.n)
        costs = (prefixes[:, stages, cut[1:]] - prefixes[:, stages, cut[:-1]]).sum(axis=1)
        if (costs + constants).max() >= self.limit:
            return
        usable = lane.usable[stage_of_layers(cut), np.arange(lane.n_layers)]
        self.n_relaxations += 1
        relaxed = relax_cut(lane, cut, usable, self.max_penalty)
        if relaxed is None:
            return
        self.memory.known(lane).append(relaxed.multipliers)
        found = round_relaxed(lane, cut, usable, relaxed, self.max_penalty)
        if found is not None:
            self._offer(lane, cut, found.choices, found.value, found.penalty, relaxed)

    def _open_block(self, block: Block) -> None:
        """Take the cut with the lowest bound out of the block and relax it."""
        while True:
            applied = self._refresh(block)
            if not len(block.cuts):
                return
            index = int(np.argmin(block.bounds))
            bound = float(block.bounds[index])
            if self.heap and bound > self.heap[0][0]:
                self._push(bound, block)
                return
            if not applied:
                break
        cut = block.cuts[index]
        source = self.memory.known(self.lanes[block.lane])[block.source[index]]
        block.take(np.arange(len(block.cuts)) != index)
        lane = self.lanes[block.lane]
        usable = lane.usable[stage_of_layers(cut), np.arange(lane.n_layers)]
        if self.quality is not None and self.max_penalty is not None:
            usable = usable & self.quality.choices(lane, cut, self.max_penalty)
        self._relax(block.lane, cut, self._promising(lane, cut, bound, source, usable), bound, 0)
        if len(block.cuts):
            self._refresh(block)
        if len(block.cuts):
            self._push(float(block.bounds.min()), block)

    def _promising(
        self,
        lane: Lane,
        cut: NDArray[np.int64],
        bound: float,
        source: Multipliers,
        usable: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return (L, K) the usable choices that an improving assignment of the cut may contain.

        An assignment costs at least ``bound``, which ``source`` proves, plus the reduced cost of any of its
        choices.
        """
        if self.limit == float("inf"):
            return usable
        at = stage_of_layers(cut), np.arange(lane.n_layers)
        costs = np.where(usable, layer_costs(lane, source)[at], np.inf)
        reduced = costs - costs.min(axis=1, keepdims=True)
        return usable & (reduced <= self.limit - bound + ROUNDING_FRAC * abs(self.limit))

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
            self.memory.known(lane).append(relaxed.multipliers)
        bound = max(bound, relaxed.bound)
        if bound >= self.limit:
            self.dropped = min(self.dropped, bound)
            return
        found = round_relaxed(lane, cut, usable, relaxed, self.max_penalty)
        if found is not None:
            self._offer(lane, cut, found.choices, found.value, found.penalty, relaxed)
        self._push(bound, CutNode(lane_index, cut, usable, relaxed, depth))

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

    def _open_node(self, node: CutNode) -> None:
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
                    self.limits.labels_at(node.depth),
                )
            except TooManyLabels:
                pass
            else:
                if found is not None:
                    self._offer(lane, node.cut, found.choices, found.value, found.penalty, node.relaxed)
                return
        self._branch(node)

    def _offer_only(self, lane: Lane, node: CutNode, choices: NDArray[np.int64]) -> None:
        """Take up the one assignment that a node has left, where it is feasible."""
        evaluator = CutEvaluator(lane, node.cut, self.max_penalty)
        totals = evaluator.totals(choices)
        violation, value = evaluator.score(totals)
        if violation <= 0:
            self._offer(lane, node.cut, choices, float(value), float(totals[3 * lane.n]), node.relaxed)

    def _branch(self, node: CutNode) -> None:
        """Split the choices of the layer that the relaxation mixes most (or that has most choices)."""
        self.n_branched += 1
        lane = self.lanes[node.lane]
        usable = node.usable & self._promising(
            lane, node.cut, node.relaxed.bound, node.relaxed.multipliers, node.usable
        )
        if not (usable.sum(axis=1) > 1).any():
            self._offer_only(lane, node, usable.argmax(axis=1))
            return
        low, high = split_choices(lane, node.cut, usable, node.relaxed)
        for usable in (low, high):
            self._relax(node.lane, node.cut, usable, node.relaxed.bound, node.depth + 1)
