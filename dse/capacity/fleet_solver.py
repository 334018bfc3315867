"""The cheapest fleet, exactly: an integer program in OR-Tools (HiGHS through MathOpt), with its bound.

Variables: nodes y[n] and replicas r[o] (integer), x[route] the share of a demand. Rows: every demand is
served; every resource of every option carries at most its replicas; replicas fit on the nodes; the service
levels hold; limits hold; what is prefilled apart is decoded.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from dse.capacity.fleet import (
    Fleet,
    FleetObjective,
    FleetProblem,
    NodeType,
    Route,
    dynamic_w,
    totals,
)
from dse.errors import ConfigError
from dse.quiet import stdout_to_stderr

OPTIMAL_GAP_FRAC = 1e-6
MANY_OPTIONS = 40
ROUND_UP = 1e-6  # solvers keep rows within 1e-7 or so; counts are read with this tolerance


@dataclass(frozen=True)
class SolverOptions:
    """When to stop, and what may be missed.

    Attributes:
        time_s, gap_frac: stop at either.
        integer_nodes: False relaxes nodes and replicas to fractions (the LP relaxation, a lower bound).
        shortfall: when True, levels may be missed, and the objective is by how much altogether.
    """

    time_s: float = 30.0
    gap_frac: float = 1e-9
    integer_nodes: bool = True
    shortfall: bool = False


@dataclass
class Program:
    """The model under construction: its variables, and the rows whose prices tell what a replica is worth."""

    model: Any
    nodes: list[Any] = field(default_factory=list)
    replicas: list[Any] = field(default_factory=list)
    routed: list[Any] = field(default_factory=list)
    factor: Any = None
    missed: list[Any] = field(default_factory=list)
    served_rows: dict[int, Any] = field(default_factory=dict)
    handed_rows: dict[tuple[int, str], Any] = field(default_factory=dict)
    node_rows: dict[int, Any] = field(default_factory=dict)
    level_rows: list[Any] = field(default_factory=list)


def solve_fleet(
    problem: FleetProblem, objective: FleetObjective = "cost", options: SolverOptions | None = None
) -> Fleet:
    """Return the best fleet with a proven bound.

    Args:
        problem: the data; every demand needs a route, else it is infeasible.
        objective: "cost" (USD/h), "energy" (W), "carbon" (g/h) are minimised; "load" is the largest factor on
            all rates that the limits and available nodes can carry.
        options: when to stop.

    Raises:
        ConfigError: "load" without any limit.
    """
    options = options or SolverOptions()
    endless = any(node.n_available is None for node in problem.nodes)
    if objective == "load" and endless and not problem.limits.parts():
        raise ConfigError("without a limit on nodes, power or money any load can be carried")
    began = time.monotonic()
    served = {route.demand for route in problem.routes if route.part != "decode"}
    unserved = [demand.name for index, demand in enumerate(problem.demands) if index not in served]
    if unserved:
        reason = f"no option serves {', '.join(unserved[:4])}" + (" ..." if len(unserved) > 4 else "")
        return _nothing(objective, reason, time.monotonic() - began)
    if options.integer_nodes and len(problem.options) > MANY_OPTIONS and objective != "load":
        from dse.capacity.narrowing import solve_large

        return solve_large(problem, objective, options)
    return solve_directly(problem, objective, options)


def solve_directly(problem: FleetProblem, objective: FleetObjective, options: SolverOptions) -> Fleet:
    """Return the best fleet by one integer program over all options."""
    began = time.monotonic()
    program = build_program(problem, objective, options)
    result = run_program(program, options)
    spent_s = time.monotonic() - began
    if not result.has_primal_feasible_solution():
        return nothing_found(objective, result, spent_s)
    return read_fleet(problem, objective, program, result, spent_s, options)


def run_program(program: Program, options: SolverOptions) -> Any:
    """Solve a model and return the result of MathOpt."""
    from ortools.math_opt.python import mathopt

    parameters = mathopt.SolveParameters(
        time_limit=dt.timedelta(seconds=options.time_s),
        relative_gap_tolerance=options.gap_frac,
    )
    with stdout_to_stderr():
        return mathopt.solve(program.model, mathopt.SolverType.HIGHS, params=parameters)


def nothing_found(objective: FleetObjective, result: Any, time_s: float) -> Fleet:
    """Return that there is no fleet, or that none was found in time."""
    from ortools.math_opt.python import mathopt

    proven = result.termination.reason == mathopt.TerminationReason.INFEASIBLE
    return _nothing(objective, "" if proven else "nothing was found before the time limit", time_s)


def least_missed(problem: FleetProblem, options: SolverOptions | None = None) -> dict[str, float]:
    """Return by how much each level is missed (share of its requests) where that is least altogether.

    An empty mapping: even so nothing is feasible, for want of nodes, power or money.
    """
    from ortools.math_opt.python import mathopt

    options = options or SolverOptions(shortfall=True)
    program = build_program(problem, "cost", options)
    parameters = mathopt.SolveParameters(
        time_limit=dt.timedelta(seconds=options.time_s), relative_gap_tolerance=1e-3
    )
    with stdout_to_stderr():
        result = mathopt.solve(program.model, mathopt.SolverType.HIGHS, params=parameters)
    if not result.has_primal_feasible_solution():
        return {}
    return {
        level.name: float(result.variable_values(missed))
        for level, missed in zip(problem.levels, program.missed, strict=True)
    }


def build_program(problem: FleetProblem, objective: FleetObjective, options: SolverOptions) -> Program:
    """Return the model of a problem, not yet solved."""
    from ortools.math_opt.python import mathopt

    program = Program(mathopt.Model(name="fleet"))
    model, whole = program.model, options.integer_nodes
    for node in problem.nodes:
        most = math.inf if node.n_available is None else float(node.n_available)
        program.nodes.append(model.add_variable(lb=0.0, ub=most, is_integer=whole, name=node.name))
    program.factor = model.add_variable(lb=0.0) if objective == "load" else None
    add_serving(problem, program, options)
    _add_limits(problem, program)
    slices = problem.n_slices if whole else None
    if objective == "load":
        model.maximize(program.factor)
    elif options.shortfall:
        model.minimize(mathopt.fast_sum(program.missed))
    else:
        model.minimize(_objective(problem, objective, program, 1.0 / (slices or 1)))
    return program


def add_serving(problem: FleetProblem, program: Program, options: SolverOptions) -> None:
    """Add replicas and routing on the nodes of a program, so that all demands are served at the levels."""
    model, whole = program.model, options.integer_nodes
    for option in problem.options:
        most = math.inf if option.n_max is None else float(option.n_max)
        program.replicas.append(model.add_variable(lb=0.0, ub=most, is_integer=whole))
    slices = problem.n_slices if whole else None
    top = math.inf if program.factor is not None else float(slices or 1)
    program.routed = [
        model.add_variable(lb=0.0, ub=top, is_integer=slices is not None) for _ in problem.routes
    ]
    program.missed = [
        model.add_variable(lb=0.0, ub=1.0 if options.shortfall else 0.0) for _ in problem.levels
    ]
    _add_rows(problem, program, 1.0 / (slices or 1))


def _add_rows(problem: FleetProblem, program: Program, unit: float) -> None:
    """Serve every demand, within the replicas, on the nodes, at the levels; ``unit`` is a slice's share."""
    from ortools.math_opt.python import mathopt

    model = program.model
    served: dict[int, list[Any]] = defaultdict(list)
    handed: dict[tuple[int, str], list[Any]] = defaultdict(list)
    carried: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for route, share in zip(problem.routes, program.routed, strict=True):
        if route.part != "decode":
            served[route.demand].append(share)
        if route.part != "both":
            handed[route.demand, route.chain].append(share if route.part == "prefill" else -share)
        rate = problem.demands[route.demand].rate_per_s
        for use in route.uses:
            for resource, taken in enumerate(use.shares):
                if taken > 0:
                    carried[use.option, resource].append(taken * rate * unit * share)
    for demand, shares in served.items():
        total = mathopt.fast_sum(shares) * unit
        row = total == (1.0 if program.factor is None else program.factor)
        program.served_rows[demand] = model.add_linear_constraint(row)
    for key, passed_on in handed.items():
        program.handed_rows[key] = model.add_linear_constraint(mathopt.fast_sum(passed_on) == 0.0)
    for (option, _), terms in carried.items():
        model.add_linear_constraint(mathopt.fast_sum(terms) <= program.replicas[option])
    taken_nodes: dict[int, list[Any]] = defaultdict(list)
    for option in range(len(problem.options)):
        for node, share in problem.node_share(option):
            taken_nodes[node].append(share * program.replicas[option])
    for node, terms in taken_nodes.items():
        program.node_rows[node] = model.add_linear_constraint(mathopt.fast_sum(terms) <= program.nodes[node])
    for index, level in enumerate(problem.levels):
        inside = set(level.demands)
        rate = sum(problem.demands[d].rate_per_s for d in inside)
        terms = [
            (attained - level.min_frac) * (problem.demands[route.demand].rate_per_s * unit / rate) * share
            for route, share in zip(problem.routes, program.routed, strict=True)
            if route.demand in inside and (attained := route.attained_frac[index]) is not None
        ]
        row = mathopt.fast_sum(terms) + program.missed[index] >= 0.0
        program.level_rows.append(model.add_linear_constraint(row))


