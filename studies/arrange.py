"""From choices to points: the best arrangement of an assignment, the exact front, predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dse.evaluate.effective_bits import effective_bits
from dse.evaluate.plan_cost import predict
from dse.formats.grammar import parse_precision
from dse.partition.branch import Limits
from dse.partition.every_order import bound_of_every_order
from dse.partition.from_table import TableProblem, problem_from_table
from dse.partition.front import latency_quality_front
from dse.partition.problem import Goal, Solution
from dse.partition.solve import Planner, with_ties_broken
from dse.plan import Assignment, Plan
from dse.search.knapsack import allocate
from dse.sensitivity.table import SensitivityTable
from studies.prepare import Prepared
from studies.result import Predicted
from studies.schema import Study

PLAN_GAP_FRAC = 5e-7  # below what is called optimal
MAX_RELAXATIONS = 4000  # a limit that, unlike seconds, stops at the same place on every machine


@dataclass(frozen=True)
class Candidate:
    """A plan with the solution that it comes from and its prediction.

    ``bound_of_every_order`` is set where the problem holds only some orders and subsets of the devices: no
    other one is below it.
    """

    name: str
    origin: str
    plan: Plan
    predicted: Predicted
    solution: Solution
    problem: TableProblem | None = None
    bound_of_every_order: float | None = None

    @property
    def solver(self) -> dict[str, Any]:
        """The proof, without what differs between equal runs."""
        return {
            "status": self.solution.status,
            "value": self.solution.value,
            "bound": self.solution.bound,
            "gap_frac": self.solution.gap_frac,
            "binding": self.solution.binding,
        }


@dataclass(frozen=True)
class Arranger:
    """Solves the placement of assignments on the cluster of a study."""

    study: Study
    prepared: Prepared
    sensitivity: SensitivityTable

    @cached_property
    def precision_index(self) -> dict[str, int]:
        """Position of each precision, by name."""
        return {precision.name: q for q, precision in enumerate(self.prepared.precisions)}

    @cached_property
    def searched(self) -> NDArray[np.bool_]:
        """(U, Q) choices of the search: the study's precisions, without those of the baselines alone."""
        wanted = {parse_precision(text).name for text in self.study.precisions}
        allowed = np.array([precision.name in wanted for precision in self.prepared.precisions])
        return np.broadcast_to(allowed, (len(self.prepared.units), len(allowed))).copy()

    @cached_property
    def _penalty(self) -> NDArray[np.float64]:
        """(U, Q) in the order of units and precisions."""
        columns = [self.sensitivity.precisions.index(p) for p in self.prepared.precisions]
        return self.sensitivity.penalty[:, columns]

    @cached_property
    def uniform_names(self) -> tuple[str, ...]:
        """Names of the precisions of the study's uniform plans, in order."""
        names = (parse_precision(text).name for text in self.study.uniform)
        return tuple(name for name in dict.fromkeys(names) if name in self.precision_index)

    def uniform_bits(self) -> list[float]:
        """Return the effective bits of the linears of every uniform plan below 16 bits."""
        units = tuple(unit.name for unit in self.prepared.units)
        precisions = [self.prepared.precisions[self.precision_index[name]] for name in self.uniform_names]
        return [
            effective_bits(self.prepared.graph, Assignment.uniform(units, precision), self.prepared.units)[1]
            for precision in precisions
            if not precision.weights.is_float
        ]

    def why_infeasible(self, max_penalty: float | None = None, goal: Goal | None = None) -> str:
        """Return why nothing fits, and the smallest relaxation that the planner knows."""
        goal = goal or Goal()
        problem = self._problem(self.searched, with_energy="energy" in goal.quantities).problem
        solution = Planner(problem, goal).solve(max_penalty)
        if solution.arrangement is not None:
            return "no plan was found within the time limit, though there is one: raise --time-limit"
        return f"{self.study.model} does not fit {self.study.cluster}: {solution.binding}"

    def fastest(
        self, max_penalty: float | None, theta_s: float, time_limit_s: float, goal: Goal | None = None
    ) -> Candidate | None:
        """Return the best plan by a goal (default: the fastest) within a penalty bound, None for none."""
        found: list[Candidate] = []
        bounds: list[float | None] = []
        goal = replace(goal or Goal(), theta_s=theta_s)
        for usable in self._kv_groups(self.searched):
            problem = self._problem(usable, with_energy="energy" in goal.quantities)
            planner = Planner(problem.problem, goal, Limits(time_s=time_limit_s, gap_frac=PLAN_GAP_FRAC))
            solution = with_ties_broken(planner, planner.solve(max_penalty), max_penalty)
            candidate = self._candidate(problem, solution, "plan", "exact")
            if candidate is not None:
                found.append(candidate)
            if not problem.all_orders:
                bounds.append(bound_of_every_order(problem.problem, replace(goal, max_penalty=max_penalty)))
        best = min(found, key=lambda c: c.solution.value or 0.0, default=None)
        known = [bound for bound in bounds if bound is not None]
        if best is None or not known or len(known) < len(bounds):
            return best
        return replace(best, bound_of_every_order=min(known))

    def bound_s(self, max_penalty: float) -> float | None:
        """Return the seconds of the batch that no plan within a penalty bound is below, None if unknown."""
        limits = Limits(n_relaxations=MAX_RELAXATIONS, gap_frac=PLAN_GAP_FRAC)
        solved = [Planner(p.problem, Goal(), limits).solve(max_penalty) for p in self.problems(False)]
        bounds = [solution.bound for solution in solved if solution.bound is not None]
        return min(bounds, default=None)

    def exact_front(self, progress: Any = None) -> list[Candidate]:
        """Return the proven front of seconds against predicted quality.

        A runtime with one KV-cache format for all layers gets one front for each format, and the union.
        """
        found: list[Candidate] = []
        for usable in self._kv_groups(self.searched):
            problem = self._problem(usable)
            solutions = latency_quality_front(
                problem.problem,
                self.study.search.front_points,
                time_limit_s=None,
                n_relaxations=MAX_RELAXATIONS,
                progress=progress,
            )
            found += [
                candidate
                for index, solution in enumerate(solutions)
                if (candidate := self._candidate(problem, solution, f"exact-{len(found) + index}", "exact"))
            ]
        return found

    def within_sizes(self, sizes_bytes: Iterable[tuple[str, float]]) -> list[Candidate]:
        """Return, for each named budget of stored weight bytes, the best assignment within it, placed.

        The multiple-choice knapsack is solved exactly. An assignment that no placement fits says by how much
        it exceeds the memory; it shows what the bits are worth even where it cannot be served.
        """
        found: dict[str, Candidate] = {}
        size = self.prepared.table.unit_weight_bytes
        for name, budget in sizes_bytes:
            for usable in self._kv_groups(self.searched):
                allocation = allocate(self._penalty, size, budget, usable)
                if not allocation.choices:
                    continue
                candidate = self.place_or_overflow(allocation.choices, f"within-{name}", "exact")
                found.setdefault(candidate.plan.assignment.hash, candidate)
        return list(found.values())

    def place(
        self, choices: Sequence[int], name: str, origin: str, goal: Goal | None = None
    ) -> Candidate | None:
        """Return the best placement of an assignment by a goal (default: the fastest), or None for none.

        Args:
            choices: (U,) precision index of every unit.
            name, origin: of the candidate.
            goal: objective and bounds; its penalty bound is ignored.
        """
        goal = goal or Goal()
        problem = self._problem(self._only(choices), with_energy="energy" in goal.quantities)
        planner = Planner(problem.problem, goal, Limits(n_relaxations=MAX_RELAXATIONS))
        solution = with_ties_broken(planner, planner.solve(None), None)
        return self._candidate(problem, solution, name, origin)

    def place_or_overflow(self, choices: Sequence[int], name: str, origin: str) -> Candidate:
        """Return the fastest placement, or where none fits, the fastest one that ignores the memory.

        So its numbers still say something; ``missing_bytes`` says that it cannot be served.
        """
        candidate = self.place(choices, name, origin)
        if candidate is not None:
            return candidate
        problem = self._problem(self._only(choices))
        arrays = problem.problem
        everything = arrays.memory_bytes.max(axis=1).sum() + arrays.first_bytes + arrays.last_bytes
        everything += 0.0 if arrays.activation_bytes is None else arrays.activation_bytes.max()
        roomy = replace(arrays, capacity_bytes=np.full_like(arrays.capacity_bytes, 2 * everything))
        solution = Planner(roomy, Goal(), Limits(n_relaxations=MAX_RELAXATIONS)).solve(None)
        candidate = self._candidate(problem, solution, name, origin)
        assert candidate is not None
        return candidate

    def choices_of(self, assignment: Assignment) -> tuple[int, ...]:
        """Return the precision index of every unit."""
        by_unit = assignment.by_unit
        return tuple(self.precision_index[by_unit[unit.name].name] for unit in self.prepared.units)

    def additive_penalty(self, choices: Sequence[int]) -> float:
        """Return the summed penalties of an assignment."""
        return float(self._penalty[np.arange(len(choices)), list(choices)].sum())

    def _only(self, choices: Sequence[int]) -> NDArray[np.bool_]:
        usable = np.zeros((len(self.prepared.units), len(self.prepared.precisions)), dtype=bool)
        usable[np.arange(len(choices)), list(choices)] = True
        return usable

    def problems(self, with_energy: bool) -> list[TableProblem]:
        """Return the problems of the search, one for each cache format that all layers must share."""
        groups = self._kv_groups(self.searched)
        return [self._problem(usable, with_energy=with_energy) for usable in groups]

    def of_one_precision(self, name: str, with_energy: bool) -> TableProblem:
        """Return the problem in which every layer has one choice, a precision of the study."""
        index = self.precision_index[name]
        return self._problem(self._only((index,) * len(self.prepared.units)), with_energy=with_energy)

    def whole_layers(self, plan: Plan, with_energy: bool) -> TableProblem:
        """Return the problem in which no layer mixes precisions; a cache format for all is the plan's."""
        usable = self.searched
        if self.prepared.runtime.kv_is_global:
            kv = plan.assignment.items[0][1].kv
            usable = usable & np.array([precision.kv == kv for precision in self.prepared.precisions])
        return self._problem(usable, with_energy=with_energy, mixed_within_layer=False)

    def _kv_groups(self, usable: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Split the choices by KV format where the runtime has one for all layers."""
        if not self.prepared.runtime.kv_is_global:
            return [usable]
        formats = [precision.kv.name for precision in self.prepared.precisions]
        groups = [usable & (np.array(formats) == name)[None, :] for name in dict.fromkeys(formats)]
        return [group for group in groups if group.any(axis=1).all()]

    def _problem(
        self, usable: NDArray[np.bool_], *, with_energy: bool = False, mixed_within_layer: bool = True
    ) -> TableProblem:
        return problem_from_table(
            self.prepared.table,
            self.sensitivity,
            self.prepared.cluster,
            self.study.workload,
            usable=usable,
            mixed_within_layer=mixed_within_layer and self.prepared.runtime.mixed_within_layer,
            with_energy=with_energy,
        )

    def _candidate(
        self, problem: TableProblem, solution: Solution, name: str, origin: str
    ) -> Candidate | None:
        if solution.arrangement is None:
            return None
        plan = problem.plan_from(
            solution.arrangement, model=self.study.model, granularity=self.study.granularity, name=name
        )
        return Candidate(name, origin, plan, self.predict(plan), solution, problem)

    def predict(self, plan: Plan) -> Predicted:
        """Return what the models say of a plan."""
        cost = predict(
            plan, self.prepared.table, self.prepared.cluster, self.study.workload, self.study.grid_g_per_kwh
        )
        parts = {
            device: {"weights": use.weights, "kv": use.kv, "activations": use.activations}
            for device, use in cost.memory_bytes.items()
        }
        whole, linear = effective_bits(self.prepared.graph, plan.assignment, self.prepared.units)
        return Predicted(
            kl_nats=self.additive_penalty(self.choices_of(plan.assignment)),
            ttft_s=cost.ttft_s,
            tpot_s=cost.tpot_s,
            total_s=cost.total_s,
            throughput_tokens_per_s=cost.throughput_tokens_per_s,
            energy_j_per_token=cost.energy_j_per_token,
            energy_excludes_static=list(cost.energy_excludes_static),
            cost_usd_per_mtok=cost.cost_usd_per_mtok,
            memory_bytes={device: sum(part.values()) for device, part in parts.items()},
            memory_total_bytes=sum(sum(part.values()) for part in parts.values()),
            effective_bits=whole,
            linear_effective_bits=linear,
            provenance=cost.provenance,
            memory_parts=parts,
            missing_bytes=sum(cost.missing_bytes.values()),
            ttft_interval_s=list(cost.ttft_interval_s),
            tpot_interval_s=list(cost.tpot_interval_s),
            total_interval_s=list(cost.total_interval_s),
            energy_j_per_request=cost.energy_j_per_request,
            energy_excludes={device: list(parts) for device, parts in cost.energy_excludes.items()},
            co2e_g_per_request=cost.co2e_g_per_request,
        )
