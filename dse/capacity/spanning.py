"""Replicas that span machines of two types: one stage on each, joined by the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dse.capacity.load import Load
from dse.capacity.options import Absent, Bits, Building, ReplicaOption, quality_of, refused
from dse.capacity.planned import Choice
from dse.errors import DseError, NoFeasiblePlan
from dse.evaluate.tensor_parallel import degrees_for
from dse.graph.workload import Workload
from dse.partition.branch import Limits
from dse.partition.groups import device_groups
from dse.partition.layout.inputs import ModelInputs
from dse.partition.problem import Goal
from dse.partition.solve import Planner
from dse.plan import Plan
from dse.sensitivity.table import SensitivityTable

BATCHES = (
    128,
    64,
    32,
    16,
    8,
)  # planned for, the largest that fits: at few the faster machine does best nearly alone
TIME_LIMIT_S = 0.3
GAP_FRAC = 5e-3
SEQUENCES = 32
Machines = tuple[tuple[int, int], ...]


def spanning_options(
    building: Building,
    choices: Sequence[Choice],
    load: Load,
    sensitivity: SensitivityTable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ReplicaOption], list[Absent]]:
    """Return pipelines over one machine each of two types, in the better order and with the best cut.

    The set is bounded: every pair of types of unlike devices, whole machines and halves of both. The planner
    places the layers, and chooses their precisions where a choice has two, for the largest throughput at the
    mean lengths of the load and a batch of 128, or fewer where that does not fit; each machine's part is one
    tensor-parallel group. The cut is then moved to where both stages are equally busy, if that fits.

    Args:
        building: model, machines and engines; without a network there are none.
        choices: precisions to offer.
        load: its mean lengths are planned for.
        sensitivity: for the quality, None where unknown.
        progress: called with (done, all).
    """
    if building.catalogue.network is None:
        return [], []
    prompt, output = round(load.prompt_tokens.mean()), max(2, round(load.output_tokens.mean()))
    lengths = Workload(batch=1, prompt_tokens=prompt, output_tokens=output)
    work = [(pair, choice) for pair in _pairs(building) for choice in choices]
    found: list[ReplicaOption] = []
    absent: list[Absent] = []
    for done, (machines, choice) in enumerate(work):
        offers = [(building.catalogue.nodes[index], n) for index, n in machines]
        name = f"{' + '.join(f'{offer.name} TP{n}' for offer, n in offers)} {choice.name}"
        reasons = [refused(offer, choice.precisions, building.runtime) for offer, _ in offers]
        reason = next((text for text in reasons if text), None)
        if reason is None:
            try:
                option = _option(building, machines, choice, lengths, name, sensitivity)
                reason = building.quality_refusal(option.bits)
                found += [] if reason else [option]
            except DseError as error:
                reason = str(error)
        if reason is not None:
            absent.append(Absent(name, reason))
        if progress is not None:
            progress(done + 1, len(work))
    return found, absent


def _pairs(building: Building) -> list[Machines]:
    """Return (offer, devices) of two machines: whole, and halves of both."""
    nodes = building.catalogue.nodes
    pairs: list[Machines] = []
    for a, b in combinations(range(len(nodes)), 2):
        if nodes[a].spec.name == nodes[b].spec.name:
            continue
        for parts in (1, 2):
            sizes = nodes[a].n_devices // parts, nodes[b].n_devices // parts
            if all(n >= 1 and n in degrees_for(building.graph, n) for n in sizes):
                pairs.append(((a, sizes[0]), (b, sizes[1])))
    return pairs


def _option(
    building: Building,
    machines: Machines,
    choice: Choice,
    lengths: Workload,
    name: str,
    sensitivity: SensitivityTable | None,
) -> ReplicaOption:
    """Return the pipeline of a pair.

    Raises:
        DseError: it does not fit.
    """
    cluster = building.catalogue.cluster_of([(building.catalogue.nodes[i], n) for i, n in machines], name)
    table, most = choice.penalties(building, sensitivity)
    inputs = ModelInputs(building.graph, building.units, choice.precisions, table, building.runtime)
    degrees = tuple(dict.fromkeys(n for _, n in machines))
    groups = device_groups(cluster, degrees)
    ends = [
        next(
            i for i, group in enumerate(groups) if group.node == node.name and group.degree == node.n_devices
        )
        for node in cluster.nodes
    ]
    sequences = (tuple(ends), tuple(reversed(ends)))
    plan: Plan | None = None
    for batch in BATCHES:
        workload = replace(lengths, batch=batch)
        prices = inputs.table(cluster, workload, degrees)
        problem = inputs.problem(prices, cluster, workload, groups, sequences)
        goal = Goal("makespan", objective="throughput", max_penalty=most)
        planner = Planner(problem.problem, goal, Limits(time_s=TIME_LIMIT_S, gap_frac=GAP_FRAC))
        found = planner.solve(most, explain=False).arrangement
        if found is not None and len(found.stages) == len(machines):
            plan = problem.plan_from(found, model=building.graph.model)
            break
    if plan is None:
        raise NoFeasiblePlan("no split of the layers was found that fits both machines")
    chosen = [entry for _, entry in plan.assignment.items]
    bits = Bits(choice.name, plan.assignment, choice.precisions, quality_of(chosen, sensitivity))
    option = building.option(machines[0][0], cluster, plan, bits, name, machines[1:])
    try:
        other = building.option(
            machines[0][0], cluster, _rebalanced(option, lengths), bits, name, machines[1:]
        )
    except DseError:
        return option
    return min(option, other, key=lambda entry: float(_busy_s(entry, lengths).max()))


def _busy_s(option: ReplicaOption, lengths: Workload) -> NDArray[np.float64]:
    """Return (stages,) the time of every stage that one request takes, decoding with 31 others."""
    prefill_s = option.steps.prefill_costs(np.array([lengths.prompt_tokens]))[0, :, 0]
    context = np.array([lengths.prompt_tokens + lengths.output_tokens / 2])
    decode_s = option.steps.decode_costs(np.array([SEQUENCES]), context)[0, :, 0]
    return np.asarray(prefill_s + (lengths.output_tokens - 1) * decode_s / SEQUENCES)


def _rebalanced(option: ReplicaOption, lengths: Workload) -> Plan:
    """Return the plan with the cut at which both stages are equally busy, if layers cost what they do now.

    An engine keeps both stages at work with micro-batches of many requests, which the planner, whose batches
    come one after another, does not count on.
    """
    plan = option.replica.plan
    assert plan is not None
    first, second = plan.stages
    n_layers = second.layers[1]
    of_first, of_second = _busy_s(option, lengths) / [first.layers[1], n_layers - first.layers[1]]
    cut = min(max(1, round(n_layers * of_second / (of_first + of_second))), n_layers - 1)
    return replace(plan, stages=(replace(first, layers=(0, cut)), replace(second, layers=(cut, n_layers))))
