"""The best single pipeline on a part of a cluster: degrees, chunks and cache formats beside the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dse.errors import ConfigError
from dse.graph.workload import Workload
from dse.partition.branch import Limits
from dse.partition.explain import missing_sentence
from dse.partition.from_table import TableProblem
from dse.partition.groups import device_groups, group_sequences
from dse.partition.layout.classes import stage_classes
from dse.partition.layout.groupings import GroupingSearch
from dse.partition.layout.inputs import ModelInputs
from dse.partition.offload import buffer_sizes_bytes, with_offload
from dse.partition.problem import Array, EnergyTables, Goal, PipelineProblem, Solution, Status
from dse.partition.solve import OPTIMAL_GAP_FRAC, Planner, with_ties_broken
from hardware_specs.spec import Cluster

MAX_LANES = 1500  # above, groupings are searched instead of listed
Role = Literal["both", "prefill", "decode"]
Pools = Literal["same", "separate", "auto"]


@dataclass(frozen=True)
class LayoutOptions:
    """What a layout may decide.

    Attributes:
        degrees: of tensor parallelism; None for all that the model and the nodes allow.
        n_chunks: passes that a prefill may take.
        n_replicas: how many replicas; None for the best number.
        pools: whether prefill and decode share their devices.
        offload: where weights of layers may lie outside the devices, as ``parse_offload`` reads it; None for
            nowhere.
    """

    degrees: tuple[int, ...] | None = (1,)
    n_chunks: tuple[int, ...] = (1,)
    n_replicas: int | None = 1
    pools: Pools = "same"
    offload: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """A solved pipeline: the problem of the best variant, and the solution with the bound for all of them."""

    solution: Solution
    problem: TableProblem | None
    n_chunks: int = 1

    @property
    def value(self) -> float:
        """Its objective, infinite where there is no plan."""
        return float("inf") if self.solution.value is None else self.solution.value

    @property
    def bound(self) -> float:
        """What no pipeline is below; infinite where none exists."""
        return float("inf") if self.solution.bound is None else self.solution.bound


def degrees_of(inputs: ModelInputs, cluster: Cluster, options: LayoutOptions) -> tuple[int, ...]:
    """Return the degrees of tensor parallelism to consider on a cluster.

    Raises:
        ConfigError: a wanted one does not suit the model, or no node is large enough.
    """
    largest = max(node.n_devices for node in cluster.nodes)
    possible = inputs.degrees(largest)
    if options.degrees is None:
        return possible
    for degree in options.degrees:
        if degree not in possible:
            why = (
                f"the largest node has {largest}" if degree > largest else "heads and matrices do not divide"
            )
            raise ConfigError(
                f"{inputs.graph.model} cannot be shared out to {degree} devices of a node: {why}",
                path="--tensor-parallel",
                value=degree,
                allowed=[str(entry) for entry in possible],
            )
    return options.degrees


def best_pipeline(
    inputs: ModelInputs,
    cluster: Cluster,
    workload: Workload,
    goal: Goal,
    options: LayoutOptions,
    limits: Limits,
    *,
    role: Role = "both",
    handover: Callable[[Sequence[int], NDArray[np.bool_], int], tuple[Array, Array]] | None = None,
    kv_groups: Sequence[NDArray[np.bool_]] | None = None,
    cutoff: float | None = None,
    with_energy: bool = False,
) -> Pipeline:
    """Return the best pipeline, its bound over all degrees, chunks and cache formats.

    Args:
        inputs: the model and its choices.
        cluster: whose devices it may use.
        workload: the batch.
        goal: objective and bounds.
        options: the degrees and chunks to decide on.
        limits: for all of it.
        role: which phases it serves; the other phase takes no time, and a prefill keeps the cache of the
            prompts alone.
        handover: (P,) seconds and (P,) joules to hand the cache of a pass of a prefill over, given sizes,
            choices and passes.
        kv_groups: choices by cache format; None for the runtime's.
        cutoff: a value that is known from elsewhere; nothing at or above it is looked for.
        with_energy: whether the energy of the plan will be asked for, beside what the goal names.
    """
    began = time.monotonic()
    largest = max(node.n_devices for node in cluster.nodes)
    wanted = inputs.degrees(largest) if options.degrees is None else options.degrees
    degrees = tuple(degree for degree in wanted if degree <= largest)
    groups = device_groups(cluster, degrees)
    sequences = group_sequences(
        cluster, groups, inputs.n_layers, max_devices=goal.max_devices, limit=MAX_LANES
    )
    best = Pipeline(Solution("infeasible", None, None, None, None, 0.0, None, ""), None)
    if not groups:
        return best
    value, bound = float("inf") if cutoff is None else cutoff, float("inf")
    workload = served(workload, role)
    n_chunks = (1,) if role == "decode" else options.n_chunks
    variants: list[tuple[int, TableProblem]] = []
    for chunks in n_chunks:
        table = inputs.table(cluster, workload, degrees, chunks)
        for usable in kv_groups or inputs.kv_groups:
            resident = inputs.problem(
                table,
                cluster,
                workload,
                groups,
                sequences or ((0,),),
                usable,
                with_energy=with_energy or "energy" in goal.quantities,
            )
            problem = _of_role(resident.problem, role)
            if handover is not None:
                problem = _handing_over(problem, *handover(problem.prefill_micro_batches, usable, chunks))
            resident = replace(resident, problem=problem)
            variants.append((chunks, resident))
            if options.offload is not None:
                variants += [
                    (chunks, with_offload(resident, table, cluster, [options.offload], size))
                    for size in buffer_sizes_bytes(resident, table)
                ]
    for index, (chunks, built) in enumerate(variants):
        left = None if limits.time_s is None else max(0.5, limits.time_s - (time.monotonic() - began))
        share = None if left is None else left / (len(variants) - index)
        part = replace(limits, time_s=share)
        solution = _solved(built, cluster, goal, part, listed=sequences is not None, cutoff=value)
        bound = min(bound, value if solution.bound is None else solution.bound)
        if solution.value is not None and solution.value < value:
            value, best = solution.value, Pipeline(solution, built, chunks)
    if best.problem is None:
        return _nothing(best, variants[0][1].problem, goal, bound, cutoff, time.monotonic() - began)
    bound = min(bound, value)
    gap_frac = (value - bound) / abs(value) if value != bound else 0.0
    status: Status = "optimal" if gap_frac <= OPTIMAL_GAP_FRAC else "feasible"
    time_s = time.monotonic() - began
    solution = replace(best.solution, status=status, bound=bound, gap_frac=gap_frac, time_s=time_s)
    return replace(best, solution=solution)


def _solved(
    built: TableProblem, cluster: Cluster, goal: Goal, limits: Limits, *, listed: bool, cutoff: float
) -> Solution:
    problem = built.problem
    known = cutoff if cutoff < float("inf") else None
    n_pairs = len(problem.prefill_micro_batches) * len(problem.decode_micro_batches)
    planner = Planner(problem, replace(goal, max_devices=None), limits)
    if not listed or len(problem.orders) * n_pairs > MAX_LANES:
        stages = stage_classes(cluster, built.groups)
        solution = GroupingSearch(problem, cluster, stages, goal, limits).run(known)
    else:
        solution = planner.solve(goal.max_penalty, explain=False, cutoff=known)
    return with_ties_broken(planner, solution, goal.max_penalty)


def _nothing(
    best: Pipeline,
    problem: PipelineProblem,
    goal: Goal,
    bound: float,
    cutoff: float | None,
    time_s: float,
) -> Pipeline:
    """Return that there is no pipeline, with the reason where nothing is known from elsewhere."""
    text = missing_sentence(problem, goal) if cutoff is None and len(problem.orders) > 1 else ""
    finite = bound if bound < float("inf") else None
    return replace(best, solution=replace(best.solution, bound=finite, time_s=time_s, binding=text))


def served(workload: Workload, role: Role) -> Workload:
    """Return the workload whose cache a pipeline of a role holds.

    A prefill alone ends with the first token.
    """
    return replace(workload, output_tokens=1) if role == "prefill" else workload


def _of_role(problem: PipelineProblem, role: Role) -> PipelineProblem:
    """Return the problem without the costs of the phase that other devices serve."""
    if role == "both":
        return problem
    activations, energy = problem.activation_bytes, problem.energy
    if role == "prefill":
        # the decode has no activations here: of its candidate sizes the least stands for none
        return replace(
            problem,
            decode_micro_batches=(problem.batch,),
            decode_s=np.zeros_like(problem.decode_s[:1]),
            first_decode_s=np.zeros_like(problem.first_decode_s[:1]),
            last_decode_s=np.zeros_like(problem.last_decode_s[:1]),
            hop_decode_s=np.zeros_like(problem.hop_decode_s[:1]),
            energy=None if energy is None else _without_decode(energy),
            activation_bytes=None if activations is None else activations.min(axis=1, keepdims=True),
        )
    return replace(
        problem,
        prefill_micro_batches=(problem.batch,),
        prefill_s=np.zeros_like(problem.prefill_s[:1]),
        first_prefill_s=np.zeros_like(problem.first_prefill_s[:1]),
        last_prefill_s=np.zeros_like(problem.last_prefill_s[:1]),
        hop_prefill_s=np.zeros_like(problem.hop_prefill_s[:1]),
        energy=None if energy is None else _without_prefill(energy),
        activation_bytes=None if activations is None else activations.min(axis=0, keepdims=True),
    )


def _without_prefill(energy: EnergyTables) -> EnergyTables:
    return replace(
        energy,
        prefill_j=np.zeros_like(energy.prefill_j[:1]),
        first_prefill_j=np.zeros_like(energy.first_prefill_j[:1]),
        last_prefill_j=np.zeros_like(energy.last_prefill_j[:1]),
        hop_prefill_j=np.zeros_like(energy.hop_prefill_j[:1]),
    )


def _without_decode(energy: EnergyTables) -> EnergyTables:
    return replace(
        energy,
        decode_j=np.zeros_like(energy.decode_j[:1]),
        first_decode_j=np.zeros_like(energy.first_decode_j[:1]),
        last_decode_j=np.zeros_like(energy.last_decode_j[:1]),
        hop_decode_j=np.zeros_like(energy.hop_decode_j[:1]),
    )


def _handing_over(problem: PipelineProblem, moved_s: Array, moved_j: Array) -> PipelineProblem:
    """Return the problem of a prefill whose last stage sends the cache on, one pass in ``moved_s`` (P)."""
    energy = problem.energy
    if energy is not None:
        energy = replace(energy, last_prefill_j=energy.last_prefill_j + moved_j[:, None])
    return replace(problem, handover_s=moved_s, energy=energy)
