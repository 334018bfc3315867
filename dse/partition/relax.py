"""Lower bounds: the linear relaxation of one lane with fixed cuts, and the Lagrangian bound it leads to.

The multipliers of the relaxation are only a proposal: every bound is evaluated here in float64 from
multipliers made feasible first, so that no tolerance of the LP solver enters a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dse.partition.lanes import Lane
from dse.partition.problem import Array


@dataclass(frozen=True)
class Multipliers:
    """Weights that make the objective separable over layers.

    Attributes:
        shares: per maximum of the lane's terms, a probability vector over its rows.
        memory: (n) seconds per byte; penalty: seconds per unit of penalty, beside theta.
    """

    shares: tuple[Array, ...]
    memory: Array
    penalty: float


@dataclass(frozen=True)
class Relaxed:
    """Solution of the relaxation of one cut.

    Attributes:
        multipliers: feasible ones; bound: what they prove for this cut (with the given mask).
        layer, choice, weight: the choices in the fractional solution.
    """

    multipliers: Multipliers
    bound: float
    layer: NDArray[np.int64]
    choice: NDArray[np.int64]
    weight: Array


def stage_weights(lane: Lane, multipliers: Multipliers) -> tuple[Array, float]:
    """Return the (2n) weights of the stage times and the constant of the maxima under the multipliers."""
    weights = lane.terms.linear.copy()
    constant = lane.terms.constant
    for maximum, share in zip(lane.terms.maxima, multipliers.shares, strict=True):
        weights += maximum.weight * (share @ maximum.forms)
        constant += maximum.weight * float(share @ maximum.constants)
    return weights, constant


def constant_part(lane: Lane, multipliers: Multipliers, max_penalty: float | None) -> float:
    """Return the part of the Lagrangian bound that no choice changes."""
    weights, constant = stage_weights(lane, multipliers)
    constant += float(weights @ lane.fixed) - float(multipliers.memory @ lane.room)
    if max_penalty is not None:
        constant -= multipliers.penalty * max_penalty
    return constant


def layer_costs(lane: Lane, multipliers: Multipliers) -> Array:
    """Return (n, L, K): the Lagrangian cost of every choice, infinite where it is not usable."""
    return np.where(lane.usable, choice_costs(lane, multipliers), np.inf)


def choice_costs(lane: Lane, multipliers: Multipliers) -> Array:
    """Return (n, L, K): the Lagrangian cost of every choice, usable or not."""
    weights, _ = stage_weights(lane, multipliers)
    n = lane.n
    costs: Array = weights[:n, None, None] * lane.prefill_s
    costs = costs + weights[n:, None, None] * lane.decode_s
    costs += multipliers.memory[:, None, None] * lane.memory
    costs += (lane.theta + multipliers.penalty) * lane.penalty
    return costs


def prefixes_and_constants(
    lane: Lane, multipliers: list[Multipliers], max_penalty: float | None
) -> tuple[Array, Array]:
    """Return (T, n, L + 1) prefix sums of every layer's cheapest choice on every stage, and (T) constants.

    A layer without a usable choice adds 0, which keeps the bound valid; ``Lane.fits`` rules its cuts out.
    """
    n = lane.n
    weights = np.stack([stage_weights(lane, m)[0] for m in multipliers])[:, :, None, None]
    memory = np.stack([m.memory for m in multipliers])[:, :, None, None]
    penalty = np.array([lane.theta + m.penalty for m in multipliers])[:, None, None, None]
    costs = weights[:, :n] * lane.prefill_s
    costs += weights[:, n:] * lane.decode_s
    costs += memory * lane.memory
    costs += penalty * lane.penalty
    cheapest = np.where(lane.usable, costs, np.inf).min(axis=3)
    cheapest = np.where(np.isfinite(cheapest), cheapest, 0.0)
    prefix = np.concatenate([np.zeros((*cheapest.shape[:2], 1)), np.cumsum(cheapest, axis=2)], axis=2)
    return prefix, np.array([constant_part(lane, m, max_penalty) for m in multipliers])


def cut_bounds(prefix: Array, constant: float, cuts: NDArray[np.int64]) -> Array:
    """Return the (C) bounds of cuts (C, n + 1), each row 0 = c_0 < c_1 < ... < c_n = L."""
    total = np.full(len(cuts), constant)
    for stage in range(prefix.shape[0]):
        total += prefix[stage, cuts[:, stage + 1]] - prefix[stage, cuts[:, stage]]
    return total


def stage_of_layers(cut: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (L) stage of every layer."""
    return np.repeat(np.arange(len(cut) - 1), np.diff(cut))


def uniform_multipliers(lane: Lane) -> Multipliers:
    """Return multipliers to start with: every row of a maximum shares alike, constraints are ignored."""
    shares = tuple(np.full(len(m.constants), 1.0 / len(m.constants)) for m in lane.terms.maxima)
    return Multipliers(shares, np.zeros(lane.n), 0.0)


