"""From a fleet to the deployment that the simulator runs, and what its outcome says about each option."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from dse.capacity.assemble import Group
from dse.capacity.deployment import Deployment, Policy, Pool, Rule
from dse.capacity.load import Load
from dse.capacity.market import Answer
from dse.capacity.replica import Replica
from dse.capacity.simulate import simulate
from dse.capacity.simulation import Simulation

POLICY: Policy = "least_loaded"
MIN_SHARE = 1e-4


def deployment_of(answer: Answer) -> Deployment:
    """Return pools of the fleet's replicas, one per option and role, and the rules of its routing.

    Groups of one option at several operating points are one pool: what a replica does depends on what it is
    sent. Replicas that the solver left without requests share in the work of their pool.
    """
    assembled, fleet = answer.assembled, answer.fleet
    names = [pool_name(group) for group in assembled.groups]
    counts: dict[str, int] = defaultdict(int)
    replicas: dict[str, Replica] = {}
    for name, group, n in zip(names, assembled.groups, fleet.n_replicas, strict=True):
        if n:
            counts[name] += n
            replicas[name] = group.option.replica.changed(name=name, role=group.point.part)
    sent: dict[tuple[int, bool], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for route, frac in zip(assembled.problem.routes, fleet.routed_frac, strict=True):
        if frac > MIN_SHARE:
            for use in route.uses:
                sent[route.demand, route.part == "decode"][names[use.option]] += frac
    used = {name for shares in sent.values() for name in shares}
    pools = tuple(Pool(name, replicas[name], count) for name, count in counts.items() if name in used)
    rules = tuple(
        Rule(
            tuple(sorted(sent[d, False].items())),
            tuple(sorted(sent[d, True].items())),
            classes=(assembled.load.classes[stream.class_index].name,),
            prompt_tokens=stream.prompts,
            output_tokens=stream.outputs,
        )
        for d, stream in enumerate(assembled.streams)
    )
    return Deployment(pools, rules, policy=POLICY, kv_link=assembled.catalogue.network)


def pool_name(group: Group) -> str:
    """Return the name of a group's pool: that of its option, with the part that it does."""
    part = group.point.part
    return group.option.name if part == "both" else f"{group.option.name} ({part})"


def option_name(pool: str) -> str:
    """Return the name of the option of a pool."""
    return pool.removesuffix(" (prefill)").removesuffix(" (decode)")


def judge(
    answer: Answer, load: Load, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Simulation:
    """Serve a load with the fleet of an answer."""
    return simulate(load, deployment_of(answer), seed, progress)


def shortfalls(simulation: Simulation) -> dict[str, float]:
    """Return for each option the largest shortfall of its requests, where a level of their class fails.

    A shortfall is the share of requests that should have met the level and did not; rejected requests meet
    none. Options that did not cause the failure are absent. A request that two pools served counts for the
    one that decoded it; where it is the first token that fails, all prefill pools take part in the blame.
    """
    load = simulation.load
    names = [option_name(log.pool) for log in simulation.replicas]
    apart = [option_name(log.pool) for log in simulation.replicas if log.replica.role == "prefill"]
    pool = np.array([*names, ""])[simulation.replica]
    found: dict[str, float] = {}
    levels = [(index, level) for index, entry in enumerate(load.classes) for level in entry.levels]
    for (index, level), result in zip(levels, simulation.levels(), strict=True):
        if result.passed:
            continue
        values = simulation.metric(level.metric)
        mine = (load.class_index == index) & (simulation.rejected | ~np.isnan(values))
        met = ~simulation.rejected & (values <= level.limit_s)
        overall = level.percentile / 100.0 - float(met[mine].mean())
        for name in apart if level.metric == "ttft" else ():
            found[name] = max(found.get(name, 0.0), overall)
        for name in set(names):
            here = mine & (pool == name)
            if here.any():
                short = level.percentile / 100.0 - float(met[here].mean())
                if short > 0:
                    found[name] = max(found.get(name, 0.0), short)
    if not found and not simulation.passed:
        found = dict.fromkeys(names, 0.0)
    return found
