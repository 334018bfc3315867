"""All orders of the same devices at once: one relaxation and one bound for a whole family of lanes.

Orders of the same devices differ in little: where embedding and head sit, which layers meet which device, a
few transfers. So the layers are first spread over the devices without an order, with bounds on how many each
device takes; the multipliers of that linear program are then evaluated over every order and cut together, by
dynamic programming over (layers placed, devices used). Equal devices with equal bounds form a group; only
how many of a group are used matters.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dse.partition.lanes import SLACK_FRAC, Lane, LaneFactory
from dse.partition.problem import Array, PipelineProblem
from dse.partition.relax import (
    Multipliers,
    constant_part,
    coupling_rows,
    feasible_multipliers,
    layer_costs,
    run_linear_program,
)
from dse.partition.sequences import device_kinds
from dse.partition.terms import Maximum, Terms

FEW_SEQUENCES = 64  # so many device sequences are searched one by one,
FEW_LANES = 400  # unless they make more lanes with the pairs of micro-batches;
FEW_ORDERS = 4  # so many orders of the same devices too
MAX_STATES = 1024  # of the dynamic program

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """Lanes that differ in the order of their devices alone.

    Attributes:
        lane: (n) devices in some order, with embedding and head as layers of their own (the first and the
            last one), so that nothing is fixed to a place; transfers take the least of any two devices.
        kinds: (n) equal numbers for interchangeable devices; kind_of: the same for any device index.
        sequences: the candidate orders, as device indices.
    """

    lane: Lane
    kinds: tuple[int, ...]
    kind_of: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FamilyBox:
    """How many layers each device of the family may take: lo, hi (n)."""

    lo: Counts
    hi: Counts

    @property
    def is_point(self) -> bool:
        """Whether every count is fixed."""
        return bool((self.lo == self.hi).all())

    def groups(self, kinds: tuple[int, ...]) -> NDArray[np.int64]:
        """(n) equal numbers for devices of one kind with one range."""
        keys = list(zip(kinds, self.lo.tolist(), self.hi.tolist(), strict=True))
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys])


@dataclass(frozen=True)
class RelaxedFamily:
    """Solution of a family's relaxation.

    Attributes:
        multipliers: feasible, equal for equal devices; bound: what they prove for all orders and cuts.
        counts: (n) mean number of layers of every device, equal for equal devices.
        stages: device positions in the cheapest order; cut: its boundaries.
    """

    multipliers: Multipliers
    bound: float
    counts: Array
    stages: tuple[int, ...]
    cut: Counts


def families(factory: LaneFactory) -> list[Family]:
    """Return the families worth having, for each set of devices in many orders and pair of micro-batches."""
    n_sequences = len(factory.sequences())
    if n_sequences <= FEW_SEQUENCES and n_sequences * len(factory.pairs()) <= FEW_LANES:
        return []
    by_devices: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    kind_of = device_kinds(factory.problem, factory.goal)
    for devices in factory.sequences():
        by_devices.setdefault(tuple(sorted(kind_of[device] for device in devices)), []).append(devices)
    found = []
    for sequences in by_devices.values():
        devices = min(sequences)
        if len(devices) == 1 or len(sequences) < FEW_ORDERS:
            continue
        kinds = tuple(kind_of[device] for device in devices)
        if _n_states(kinds) > MAX_STATES:
            continue
        for p, d in factory.pairs():
            found.append(Family(spread_lane(factory, devices, p, d), kinds, kind_of, tuple(sequences)))
    return found


def _n_states(kinds: tuple[int, ...]) -> int:
    return math.prod(kinds.count(kind) + 1 for kind in set(kinds))


def spread_lane(factory: LaneFactory, devices: tuple[int, ...], p: int, d: int) -> Lane:
    """Return a lane whose ends are layers and whose transfers are the least of any two devices."""
    problem = factory.problem
    index = list(devices)
    flat = LaneFactory(_with_least_transfers(problem, index), factory.goal, factory.quality_only)
    lane = flat.lane(devices, p, d)
    n_choices = problem.memory_bytes.shape[1]

    def ends(first: Array, last: Array, table: Array) -> Array:
        """Put (n) values before and after the layers of (n, L, K)."""
        before, after = (np.repeat(values[:, None, None], n_choices, axis=2) for values in (first, last))
        return np.concatenate([before, table, after], axis=1)

    one_choice = np.zeros((lane.n, 1, n_choices), dtype=bool)
    one_choice[:, :, 0] = True
    room = problem.capacity_bytes[index].astype(float) * (1 + SLACK_FRAC)
    if problem.activation_bytes is not None:
        room -= problem.activation_bytes[p, d, index]
    first_j, last_j = factory.ends_j(devices, p, d) if len(lane.extra) else (np.zeros(lane.n),) * 2
    return replace(
        lane,
        prefill_s=ends(problem.first_prefill_s[p, index], problem.last_prefill_s[p, index], lane.prefill_s),
        decode_s=ends(problem.first_decode_s[d, index], problem.last_decode_s[d, index], lane.decode_s),
        usable=np.concatenate([one_choice, lane.usable, one_choice], axis=1),
        memory=np.concatenate(
            [
                np.full((1, n_choices), problem.first_bytes),
                problem.memory_bytes,
                np.full((1, n_choices), problem.last_bytes),
            ]
        ),
        penalty=np.concatenate([np.zeros((1, n_choices)), problem.penalty, np.zeros((1, n_choices))]),
        fixed=np.zeros_like(lane.fixed),
        room=room,
        extra=np.array([ends(first_j, last_j, table) for table in lane.extra]).reshape(
            len(lane.extra), lane.n, lane.n_layers + 2, n_choices
        ),
    )


def _with_least_transfers(problem: PipelineProblem, devices: list[int]) -> PipelineProblem:
    """Return the problem with the least transfer of any two devices everywhere, and no energy of the ends."""
    apart = ~np.eye(len(devices), dtype=bool)

    def least(table: Array) -> Array:
        low = table[:, devices][:, :, devices][:, apart].min(axis=1)
        return np.broadcast_to(low[:, None, None], table.shape)

    energy = problem.energy
    if energy is not None:
        energy = replace(
            energy,
            hop_prefill_j=least(energy.hop_prefill_j),
            hop_decode_j=least(energy.hop_decode_j),
            first_prefill_j=np.zeros_like(energy.first_prefill_j),
            first_decode_j=np.zeros_like(energy.first_decode_j),
            last_prefill_j=np.zeros_like(energy.last_prefill_j),
            last_decode_j=np.zeros_like(energy.last_decode_j),
        )
    return replace(
        problem,
        hop_prefill_s=least(problem.hop_prefill_s),
        hop_decode_s=least(problem.hop_decode_s),
        energy=energy,
    )


def whole_box(family: Family) -> FamilyBox:
    """Return the ranges that exclude nothing: every device has a layer at least."""
    n, n_layers = family.lane.n, family.lane.n_layers - 2
    return FamilyBox(np.ones(n, dtype=np.int64), np.full(n, n_layers - n + 1))


def relax_family(family: Family, box: FamilyBox, max_penalty: float | None) -> RelaxedFamily | None:
    """Solve the relaxation of a box, and bound every order and cut of it. None if it is infeasible."""
    lane = family.lane
    stage, layer, choice = np.nonzero(lane.usable)
    coupling = coupling_rows(lane, stage, layer, choice, max_penalty)
    n_cols, n_all = len(stage), coupling.matrix.shape[1]
    columns = np.arange(n_cols)
    real = (layer > 0) & (layer < lane.n_layers - 1)
    one_each = sparse.csr_matrix((np.ones(n_cols), (layer, columns)), shape=(lane.n_layers, n_all))
    taken = sparse.csr_matrix((real.astype(float), (stage, columns)), shape=(lane.n, n_all))
    n_rows, n_coupling = lane.n_layers + lane.n, len(coupling.upper)
    solved = run_linear_program(
        coupling.objective,
        sparse.vstack([one_each, taken, sparse.csr_matrix(coupling.matrix)]).tocsr(),
        np.concatenate([np.ones(lane.n_layers), box.lo, np.full(n_coupling, -np.inf)]),
        np.concatenate([np.ones(lane.n_layers), box.hi, coupling.upper]),
        n_cols,
    )
    if solved is None:
        return None
    x, duals = solved
    groups = box.groups(family.kinds)
    multipliers = feasible_multipliers(lane, -duals[n_rows:], coupling, max_penalty)
    multipliers = _alike(lane, multipliers, groups)
    counts = _group_means(np.bincount(stage[real], x[:n_cols][real], minlength=lane.n), groups)
    least, stages, cut = _cheapest_order(lane, multipliers, groups, box)
    if not math.isfinite(least):
        return None
    bound = constant_part(lane, multipliers, max_penalty) + least
    return RelaxedFamily(multipliers, bound, counts, stages, cut)


def _group_means(values: NDArray[Any], groups: NDArray[np.int64]) -> Array:
    means = np.bincount(groups, values) / np.bincount(groups)
    return np.asarray(means[groups])


def _alike(lane: Lane, multipliers: Multipliers, groups: NDArray[np.int64]) -> Multipliers:
    """Average multipliers over equal devices: the bound is concave in them, so that it does not fall."""
    sums = np.kron(np.eye(2), np.eye(int(groups.max()) + 1)[groups])  # (2n, 2G)

    def averaged(shares: tuple[Array, ...], maxima: tuple[Maximum, ...]) -> tuple[Array, ...]:
        keys = []
        for m in maxima:
            rows = [tuple(row) for row in np.concatenate([m.forms @ sums, m.constants[:, None]], axis=1)]
            keys.append([(m.weight, tuple(sorted(rows)), row) for row in rows])
        same: dict[object, list[float]] = {}
        for of_rows, share in zip(keys, shares, strict=True):
            for key, value in zip(of_rows, share, strict=True):
                same.setdefault(key, []).append(float(value))
        return tuple(np.array([sum(same[key]) / len(same[key]) for key in of_rows]) for of_rows in keys)

    return replace(
        multipliers,
        shares=averaged(multipliers.shares, lane.terms.maxima),
        memory=_group_means(multipliers.memory, groups),
        bound_shares=tuple(
            averaged(shares, bound.terms.maxima)
            for shares, bound in zip(multipliers.bound_shares, lane.bounds, strict=True)
        ),
    )


def _cheapest_order(
    lane: Lane, multipliers: Multipliers, groups: NDArray[np.int64], box: FamilyBox
) -> tuple[float, tuple[int, ...], Counts]:
    """Return the least Lagrangian cost over all orders and cuts of a box, and one that attains it.

    State: how many devices of each group are used; value: (L + 1) least cost of the layers before a position.
    """
    costs = layer_costs(lane, multipliers).min(axis=2)
    members = [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
    steps = [_step_costs(costs[m[0], 1:-1], int(box.lo[m[0]]), int(box.hi[m[0]])) for m in members]
    n_positions = lane.n_layers - 1
    full = tuple(len(m) for m in members)
    start = np.full(n_positions, np.inf)
    start[0] = 0.0
    best: dict[tuple[int, ...], Array] = {(0,) * len(full): start}
    came: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for state in itertools.product(*(range(size + 1) for size in full)):
        if not any(state):
            continue
        value = np.full(n_positions, np.inf)
        by_group, from_position = np.zeros((2, n_positions), dtype=np.int64)
        for g, m in enumerate(members):
            if state[g] == 0:
                continue
            before = best[(*state[:g], state[g] - 1, *state[g + 1 :])]
            candidates = before[:, None] + steps[g]
            at = candidates.argmin(axis=0)
            least = candidates[at, np.arange(n_positions)]
            if sum(state) == 1:
                least = least + costs[m[0], 0]
            if state == full:
                least = least + costs[m[0], -1]
            better = least < value
            value[better] = least[better]
            by_group[better], from_position[better] = g, at[better]
        best[state], came[state] = value, (by_group, from_position)
    stages: list[int] = []
    cut = [n_positions - 1]
    state = full
    if not math.isfinite(best[full][-1]):
        return math.inf, (), np.zeros(0, dtype=np.int64)
    while any(state):
        by_group, from_position = came[state]
        g = int(by_group[cut[-1]])
        stages.append(int(members[g][state[g] - 1]))
        cut.append(int(from_position[cut[-1]]))
        state = (*state[:g], state[g] - 1, *state[g + 1 :])
    return float(best[full][-1]), tuple(reversed(stages)), np.array(cut[::-1])


def _step_costs(costs: Array, lo: int, hi: int) -> Array:
    """(L + 1, L + 1): cost of a stage from one position to another, infinite outside the range of sizes."""
    finite = np.isfinite(costs)
    prefix = np.append(0.0, np.cumsum(np.where(finite, costs, 0.0)))
    blocked = np.append(0, np.cumsum(~finite))
    size = np.arange(len(prefix))[None, :] - np.arange(len(prefix))[:, None]
    open_ = (size >= lo) & (size <= hi) & (blocked[None, :] == blocked[:, None])
    return np.where(open_, prefix[None, :] - prefix[:, None], np.inf)


def split(family: Family, box: FamilyBox, relaxed: RelaxedFamily) -> list[FamilyBox]:
    """Split a box by the size of a device, where its relaxation is relatively least decided.

    Of equal devices with one range, either one takes at most m layers or all take more.
    """
    groups = box.groups(family.kinds)
    width = box.hi - box.lo
    fraction = relaxed.counts - np.floor(relaxed.counts + 1e-6)
    undecided = np.minimum(fraction, 1 - fraction) / np.maximum(relaxed.counts, 1.0)
    undecided = np.where(width > 0, np.maximum(undecided, 0.0) + 1e-9 * width, -1.0)
    at = int(np.argmax(undecided))
    middle = int(np.clip(np.floor(relaxed.counts[at] + 1e-6), box.lo[at], box.hi[at] - 1))
    few, many = box.hi.copy(), box.lo.copy()
    few[at] = middle
    many[groups == groups[at]] = middle + 1
    parts = [FamilyBox(box.lo, few), FamilyBox(many, box.hi)]
    n_layers = family.lane.n_layers - 2
    return [part for part in parts if part.lo.sum() <= n_layers <= part.hi.sum()]


@dataclass(frozen=True)
class OrderedCuts:
    """Cuts of one order: ``positions`` (C, n) of the family's devices in stage order, ``cuts`` (C, n + 1)."""

    devices: tuple[int, ...]
    positions: NDArray[np.int64]
    cuts: Counts


