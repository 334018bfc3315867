"""Replicas whose layers, stages and precisions the exact planner chose, within a bound on the penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dse.capacity.load import Load
from dse.capacity.options import Absent, Bits, Building, ReplicaOption, quality_of, refused
from dse.errors import DseError
from dse.formats.precision import Precision
from dse.graph.workload import Workload
from dse.partition.layout.inputs import ModelInputs
from dse.partition.layout.node_plans import replica_plans
from dse.partition.problem import Objective
from dse.sensitivity.noise import noise_table
from dse.sensitivity.table import SensitivityTable

PLANNED_BATCH = 32
OBJECTIVES: tuple[Objective, ...] = ("throughput", "ttft")
TIME_LIMIT_S = 0.5


@dataclass(frozen=True)
class Choice:
    """Precisions that the planner chooses from, layer by layer.

    Attributes:
        precisions: one for all layers, or few and many bits.
        budget_frac: where the bound on the penalty lies between the uniform plans of the last (0) and the
            first (1).
    """

    precisions: tuple[Precision, ...]
    budget_frac: float = 0.5

    @property
    def name(self) -> str:
        """The precision, or what is mixed."""
        if len(self.precisions) == 1:
            return self.precisions[0].name
        return f"mixed {'+'.join(precision.weights.name for precision in self.precisions)}"

    def penalties(
        self, building: Building, sensitivity: SensitivityTable | None
    ) -> tuple[SensitivityTable, float | None]:
        """Return the penalties and the bound on their sum, None where there is nothing to choose.

        Without sensitivities for all precisions the noise of a uniform quantizer stands in for them.
        """
        table = sensitivity
        if table is None or not set(self.precisions) <= set(table.precisions):
            table = noise_table(building.graph, building.units, self.precisions)
        if len(self.precisions) == 1:
            return table, None
        of_low, of_high = (
            float(table.penalty[:, table.precisions.index(precision)].sum())
            for precision in (self.precisions[0], self.precisions[-1])
        )
        return table, of_high + self.budget_frac * (of_low - of_high)


def planned_options(
    building: Building,
    low: Precision,
    high: Precision,
    budget_frac: float,
    load: Load,
    sensitivity: SensitivityTable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ReplicaOption], list[Absent]]:
    """Return the planner's Pareto plans of two precisions for every machine.

    Args:
        building: model, machines and engines.
        low, high: few and many bits; every layer takes one of them.
        budget_frac: where the bound on the penalty lies between the uniform plans of ``high`` (0) and ``low``
            (1).
        load: its mean lengths are planned for, at a batch of 32.
        sensitivity: penalties; None takes the noise of a uniform quantizer, which needs no weights.
        progress: called with (done, all).
    """
    pair = (low, high)
    if sensitivity is not None and not set(pair) <= set(sensitivity.precisions):
        sensitivity = None
    choice = Choice(pair, budget_frac)
    table, bound = choice.penalties(building, sensitivity)
    prompt, output = round(load.prompt_tokens.mean()), max(2, round(load.output_tokens.mean()))
    workload = Workload(batch=PLANNED_BATCH, prompt_tokens=prompt, output_tokens=output)
    inputs = ModelInputs(building.graph, building.units, pair, table, building.runtime)
    name = choice.name
    found: list[ReplicaOption] = []
    absent: list[Absent] = []
    for index, offer in enumerate(building.catalogue.nodes):
        reason = refused(offer, pair, building.runtime)
        cluster = building.catalogue.cluster(offer)
        try:
            plans = (
                ()
                if reason
                else replica_plans(
                    inputs,
                    cluster,
                    workload,
                    max_penalty=bound,
                    objectives=OBJECTIVES,
                    time_limit_s=TIME_LIMIT_S,
                )
            )
        except DseError as error:
            plans, reason = (), str(error)
        options = []
        for number, plan in enumerate(plans, start=1):
            chosen: Sequence[Precision] = [precision for _, precision in plan.plan.assignment.items]
            bits = Bits(name, plan.plan.assignment, pair, quality_of(chosen, sensitivity))
            try:
                option = building.option(index, cluster, plan.plan, bits, f"{offer.name} {name} #{number}")
            except DseError as error:
                reason = str(error)
                continue
            if building.quality_refusal(bits) is None:
                options.append(option)
            else:
                reason = building.quality_refusal(bits)
        found += options
        if not options:
            absent.append(Absent(f"{offer.name} {name}", reason or "no plan fits"))
        if progress is not None:
            progress(index + 1, len(building.catalogue.nodes))
    return found, absent