def _add_limits(problem: FleetProblem, program: Program) -> None:
    from ortools.math_opt.python import mathopt

    for part, limit, _ in problem.limits.parts():
        terms = [getattr(node, part) * n for node, n in zip(problem.nodes, program.nodes, strict=True)]
        program.model.add_linear_constraint(mathopt.fast_sum(terms) <= limit)


def _objective(problem: FleetProblem, objective: FleetObjective, program: Program, unit: float) -> Any:
    from ortools.math_opt.python import mathopt

    terms = []
    for index, node in enumerate(problem.nodes):
        cost = node.usd_per_h if objective == "cost" else _weight(node, objective, node.static_w)
        terms.append(cost * program.nodes[index])
    for route, share in zip(problem.routes, program.routed, strict=True):
        cost = serving_cost(problem, objective, route)
        if cost > 0:
            terms.append(cost * unit * share)
    return mathopt.fast_sum(terms)


def serving_cost(problem: FleetProblem, objective: FleetObjective, route: Route) -> float:
    """Return what serving a whole demand by a route adds to the objective, beside its nodes."""
    return sum(_weight(problem.nodes[n], objective, power_w) for n, power_w in dynamic_w(problem, route))


def _weight(node: NodeType, objective: FleetObjective, power_w: float) -> float:
    """What so many watts count on a node."""
    if objective == "energy":
        return power_w
    return power_w / 1e3 * (node.carbon_g_per_kwh if objective == "carbon" else node.usd_per_kwh)