def cuts_below(
    family: Family, box: FamilyBox, multipliers: Multipliers, max_penalty: float | None, limit: float
) -> list[OrderedCuts]:
    """Return the cuts of every order, with the sizes of a point box, that the multipliers do not rule out."""
    costs = layer_costs(family.lane, multipliers).min(axis=2)
    finite = np.where(np.isfinite(costs), costs, 0.0)  # ``Lane.fits`` rules out what cannot run
    prefix = np.concatenate([np.zeros((len(costs), 1)), np.cumsum(finite[:, 1:-1], axis=1)], axis=1)
    constant = constant_part(family.lane, multipliers, max_penalty)
    found = []
    for devices in family.sequences:
        positions = _arrangements(family, box, devices)
        ends = np.cumsum(box.lo[positions], axis=1)
        cuts = np.concatenate([np.zeros((len(ends), 1), dtype=np.int64), ends], axis=1)
        bounds = constant + finite[positions[:, 0], 0] + finite[positions[:, -1], -1]
        bounds += (prefix[positions, cuts[:, 1:]] - prefix[positions, cuts[:, :-1]]).sum(axis=1)
        if (keep := bounds < limit).any():
            found.append(OrderedCuts(devices, positions[keep], cuts[keep]))
    return found


def _arrangements(family: Family, box: FamilyBox, devices: tuple[int, ...]) -> NDArray[np.int64]:
    """(C, n) family positions for the stages of an order, one row for every different sequence of sizes."""
    stages: dict[int, list[int]] = {}
    for stage, device in enumerate(devices):
        stages.setdefault(family.kind_of[device], []).append(stage)
    options = []
    for kind in stages:
        members = [i for i, k in enumerate(family.kinds) if k == kind]
        by_sizes = {tuple(box.lo[list(row)]): row for row in itertools.permutations(members)}
        options.append(list(by_sizes.values()))
    rows = np.zeros((math.prod(len(option) for option in options), len(devices)), dtype=np.int64)
    for row, combination in zip(rows, itertools.product(*options), strict=True):
        for places, values in zip(stages.values(), combination, strict=True):
            row[places] = values
    return rows


