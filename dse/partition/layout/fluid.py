"""A bound for every deployment: the work of all requests spread over all devices, and one request's path."""

from __future__ import annotations

import numpy as np

from dse.graph.workload import Workload
from dse.partition.groups import DeviceGroup, device_groups
from dse.partition.layout.classes import layer_classes, stage_classes
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.pipeline import LayoutOptions, Role, served
from dse.partition.layout.program import Linear, Program
from dse.partition.problem import Goal, PipelineProblem
from hardware_specs.spec import Cluster

TOLERANCE_FRAC = 1e-6


def fluid_bound_s(
    inputs: ModelInputs,
    cluster: Cluster,
    workload: Workload,
    goal: Goal,
    options: LayoutOptions,
    role: Role = "both",
) -> float:
    """Return a lower bound on the goal's objective for all replicas, pools, orders and cuts.

    Whoever runs a layer for a request keeps its devices busy for its share of the best micro-batch; the
    devices of a kind cannot be busy for longer than the batch takes. And no request is faster than alone on
    the best groups. What devices draw and cost they do at least while they are busy. Infinite where no group
    has the wanted degree.
    """
    largest = max(node.n_devices for node in cluster.nodes)
    wanted = inputs.degrees(largest) if options.degrees is None else options.degrees
    degrees = tuple(degree for degree in wanted if degree <= largest)
    groups = device_groups(cluster, degrees)
    if not groups:
        return float("inf")
    workload = served(workload, role)
    bounds = []
    for chunks in (1,) if role == "decode" else options.n_chunks:
        table = inputs.table(cluster, workload, degrees, chunks)
        problem = inputs.problem(
            table, cluster, workload, groups, ((0,),), with_energy=goal.objective == "energy"
        ).problem
        if goal.objective in ("energy", "cost"):
            bounds.append(_least_use(problem, cluster, groups, goal, role))
        else:
            bounds.append(_bound(problem, cluster, groups, goal, role))
    return min(bounds)


def _least_use(
    problem: PipelineProblem, cluster: Cluster, groups: tuple[DeviceGroup, ...], goal: Goal, role: Role
) -> float:
    """Return the least energy (J) of a token or cost (USD) of a million: every layer where it is least.

    A micro-batch of a size is passed as often as the batch holds it; every device draws its static power and
    costs its rent for no shorter than it works.
    """
    energy, rounds = problem.energy, problem.output_tokens - 1
    passes = 0 if role == "decode" else problem.n_chunks
    total = 0.0
    for entry in layer_classes(problem):
        for times, joules, sizes, weight in (
            (entry.prefill_s, entry.prefill_j, problem.prefill_micro_batches, passes),
            (entry.decode_s, entry.decode_j, problem.decode_micro_batches, rounds),
        ):
            least = np.inf
            for c in stage_classes(cluster, groups).classes:
                able = np.flatnonzero(entry.allowed[c.device])
                if goal.objective == "energy":
                    if energy is None or joules is None:
                        return 0.0
                    each = joules[:, c.device, able] + energy.static_w[c.device] * times[:, c.device, able]
                else:
                    price = None if problem.price_usd_per_h is None else problem.price_usd_per_h[c.device]
                    if price is None:
                        continue
                    each = times[:, c.device, able] * price / 3600 * 1e6
                shares = each / np.array(sizes)[:, None]
                least = min(least, float(shares.min(initial=np.inf)))
            if weight:
                total += entry.n_layers * least * weight / problem.output_tokens
    return max(0.0, total * (1 - TOLERANCE_FRAC)) if np.isfinite(total) else 0.0


def _bound(
    problem: PipelineProblem, cluster: Cluster, groups: tuple[DeviceGroup, ...], goal: Goal, role: Role
) -> float:
    stages = stage_classes(cluster, groups)
    layers = layer_classes(problem)
    passes = 0 if role == "decode" else problem.n_chunks
    rounds = problem.output_tokens - 1
    fastest = [0.0, 0.0]
    program = Program()
    whole = program.column()
    busy: dict[int, Linear] = {kind: {} for kind in stages.n_devices}
    for entry in layers:
        placed: tuple[Linear, Linear] = ({}, {})
        least = [np.inf, np.inf]
        for c in stages.classes:
            able = np.flatnonzero(entry.allowed[c.device])
            if not len(able):
                continue
            for phase, times, sizes, weight in (
                (0, entry.prefill_s, problem.prefill_micro_batches, passes),
                (1, entry.decode_s, problem.decode_micro_batches, rounds),
            ):
                each = times[:, c.device, able].min(axis=1)
                least[phase] = min(least[phase], float(each.min()))
                share = float((each / np.array(sizes)).min()) * weight * problem.batch
                column = program.column(float(entry.n_layers))
                placed[phase][column] = 1.0
                busy[c.node_kind][column] = share * c.degree
        for phase in (0, 1):
            program.equals(placed[phase], float(entry.n_layers))
            fastest[phase] += entry.n_layers * least[phase]
    for kind, n_devices in stages.n_devices.items():
        program.at_most({**busy[kind], whole: -float(n_devices)}, 0.0)
    work = program.minimise({whole: 1.0}, integer=False, time_limit_s=10.0).bound
    alone = fastest[0] * passes + rounds * fastest[1]
    found = {
        "time": max(work, alone),
        "throughput": max(work, alone),
        "ttft": fastest[0] * passes,
        "tpot": fastest[1],
    }.get(goal.objective, 0.0)
    return max(0.0, found * (1 - TOLERANCE_FRAC))