def relax_cut(
    lane: Lane, cut: NDArray[np.int64], usable: NDArray[np.bool_], max_penalty: float | None
) -> Relaxed | None:
    """Solve the relaxation of a cut over the ``usable`` (L, K) choices. None if it is infeasible."""
    stage = stage_of_layers(cut)
    layer, choice = np.nonzero(usable)
    at = stage[layer]
    prefill = lane.prefill_s[at, layer, choice]
    decode = lane.decode_s[at, layer, choice]
    memory = lane.memory[layer, choice]
    penalty = lane.penalty[layer, choice]
    n, n_cols = lane.n, len(layer)
    active = [m for m in lane.terms.maxima if m.weight > 0]

    blocks: list[Array] = []
    uppers: list[Array] = []
    weights: list[float] = []
    for a, maximum in enumerate(active):
        rows = maximum.forms[:, at] * prefill + maximum.forms[:, n + at] * decode
        unit = float(rows.max()) or 1.0
        rows = rows / unit
        weights.append(maximum.weight * unit)
        tail = np.zeros((len(rows), len(active)))
        tail[:, a] = -1.0
        blocks.append(np.concatenate([rows, tail], axis=1))
        uppers.append(-(maximum.forms @ lane.fixed + maximum.constants) / unit)
    scale = np.maximum(np.abs(lane.room), 1.0)
    rows = (at == np.arange(n)[:, None]) * (memory / scale[at])
    blocks.append(np.concatenate([rows, np.zeros((n, len(active)))], axis=1))
    uppers.append(lane.room / scale)
    penalty_scale = 1.0
    if max_penalty is not None:
        penalty_scale = max(abs(max_penalty), float(np.abs(penalty).mean()), 1e-300)
        blocks.append(np.concatenate([penalty / penalty_scale, np.zeros(len(active))])[None])
        uppers.append(np.array([max_penalty / penalty_scale]))

    coupling = np.concatenate(blocks)
    objective = np.concatenate(
        [
            lane.terms.linear[at] * prefill + lane.terms.linear[n + at] * decode + lane.theta * penalty,
            weights,
        ]
    )
    solved = _solve_lp(objective, coupling, np.concatenate(uppers), layer, lane.n_layers, n_cols)
    if solved is None:
        return None
    x, duals = solved
    multipliers = _feasible_multipliers(lane, -duals, scale, penalty_scale, max_penalty)
    costs = layer_costs(lane, multipliers)[stage, np.arange(lane.n_layers)]
    bound = constant_part(lane, multipliers, max_penalty)
    bound += float(np.where(usable, costs, np.inf).min(axis=1).sum())
    used = x[:n_cols] > 1e-9
    return Relaxed(multipliers, bound, layer[used], choice[used], x[:n_cols][used])


def _feasible_multipliers(
    lane: Lane, duals: Array, scale: Array, penalty_scale: float, max_penalty: float | None
) -> Multipliers:
    """Clip and normalise duals of the coupling rows, so that the bound they give holds exactly."""
    duals = np.maximum(duals, 0.0)
    shares: list[Array] = []
    row = 0
    for maximum in lane.terms.maxima:
        part = np.zeros(len(maximum.constants))
        if maximum.weight > 0:
            part = duals[row : row + len(part)]
            row += len(part)
        total = part.sum()
        shares.append(part / total if total > 0 else np.full(len(part), 1.0 / len(part)))
    memory = duals[row : row + lane.n] / scale
    penalty = 0.0 if max_penalty is None else float(duals[row + lane.n]) / penalty_scale
    return Multipliers(tuple(shares), memory, penalty)


def _solve_lp(
    objective: Array,
    coupling: Array,
    upper: Array,
    layer: NDArray[np.int64],
    n_layers: int,
    n_choices: int,
) -> tuple[Array, Array] | None:
    """Solve min objective, one choice per layer, coupling @ x <= upper; return x and the coupling duals."""
    from ortools.linear_solver.python import model_builder_helper

    helper: Any = model_builder_helper

    n_cols = coupling.shape[1]
    one_each = sparse.csr_matrix(
        (np.ones(n_choices), (layer, np.arange(n_choices))), shape=(n_layers, n_cols)
    )
    matrix = sparse.vstack([one_each, sparse.csr_matrix(coupling)]).tocsr()
    factor = float(np.abs(objective).max()) or 1.0
    model = helper.ModelBuilderHelper()
    lower_bounds = np.zeros(n_cols)
    lower_bounds[n_choices:] = -np.inf
    model.fill_model_from_sparse_data(
        lower_bounds,
        np.full(n_cols, np.inf),
        objective / factor,
        np.concatenate([np.ones(n_layers), np.full(len(upper), -np.inf)]),
        np.concatenate([np.ones(n_layers), upper]),
        matrix,
    )
    solver = helper.ModelSolverHelper("glop")
    solver.solve(model)
    if solver.status() == helper.SolveStatus.INFEASIBLE:
        return None
    if not solver.has_solution():
        raise RuntimeError(f"the linear relaxation ended with status {solver.status()}")
    return solver.variable_values(), solver.dual_values()[n_layers:] * factor