def for_lane(family: Family, lane: Lane, multipliers: Multipliers, order: NDArray[np.int64]) -> Multipliers:
    """Return the family's multipliers for a lane whose stages are the family's devices in this order (n)."""
    both = np.concatenate([order, lane.n + order])

    def moved(shares: tuple[Array, ...], own: Terms, its: Terms) -> tuple[Array, ...]:
        by_rows = {}
        for share, maximum in zip(shares, its.maxima, strict=True):
            rows = [row.tobytes() for row in np.ascontiguousarray(maximum.forms[:, both])]
            by_rows[frozenset(rows)] = dict(zip(rows, share, strict=True))
        found = []
        for maximum in own.maxima:
            rows = [row.tobytes() for row in np.ascontiguousarray(maximum.forms)]
            found.append(np.array([by_rows[frozenset(rows)][row] for row in rows]))
        return tuple(found)

    return replace(
        multipliers,
        shares=moved(multipliers.shares, lane.terms, family.lane.terms),
        memory=multipliers.memory[order],
        bound_shares=tuple(
            moved(shares, own.terms, its.terms)
            for shares, own, its in zip(
                multipliers.bound_shares, lane.bounds, family.lane.bounds, strict=True
            )
        ),
    )


class Space:
    """What a search looks through: lanes one by one where they are few, families of them where they are many.

    Attributes:
        lanes: made so far, those to search one by one first; families: the rest.
        n_single: how many of the first lanes are searched one by one.
    """

    def __init__(self, factory: LaneFactory) -> None:
        self.factory = factory
        self.families = families(factory)
        in_families = {devices for family in self.families for devices in family.sequences}
        self.lanes: list[Lane] = []
        self._at: dict[tuple[tuple[int, ...], int, int], int] = {}
        for devices in factory.sequences():
            if devices not in in_families:
                for p, d in factory.pairs():
                    self.index(devices, p, d)
        self.n_single = len(self.lanes)

    def index(self, devices: tuple[int, ...], p: int, d: int) -> int:
        """Return the position of a lane, which is made where it does not exist yet."""
        key = (devices, p, d)
        if key not in self._at:
            self._at[key] = len(self.lanes)
            self.lanes.append(self.factory.lane(devices, p, d))
        return self._at[key]

    def lane(self, devices: tuple[int, ...], p: int, d: int) -> Lane:
        """Return a lane."""
        return self.lanes[self.index(devices, p, d)]
