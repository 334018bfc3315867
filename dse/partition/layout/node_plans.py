"""What a set of equal devices can do as one replica: the trade-offs that fleets are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dse.graph.workload import Workload
from dse.partition.branch import Limits
from dse.partition.from_table import TableProblem
from dse.partition.groups import DeviceGroup, device_groups
from dse.partition.layout.inputs import ModelInputs
from dse.partition.objective import quantity
from dse.partition.problem import Goal, Objective, Solution
from dse.partition.solve import Planner, with_ties_broken
from dse.plan import Plan
from hardware_specs.spec import Cluster

OBJECTIVES: tuple[Objective, ...] = ("throughput", "ttft", "tpot")
GAP_FRAC = 5e-3


@dataclass(frozen=True)
class ReplicaPlan:
    """One replica with its predicted quantities for a batch of the workload.

    Attributes:
        degrees: devices of every stage; their sum is ``n_devices``.
        ttft_s: until all requests of the batch have their first token; tpot_s: one decode round.
        tokens_per_s: generated tokens in steady state, one batch after another.
        usd_per_h: rent of its devices, None where unknown.
        optimised: the quantities that this plan is the proven best in, for its number of devices; gap_frac:
            the largest gap of these proofs.
    """

    plan: Plan
    n_devices: int
    degrees: tuple[int, ...]
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    usd_per_h: float | None
    penalty: float
    optimised: tuple[Objective, ...]
    gap_frac: float


def replica_plans(
    inputs: ModelInputs,
    cluster: Cluster,
    workload: Workload,
    *,
    max_penalty: float | None = None,
    degrees: Sequence[int] | None = None,
    device_counts: Sequence[int] | None = None,
    objectives: Sequence[Objective] = OBJECTIVES,
    time_limit_s: float = 5.0,
) -> tuple[ReplicaPlan, ...]:
    """Return the replicas of one node that no other one beats: fewest devices, TTFT, TPOT and throughput.

    For every size of a replica and every objective, the best pipeline over all degrees of tensor
    parallelism, stages, precisions and micro-batches is found exactly; those that another one equals or beats
    in everything are left out.

    Args:
        inputs: the model and its choices.
        cluster: one node of equal devices (``part_of`` takes one out of a cluster).
        workload: the batch that one replica serves at a time.
        max_penalty: bound on the summed penalty; None for none.
        degrees: of tensor parallelism; None for all that the model allows.
        device_counts: sizes of a replica; None for the powers of two in the node.
        objectives: what to optimise.
        time_limit_s: of each of the solves; gaps above 0.5 % at its end are in ``gap_frac``.
    """
    (node,) = cluster.nodes
    possible = inputs.degrees(node.n_devices) if degrees is None else tuple(degrees)
    table = inputs.table(cluster, workload, possible)
    groups = device_groups(cluster, possible)
    found: dict[str, ReplicaPlan] = {}
    for n_devices in _powers_of_two(node.n_devices) if device_counts is None else device_counts:
        sequences = _compositions(groups, n_devices, inputs.n_layers)
        for usable in inputs.kv_groups if sequences else ():
            problem = inputs.problem(table, cluster, workload, groups, sequences, usable)
            for objective in objectives:
                goal = Goal("makespan", objective=objective, max_penalty=max_penalty)
                planner = Planner(problem.problem, goal, Limits(time_s=time_limit_s, gap_frac=GAP_FRAC))
                solution = planner.solve(max_penalty, explain=False)
                solution = with_ties_broken(planner, solution, max_penalty)
                if solution.arrangement is None:
                    break
                plan = _replica_plan(inputs, cluster, problem, solution, objective)
                known = found.get(plan.plan.hash)
                found[plan.plan.hash] = plan if known is None else _both(known, plan)
    return _undominated(list(found.values()))


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def _compositions(
    groups: Sequence[DeviceGroup], n_devices: int, n_layers: int
) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of groups of one node that use exactly so many devices."""
    at = {(group.degree, group.index): i for i, group in enumerate(groups)}
    degrees = sorted({group.degree for group in groups})
    done: list[tuple[int, ...]] = []
    open_: list[tuple[int, ...]] = [()]
    while open_:
        parts = open_.pop()
        if sum(parts) == n_devices:
            done.append(parts)
        elif len(parts) < n_layers:
            open_ += [(*parts, degree) for degree in degrees if sum(parts) + degree <= n_devices]
    return tuple(
        tuple(at[degree, parts[:s].count(degree)] for s, degree in enumerate(parts)) for parts in done
    )


def _replica_plan(
    inputs: ModelInputs, cluster: Cluster, problem: TableProblem, solution: Solution, objective: Objective
) -> ReplicaPlan:
    arrangement = solution.arrangement
    assert arrangement is not None
    assert solution.penalty is not None
    plan = problem.plan_from(arrangement, model=inputs.graph.model)
    ttft_s, tpot_s, period_s = (
        quantity(problem.problem, Goal("makespan"), arrangement, name)
        for name in ("ttft", "tpot", "throughput")
    )
    degrees = tuple(stage.tensor_parallel for stage in plan.stages)
    price = cluster.specs[cluster.nodes[0].device].price_usd_per_h
    return ReplicaPlan(
        plan=plan,
        n_devices=sum(degrees),
        degrees=degrees,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=problem.problem.batch * problem.problem.output_tokens / period_s,
        usd_per_h=None if price is None else price * sum(degrees),
        penalty=solution.penalty,
        optimised=(objective,),
        gap_frac=solution.gap_frac or 0.0,
    )


def _both(first: ReplicaPlan, second: ReplicaPlan) -> ReplicaPlan:
    """Return a plan that was found twice with both of its proofs."""
    optimised = tuple(dict.fromkeys(first.optimised + second.optimised))
    return replace(first, optimised=optimised, gap_frac=max(first.gap_frac, second.gap_frac))


def _undominated(plans: list[ReplicaPlan]) -> tuple[ReplicaPlan, ...]:
    """Return the plans that no other one equals or beats in everything, fewest devices first."""
    costs = {plan.plan.hash: (plan.n_devices, plan.ttft_s, plan.tpot_s, -plan.tokens_per_s) for plan in plans}

    def beaten(plan: ReplicaPlan) -> bool:
        own = costs[plan.plan.hash]
        return any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in costs.values()
        )

    return tuple(sorted((plan for plan in plans if not beaten(plan)), key=lambda plan: costs[plan.plan.hash]))
