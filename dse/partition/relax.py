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
from dse.partition.terms import Terms


@dataclass(frozen=True)
class Multipliers:
    """Weights that make the objective separable over layers.

    Attributes:
        shares: per maximum of the lane's terms, a probability vector over its rows.
        memory: (n) objective per byte; penalty: objective per unit of penalty, beside theta.
        bounds: (R) objective per unit of each of the lane's bounds; bound_shares: as ``shares``, for the
            maxima of every bound.
    """

    shares: tuple[Array, ...]
    memory: Array
    penalty: float
    bounds: tuple[float, ...] = ()
    bound_shares: tuple[tuple[Array, ...], ...] = ()


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
    weights, constant = _weighted(lane.terms, multipliers.shares)
    for bound, price, shares in zip(lane.bounds, multipliers.bounds, multipliers.bound_shares, strict=True):
        more, offset = _weighted(bound.terms, shares)
        weights += price * more
        constant += price * (offset - bound.limit)
    return weights, constant


def _weighted(terms: Terms, shares: tuple[Array, ...]) -> tuple[Array, float]:
    weights, constant = terms.linear.copy(), terms.constant
    for maximum, share in zip(terms.maxima, shares, strict=True):
        weights += maximum.weight * (share @ maximum.forms)
        constant += maximum.weight * float(share @ maximum.constants)
    return weights, constant


def extra_weights(lane: Lane, multipliers: Multipliers) -> Array:
    """Return the (E) weights of the extra costs under the multipliers."""
    total = lane.extra_weight.copy()
    for bound, price in zip(lane.bounds, multipliers.bounds, strict=True):
        total += price * bound.extra_weight
    return total


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
    for weight, extra in zip(extra_weights(lane, multipliers), lane.extra, strict=True):
        costs += weight * extra
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
    for e, extra in enumerate(lane.extra):
        costs += np.array([extra_weights(lane, m)[e] for m in multipliers])[:, None, None, None] * extra
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
    of_bounds = tuple(
        tuple(np.full(len(m.constants), 1.0 / len(m.constants)) for m in bound.terms.maxima)
        for bound in lane.bounds
    )
    return Multipliers(shares, np.zeros(lane.n), 0.0, (0.0,) * len(lane.bounds), of_bounds)


def relax_cut(
    lane: Lane, cut: NDArray[np.int64], usable: NDArray[np.bool_], max_penalty: float | None
) -> Relaxed | None:
    """Solve the relaxation of a cut over the ``usable`` (L, K) choices. None if it is infeasible."""
    stage = stage_of_layers(cut)
    layer, choice = np.nonzero(usable)
    coupling = coupling_rows(lane, stage[layer], layer, choice, max_penalty)
    n_cols = len(layer)
    one_each = sparse.csr_matrix(
        (np.ones(n_cols), (layer, np.arange(n_cols))), shape=(lane.n_layers, coupling.matrix.shape[1])
    )
    solved = run_linear_program(
        coupling.objective,
        sparse.vstack([one_each, sparse.csr_matrix(coupling.matrix)]).tocsr(),
        np.concatenate([np.ones(lane.n_layers), np.full(len(coupling.upper), -np.inf)]),
        np.concatenate([np.ones(lane.n_layers), coupling.upper]),
        n_cols,
    )
    if solved is None:
        return None
    x, duals = solved
    multipliers = feasible_multipliers(lane, -duals[lane.n_layers :], coupling, max_penalty)
    costs = layer_costs(lane, multipliers)[stage, np.arange(lane.n_layers)]
    bound = constant_part(lane, multipliers, max_penalty)
    bound += float(np.where(usable, costs, np.inf).min(axis=1).sum())
    used = x[:n_cols] > 1e-9
    return Relaxed(multipliers, bound, layer[used], choice[used], x[:n_cols][used])


@dataclass(frozen=True)
class Coupling:
    """Rows that couple the choices of different layers, ``matrix @ (choices, maxima) <= upper``.

    Attributes:
        objective: of all columns. memory_scale (n), penalty_scale, bound_scale (R): units of those rows.
    """

    objective: Array
    matrix: Array
    upper: Array
    memory_scale: Array
    penalty_scale: float
    bound_scale: Array


