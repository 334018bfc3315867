"""What is known of the replicas on some devices with some requests: plans, and cells without any better one.

A bound that replicas share asks of each more than its least value: how the objective falls while the replica
takes more of what is shared. All plans of a replica lie in boxes of these quantities, and a box is divided
only where a deployment stands on its corner (the boxes of multi-objective branch and bound, Przybylski and
Gandibleux 2017, with epsilon constraints as in Chankong and Haimes 1983).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from dse.partition.layout.ledger import Ledger
from dse.partition.layout.pipeline import Pipeline, Role
from dse.partition.objective import objective_s, quantity
from dse.partition.problem import Goal, Objective

JUST_BELOW = 1 - 1e-7  # plans that differ by less in what is shared are one
Values = Mapping[Objective, float]


class Solver(Protocol):
    """What solves the pipeline of a replica on its devices."""

    def solved(self, goal: Goal) -> Pipeline:
        """Return the best pipeline for a goal."""

    def work_bound(self, goal: Goal) -> float:
        """Return a bound on it from the work alone."""


@dataclass(frozen=True, eq=False)
class Point:
    """A plan: its values, and ``floor``, below which no plan is that takes as much or more of the rest."""

    values: Values
    floor: float
    pipeline: Pipeline


@dataclass(frozen=True, eq=False)
class Cell:
    """Plans whose values are at least ``lower``, and at most ``upper`` where that is given.

    ``point`` is the plan of the least first quantity, once the cell is ``solved``.
    """

    lower: Values
    upper: Values
    solved: bool = False
    point: Point | None = None


class Column:
    """The replicas of one role on equal devices with equal numbers of requests."""

    def __init__(self, ledger: Ledger, role: Role, batch: int, solver: Solver, lower: Values) -> None:
        self.ledger, self.role, self.batch, self.solver = ledger, role, batch, solver
        self.names = ledger.names(role)
        self.tier = 0
        self.points: list[Point] = []
        self.cells = [Cell(dict(lower), self._alone())]

    def _alone(self) -> Values:
        """Return what a replica may take if all others took nothing; rates of others are unlimited."""
        shared = self.ledger.shared.items()
        return {
            name: self.ledger.value(name, limit, self.batch, self.role)
            for name, limit in shared
            if name != "throughput" and name in self.names
        }

    def raise_to(self, lower: Values) -> None:
        """Learn a bound on all plans, while nothing is known of them."""
        if self.tier < 2 and self.cells:
            self.cells = [replace(self.cells[0], lower=_larger(self.cells[0].lower, lower))]

    def refine(self, cell: Cell, name: Objective | None, at: float) -> None:
        """Learn more of a cell: bounds from the work, then exact ones, then by division.

        Args:
            cell: one of this column's.
            name: the shared quantity along which to divide a solved cell, and ``at`` which value; None for
                the one in which the cell is widest, at its middle.
            at: see ``name``.
        """
        if self.tier == 0:
            self.tier = 1
            self.raise_to({q: self.solver.work_bound(self._goal(q, cell.upper)) for q in self.names})
            return
        self.cells.remove(cell)
        if self.tier == 1:
            self.tier = 2
            bounds = {}
            for q in self.names[1:]:
                pipeline = self.solver.solved(self._goal(q, cell.upper))
                bounds[q] = pipeline.bound
                if pipeline.bound == float("inf"):
                    return
                self._add(pipeline, None)
            cell = replace(cell, lower=_larger(cell.lower, bounds))
        if not cell.solved:
            self._solve(cell)
            return
        if cell.point is not None:
            self._divide(cell, cell.point, name or self._widest(cell, cell.point), at)

    def can_refine(self, cell: Cell) -> bool:
        """Whether more can be learned of a cell."""
        if not cell.solved:
            return True
        return cell.point is not None and self._widest(cell, cell.point) is not None

    def _goal(self, name: Objective, upper: Values) -> Goal:
        return self.ledger.goal_of(self.role, name, {q: v for q, v in upper.items() if q != name})

    def _solve(self, cell: Cell) -> None:
        first = self.names[0]
        pipeline = self.solver.solved(self._goal(first, cell.upper))
        if pipeline.bound == float("inf"):
            return
        lower = _larger(cell.lower, {first: pipeline.bound})
        point = self._add(pipeline, lower[first])
        self._keep(Cell(lower, cell.upper, solved=True, point=point))

    def _divide(self, cell: Cell, point: Point, name: Objective | None, at: float) -> None:
        """Leave out what the cell's plan dominates: all others take less of something shared."""
        earlier: dict[Objective, float] = {}
        for q in self.names[1:]:
            below = point.values[q] * JUST_BELOW
            if cell.lower[q] < below:
                lower = _larger(cell.lower, earlier)
                split = min(max(at, cell.lower[q]), below) if q == name else cell.lower[q]
                if split > cell.lower[q]:
                    self._keep(Cell(lower, {**cell.upper, q: split}))
                self._keep(Cell({**lower, q: max(lower[q], split)}, {**cell.upper, q: below}))
            earlier[q] = point.values[q]

    def _widest(self, cell: Cell, point: Point) -> Objective | None:
        """Return the shared quantity that the cell leaves most open, None where it leaves nothing."""
        spread = {
            q: 1 - cell.lower[q] / (point.values[q] * JUST_BELOW) for q in self.names[1:] if point.values[q]
        }
        widest = max(spread, key=lambda q: spread[q], default=None)
        return widest if widest is not None and spread[widest] > 0 else None

    def _keep(self, cell: Cell) -> None:
        """Keep a cell unless a plan is as good as its corner."""
        first, rest = self.names[0], self.names[1:]
        if any(
            point.floor <= cell.lower[first] and all(point.values[q] <= cell.lower[q] for q in rest)
            for point in self.points
        ):
            return
        self.cells.append(cell)

    def _add(self, pipeline: Pipeline, floor: float | None) -> Point | None:
        """Keep the plan of a pipeline; its own value is the floor where no other is known."""
        arrangement = pipeline.solution.arrangement
        if pipeline.problem is None or arrangement is None:
            return None
        problem, goal = pipeline.problem.problem, self._goal(self.names[0], {})
        try:
            values = {q: quantity(problem, goal, arrangement, q) for q in self.names}
        except ValueError:  # a device has no price
            return None
        value = values[self.names[0]] = objective_s(problem, goal, arrangement)
        pipeline = replace(pipeline, solution=replace(pipeline.solution, value=value))
        point = Point(values, value if floor is None else floor, pipeline)
        self.points.append(point)
        return point


def _larger(one: Values, other: Values) -> Values:
    return {name: max(value, other.get(name, value)) for name, value in one.items()}
