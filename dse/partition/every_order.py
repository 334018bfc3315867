"""A bound for all orders and subsets of the devices at once, where the planner looks at some orders only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import sparse

from dse.partition.families import spread_lane
from dse.partition.lanes import Lane, LaneFactory
from dse.partition.problem import Goal, Objective, PipelineProblem
from dse.partition.relax import (
    constant_part,
    coupling_rows,
    feasible_multipliers,
    layer_costs,
    run_linear_program,
)

# what a device costs that a plan leaves unused depends on the subset
ORDERED: frozenset[Objective] = frozenset({"time", "ttft", "tpot", "throughput"})


def bound_of_every_order(problem: PipelineProblem, goal: Goal) -> float | None:
    """Return a value that no order of any subset of the devices beats, whatever orders the problem names.

    Layers, embedding and head are spread over the devices as fractions, transfers are free and stages need
    not be contiguous; the multipliers of the linear program then price every layer where it is cheapest.
    Infinite where even that has no solution; None for energy and cost.
    """
    if not goal.quantities <= ORDERED:
        return None
    free = replace(
        problem,
        hop_prefill_s=np.zeros_like(problem.hop_prefill_s),
        hop_decode_s=np.zeros_like(problem.hop_decode_s),
        last_bytes=problem.last_bytes - problem.tied_bytes,  # both ends may be on one device
    )
    factory = LaneFactory(free, goal)
    devices = tuple(range(len(problem.devices)))
    return min(_relaxed(spread_lane(factory, devices, p, d), goal.max_penalty) for p, d in factory.pairs())


def _relaxed(lane: Lane, max_penalty: float | None) -> float:
    stage, layer, choice = np.nonzero(lane.usable)
    coupling = coupling_rows(lane, stage, layer, choice, max_penalty)
    n_all = coupling.matrix.shape[1]
    one_each = sparse.csr_matrix(
        (np.ones(len(stage)), (layer, np.arange(len(stage)))), shape=(lane.n_layers, n_all)
    )
    ones = np.ones(lane.n_layers)
    solved = run_linear_program(
        coupling.objective,
        sparse.vstack([one_each, sparse.csr_matrix(coupling.matrix)]).tocsr(),
        np.concatenate([ones, np.full(len(coupling.upper), -np.inf)]),
        np.concatenate([ones, coupling.upper]),
        len(stage),
    )
    if solved is None:
        return math.inf
    multipliers = feasible_multipliers(lane, -solved[1][lane.n_layers :], coupling, max_penalty)
    cheapest = layer_costs(lane, multipliers).min(axis=(0, 2)).sum()
    return constant_part(lane, multipliers, max_penalty) + float(cheapest)