def read_fleet(
    problem: FleetProblem,
    objective: FleetObjective,
    program: Program,
    result: Any,
    time_s: float,
    options: SolverOptions,
) -> Fleet:
    """Return the fleet of a solved model."""
    values = result.variable_values
    unit = 1.0 / (problem.n_slices or 1) if options.integer_nodes else 1.0
    routed = tuple(max(0.0, float(values(share))) * unit for share in program.routed)

    def count(variable: Any) -> int:
        return math.ceil(float(values(variable)) - ROUND_UP)

    n_nodes = tuple(count(variable) for variable in program.nodes)
    value, bound = float(result.objective_value()), float(result.best_objective_bound())
    bound = max(bound, value) if objective == "load" else min(bound, value)
    gap_frac = abs(value - bound) / abs(value) if value else 0.0
    usd, watts, grams = totals(problem, n_nodes, routed)
    return Fleet(
        status="optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible",
        objective=objective,
        n_nodes=n_nodes,
        n_replicas=tuple(count(variable) for variable in program.replicas),
        routed_frac=routed,
        value=value,
        bound=bound,
        gap_frac=gap_frac,
        time_s=time_s,
        usd_per_h=usd,
        energy_w=watts,
        carbon_g_per_h=grams,
    )


def _nothing(objective: FleetObjective, reason: str, time_s: float) -> Fleet:
    return Fleet("infeasible", objective, (), (), (), None, None, None, time_s, reason=reason)