def coupling_rows(
    lane: Lane,
    stage: NDArray[np.int64],
    layer: NDArray[np.int64],
    choice: NDArray[np.int64],
    max_penalty: float | None,
) -> Coupling:
    """Return the rows for columns "choice of a layer on a stage" (three vectors of one length)."""
    n = lane.n
    prefill, decode = lane.prefill_s[stage, layer, choice], lane.decode_s[stage, layer, choice]
    memory, penalty = lane.memory[layer, choice], lane.penalty[layer, choice]
    extra = lane.extra[:, stage, layer, choice]
    groups = [lane.terms, *(bound.terms for bound in lane.bounds)]
    active = [(g, m) for g, terms in enumerate(groups) for m in terms.maxima if m.weight > 0]
    blocks: list[Array] = []
    uppers: list[Array] = []
    weights: list[float] = []
    for a, (_, maximum) in enumerate(active):
        rows = maximum.forms[:, stage] * prefill + maximum.forms[:, n + stage] * decode
        unit = float(rows.max()) or 1.0
        weights.append(maximum.weight * unit)
        tail = np.zeros((len(rows), len(active)))
        tail[:, a] = -1.0
        blocks.append(np.concatenate([rows / unit, tail], axis=1))
        uppers.append(-(maximum.forms @ lane.fixed + maximum.constants) / unit)
    scale = np.maximum(np.abs(lane.room), 1.0)
    rows = (stage == np.arange(n)[:, None]) * (memory / scale[stage])
    blocks.append(np.concatenate([rows, np.zeros((n, len(active)))], axis=1))
    uppers.append(lane.room / scale)
    penalty_scale = 1.0
    if max_penalty is not None:
        penalty_scale = max(abs(max_penalty), float(np.abs(penalty).mean()), 1e-300)
        blocks.append(np.concatenate([penalty / penalty_scale, np.zeros(len(active))])[None])
        uppers.append(np.array([max_penalty / penalty_scale]))
    bound_scale = np.array([abs(bound.limit) or 1.0 for bound in lane.bounds])
    for r, bound in enumerate(lane.bounds):
        row = bound.terms.linear[stage] * prefill + bound.terms.linear[n + stage] * decode
        row = row + bound.extra_weight @ extra
        tail = np.array([w * (g == r + 1) for w, (g, _) in zip(weights, active, strict=True)])
        blocks.append(np.concatenate([row, tail])[None] / bound_scale[r])
        offset = bound.terms.constant + float(bound.terms.linear @ lane.fixed)
        uppers.append(np.array([(bound.limit - offset) / bound_scale[r]]))
    own = lane.terms.linear[stage] * prefill + lane.terms.linear[n + stage] * decode + lane.theta * penalty
    own = own + lane.extra_weight @ extra
    tail = np.array([w * (g == 0) for w, (g, _) in zip(weights, active, strict=True)])
    return Coupling(
        np.concatenate([own, tail]),
        np.concatenate(blocks),
        np.concatenate(uppers),
        scale,
        penalty_scale,
        bound_scale,
    )


def feasible_multipliers(
    lane: Lane, duals: Array, coupling: Coupling, max_penalty: float | None
) -> Multipliers:
    """Clip and normalise duals of the coupling rows, so that the bound they give holds exactly."""
    duals = np.maximum(duals, 0.0)
    row = 0
    of_groups: list[tuple[Array, ...]] = []
    for terms in (lane.terms, *(bound.terms for bound in lane.bounds)):
        shares: list[Array] = []
        for maximum in terms.maxima:
            part = np.zeros(len(maximum.constants))
            if maximum.weight > 0:
                part = duals[row : row + len(part)]
                row += len(part)
            total = part.sum()
            shares.append(part / total if total > 0 else np.full(len(part), 1.0 / len(part)))
        of_groups.append(tuple(shares))
    memory = duals[row : row + lane.n] / coupling.memory_scale
    row += lane.n
    penalty = 0.0
    if max_penalty is not None:
        penalty = float(duals[row]) / coupling.penalty_scale
        row += 1
    prices = tuple(float(price) for price in duals[row:] / coupling.bound_scale)
    return Multipliers(of_groups[0], memory, penalty, prices, tuple(of_groups[1:]))


def run_linear_program(
    objective: Array, matrix: sparse.csr_matrix, low: Array, high: Array, n_nonnegative: int
) -> tuple[Array, Array] | None:
    """Minimise; the columns after ``n_nonnegative`` are free. Return x and the duals, None if infeasible."""
    from ortools.linear_solver.python import model_builder_helper

    helper: Any = model_builder_helper

    factor = float(np.abs(objective).max()) or 1.0
    model = helper.ModelBuilderHelper()
    n_cols = matrix.shape[1]
    lower_bounds = np.zeros(n_cols)
    lower_bounds[n_nonnegative:] = -np.inf
    model.fill_model_from_sparse_data(
        lower_bounds, np.full(n_cols, np.inf), objective / factor, low, high, matrix
    )
    solver = helper.ModelSolverHelper("glop")
    solver.solve(model)
    if solver.status() == helper.SolveStatus.INFEASIBLE:
        return None
    if not solver.has_solution():
        return _second_opinion(objective, matrix, low, high, n_nonnegative)
    return solver.variable_values(), solver.dual_values() * factor


def _second_opinion(
    objective: Array, matrix: sparse.csr_matrix, low: Array, high: Array, n_nonnegative: int
) -> tuple[Array, Array] | None:
    """Solve with HiGHS what GLOP gave up on as numerically abnormal; as ``run_linear_program`` otherwise."""
    from scipy.optimize import linprog

    factor = float(np.abs(objective).max()) or 1.0
    equal = low == high
    above, below = np.isfinite(high) & ~equal, np.isfinite(low) & ~equal
    columns = [(0.0, None) if j < n_nonnegative else (None, None) for j in range(matrix.shape[1])]
    solved = linprog(
        objective / factor,
        A_ub=sparse.vstack([matrix[above], -matrix[below]]),
        b_ub=np.concatenate([high[above], -low[below]]),
        A_eq=matrix[equal],
        b_eq=high[equal],
        bounds=columns,
    )
    if solved.status == 2:
        return None
    if solved.x is None:
        raise RuntimeError(f"the linear relaxation ended with: {solved.message}")
    duals = np.zeros(matrix.shape[0])
    duals[equal] = solved.eqlin.marginals
    duals[above] += solved.ineqlin.marginals[: above.sum()]
    duals[below] -= solved.ineqlin.marginals[above.sum() :]
    return np.asarray(solved.x), duals * factor
