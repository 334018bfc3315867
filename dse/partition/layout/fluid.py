"""A bound for every deployment: the work of all requests spread over all devices, and one request's path."""

from __future__ import annotations

import numpy as np

from dse.graph.workload import Workload
from dse.partition.groups import DeviceGroup, device_groups
from dse.partition.layout.classes import layer_classes, stage_classes
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.pipeline import LayoutOptions, degrees_of
from dse.partition.layout.program import Linear, Program
from dse.partition.problem import Goal, PipelineProblem
from hardware_specs.spec import Cluster

TOLERANCE_FRAC = 1e-6


def fluid_bound_s(
    inputs: ModelInputs, cluster: Cluster, workload: Workload, goal: Goal, options: LayoutOptions
) -> float:
    """Return a lower bound on the goal's objective for all replicas, pools, orders and cuts.

    Whoever runs a layer for a request keeps its devices busy for its share of the best micro-batch; the
    devices of a kind cannot be busy for longer than the batch takes. And no request is faster than alone on
    the best groups. 0 for energy and cost, for which nothing is proven.
    """
    degrees = degrees_of(inputs, cluster, options)
    groups = device_groups(cluster, degrees)
    bounds = []
    for chunks in options.n_chunks:
        table = inputs.table(cluster, workload, degrees, chunks)
        problem = inputs.problem(table, cluster, workload, groups, ((0,),)).problem
        bounds.append(_bound(problem, cluster, groups, goal))
    return min(bounds)


def _bound(problem: PipelineProblem, cluster: Cluster, groups: tuple[DeviceGroup, ...], goal: Goal) -> float:
    stages = stage_classes(cluster, groups)
    layers = layer_classes(problem)
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
                (0, entry.prefill_s, problem.prefill_micro_batches, problem.n_chunks),
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
    alone = fastest[0] * problem.n_chunks + rounds * fastest[1]
    found = {
        "time": max(work, alone),
        "throughput": max(work, alone),
        "ttft": fastest[0] * problem.n_chunks,
        "tpot": fastest[1],
    }.get(goal.objective, 0.0)
    return max(0.0, found * (1 - TOLERANCE_FRAC))
