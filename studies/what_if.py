"""What a change of the cluster does to a plan: a lost device, another price, one more device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dse.errors import ConfigError
from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_table import CostTable
from dse.partition.from_table import TableProblem
from dse.partition.problem import Arrangement, PipelineProblem
from dse.partition.solve import Planner
from dse.partition.what_if import REPLAN, Change, compared, lost_devices, with_prices
from hardware_specs.loader import load_device
from hardware_specs.spec import Cluster, ClusterNode
from studies.arrange import Arranger
from studies.planning import Planned
from studies.prepare import Prepared, divisors

FORMS = ("lose", "lose:DEVICE", "add:DEVICE_TYPE", "price:DEVICE_TYPE=USD_PER_HOUR")


def what_if(planned: Planned, questions: Sequence[str]) -> list[Change]:
    """Plan again under every change, from the plan.

    Args:
        planned: the plan.
        questions: in ``FORMS``; "lose" asks for each of the plan's devices in turn.

    Raises:
        ConfigError: a question has no such form, or names a device that does not exist.
    """
    return [change for question in questions for change in _answers(planned, question)]


def _answers(planned: Planned, question: str) -> Iterator[Change]:
    problem, plan = planned.candidate.problem, planned.candidate.solution.arrangement
    if problem is None or plan is None:
        return
    verb, _, rest = question.partition(":")
    if verb == "lose":
        yield from _lose(planned, problem.problem, plan, rest)
    elif verb == "price" and "=" in rest:
        yield _price(planned, problem.problem, plan, rest)
    elif verb == "add" and rest:
        yield _add(planned, problem, plan, rest)
    else:
        raise ConfigError("unknown change", path="--what-if", value=question, allowed=list(FORMS))


def _lose(planned: Planned, problem: PipelineProblem, plan: Arrangement, name: str) -> Iterator[Change]:
    if name and name not in problem.devices:
        raise ConfigError("unknown device", path="--what-if", value=name, allowed=list(problem.devices))
    yield from lost_devices(problem, planned.goal, plan, only=name or None)
    if name and name not in {problem.devices[device] for device, _, _ in plan.stages}:
        yield Change(f"without {name}, which the plan does not use", planned.candidate.solution, (), 0.0)


def _price(planned: Planned, problem: PipelineProblem, plan: Arrangement, rest: str) -> Change:
    kind, _, text = rest.partition("=")
    kinds = list(dict.fromkeys(problem.device_types))
    if kind not in kinds:
        raise ConfigError("unknown device type", path="--what-if", value=kind, allowed=kinds)
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not price > 0:
        raise ConfigError("a price is a number of USD per hour above 0", path="--what-if", value=text)
    old = problem.price_usd_per_h or (None,) * len(problem.devices)
    prices = [price if k == kind else p for k, p in zip(problem.device_types, old, strict=True)]
    change = with_prices(problem, planned.goal, plan, prices)
    return replace(change, what=f"{kind} at {price:g} USD/h")


def _add(planned: Planned, old: TableProblem, plan: Arrangement, kind: str) -> Change:
    setting = planned.setting
    cluster = with_device(setting.prepared.cluster, kind)
    table = setting.prepared.table
    if kind not in table.devices:
        table = _priced(setting.prepared, cluster, setting.study.workload.batch, planned)
    prepared: Prepared = replace(setting.prepared, cluster=cluster, table=table)
    arranger = Arranger(setting.study, prepared, setting.sensitivity)
    found: Change | None = None
    for new in arranger.problems("energy" in planned.goal.quantities):
        start = _translated(old, new, plan)
        solution = Planner(new.problem, planned.goal, REPLAN).solve(
            planned.goal.max_penalty, [] if start is None else [start]
        )
        change = compared(f"with one more {kind}", new.problem, start or plan, solution)
        if found is None or (solution.value or float("inf")) < (found.solution.value or float("inf")):
            found = change
    assert found is not None
    return found


def with_device(cluster: Cluster, kind: str) -> Cluster:
    """Return the cluster with one more machine of one device.

    Raises:
        ConfigError: unknown device type, or no network that could join it.
    """
    spec = cluster.specs.get(kind) or load_device(kind)
    if cluster.inter_link is None:
        raise ConfigError(f"cluster '{cluster.name}' has no network between machines to add one to")
    names = {node.name for node in cluster.nodes}
    name = next(f"added{i}" for i in range(len(names) + 1) if f"added{i}" not in names)
    node = ClusterNode(name=name, device=kind, n_devices=1)
    return replace(cluster, nodes=(*cluster.nodes, node), specs={**cluster.specs, kind: spec})


def _priced(prepared: Prepared, cluster: Cluster, batch: int, planned: Planned) -> CostTable:
    return build_cost_table(
        prepared.graph,
        prepared.units,
        prepared.precisions,
        cluster.specs,
        planned.setting.study.workload,
        divisors(batch),
        runtime=prepared.runtime,
    )


def _translated(old: TableProblem, new: TableProblem, plan: Arrangement) -> Arrangement | None:
    """Return the plan in the choices of another problem of the same layers, None where it has not all."""
    choices = []
    for layer, choice in enumerate(plan.choices):
        precisions = [old.precisions[q] for q in old.combinations[layer][choice]]
        found = new.choice_of(layer, precisions)
        if found is None:
            return None
        choices.append(found)
    at = {name: i for i, name in enumerate(new.problem.devices)}
    stages = tuple((at[old.problem.devices[device]], first, end) for device, first, end in plan.stages)
    return replace(plan, stages=stages, choices=tuple(choices))
