"""Which replicas together: devices, requests and shared bounds as a mixed-integer program over columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from dse.partition.layout.cells import Cell, Column, Point, Values
from dse.partition.layout.ledger import OTHER_PHASE, SUMS, Ledger
from dse.partition.layout.pipeline import Role
from dse.partition.layout.program import Linear, Program, plus
from dse.partition.layout.shares import Counts
from dse.partition.problem import Objective
from dse.quiet import stdout_to_stderr

TOLERANCE_FRAC = 1e-6  # of the solver, by which bounds on sums may be exceeded


@dataclass(frozen=True, eq=False)
class Choice:
    """A replica that may be taken: its devices of every node, its parts, and what they come from."""

    column: Column
    counts: Counts
    parts: Values
    source: Cell | Point

    @classmethod
    def of(cls, column: Column, counts: Counts, source: Cell | Point, values: Values) -> Choice:
        """Return the choice of some values of a column."""
        ledger, batch, role = column.ledger, column.batch, column.role
        parts = {name: ledger.part(name, value, batch, role) for name, value in values.items()}
        return cls(column, counts, parts, source)


@dataclass(frozen=True)
class Picked:
    """Replicas of the least score, and a bound for all; none where nothing keeps the bounds."""

    choices: tuple[Choice, ...]
    bound: float


@dataclass(frozen=True)
class Master:
    """The program of one way to form pools.

    Attributes:
        ledger: how parts combine; whole: devices of every node.
        n_replicas: of every pool, None for any number; max_devices: of all, None for no bound.
    """

    ledger: Ledger
    whole: Counts
    n_replicas: int | None
    max_devices: int | None

    def pick(
        self, choices: Sequence[Choice], cutoff: float, *, margin: float, time_limit_s: float | None
    ) -> Picked:
        """Return the choices of the least score.

        Args:
            choices: replicas that may be taken, each as often as there are devices for it.
            cutoff: scores above it are not looked for.
            margin: share by which bounds may be exceeded, or (below 0) must be kept more strictly.
            time_limit_s: for the solver.
        """
        objective = self.ledger.goal.objective
        if objective not in SUMS:
            choices = [c for c in choices if c.parts.get(objective, cutoff) <= cutoff]
        if not choices:
            return Picked((), float("inf"))
        program = Program()
        batch = self.ledger.workload.batch
        columns = [program.column(float(self._most(c)), integer=True) for c in choices]
        of_role: dict[Role, list[tuple[int, Choice]]] = {role: [] for role in self.ledger.roles}
        for column, choice in zip(columns, choices, strict=True):
            of_role[choice.column.role].append((column, choice))
        for found in of_role.values():
            program.equals({x: c.column.batch / batch for x, c in found}, 1.0)
            if self.n_replicas is not None:
                program.equals({x: 1.0 for x, _ in found}, float(self.n_replicas))
        for node, n in enumerate(self.whole):
            row = {x: float(c.counts[node]) for x, c in zip(columns, choices, strict=True) if c.counts[node]}
            program.at_most(row, float(n))
        if self.max_devices is not None:
            row = {x: float(sum(c.counts)) for x, c in zip(columns, choices, strict=True)}
            program.at_most(row, float(self.max_devices))
        scale = {name: self._scale(name, choices) for name in (objective, *self.ledger.shared)}
        for name, limit in self.ledger.shared.items():
            for total in self._totals(program, name, of_role, scale[name]):
                program.at_most(total, (limit + margin * abs(limit)) / scale[name])
        totals = self._totals(program, objective, of_role, scale[objective])
        score = program.column()
        program.lower[score] = -np.inf
        for total in totals:
            program.at_most(total, {score: 1.0})
        if np.isfinite(cutoff):
            program.upper[score] = cutoff / scale[objective]
        x, bound = _solved(program, score, time_limit_s)
        if x is None:
            return Picked((), bound * scale[objective])
        taken = [
            choice
            for column, choice in zip(columns, choices, strict=True)
            for _ in range(round(float(x[column])))
        ]
        value, bound = self.score(taken, objective), bound * scale[objective]
        proven = bound >= value - TOLERANCE_FRAC * abs(value)
        return Picked(tuple(taken), value if proven else bound)

    def score(self, taken: Sequence[Choice], name: Objective) -> float:
        """Return what replicas come to in a quantity."""
        return self.ledger.total(name, ((c.column.role, c.parts[name]) for c in taken if name in c.parts))

    def keeps_bounds(self, taken: Sequence[Choice]) -> bool:
        """Whether replicas keep all shared bounds."""
        return all(
            self.score(taken, name) <= limit + 1e-9 * abs(limit) for name, limit in self.ledger.shared.items()
        )

    def _most(self, choice: Choice) -> int:
        by_node = [n // c for n, c in zip(self.whole, choice.counts, strict=True) if c]
        return min(*by_node, self.ledger.workload.batch // choice.column.batch)

    def _scale(self, name: Objective, choices: Sequence[Choice]) -> float:
        """Return the size of the parts of a quantity."""
        sizes = [abs(c.parts[name]) for c in choices if name in c.parts and np.isfinite(c.parts[name])]
        limit = abs(self.ledger.shared.get(name, 0.0))
        return limit or float(np.median(sizes or [1.0])) or 1.0

    def _totals(
        self,
        program: Program,
        name: Objective,
        of_role: dict[Role, list[tuple[int, Choice]]],
        scale: float,
    ) -> list[Linear]:
        """Return linear forms whose largest is the deployment's quantity, in units of ``scale``."""
        pools = [
            self._pool(program, name, found, scale)
            for role, found in of_role.items()
            if name != OTHER_PHASE[role]
        ]
        return pools if name == "throughput" else [plus(*pools)]

    def _pool(
        self, program: Program, name: Objective, found: list[tuple[int, Choice]], scale: float
    ) -> Linear:
        if name in SUMS:
            return {x: c.parts[name] / scale for x, c in found}
        slowest = program.column()
        for x, c in found:
            taken = x
            if program.upper[x] > 1:
                taken = program.column(1.0, integer=True)
                program.at_most({x: 1.0}, {taken: program.upper[x]})
            program.at_most({taken: c.parts[name] / scale}, {slowest: 1.0})
        # the slowest is no faster than the mean over the requests
        batch = self.ledger.workload.batch
        program.at_most({x: c.parts[name] / scale * c.column.batch / batch for x, c in found}, {slowest: 1.0})
        return {slowest: 1.0}


def _solved(program: Program, score: int, time_limit_s: float | None) -> tuple[np.ndarray | None, float]:
    """Return the best point (None: there is none, or none was found) and a bound, by HiGHS to no gap."""
    entries = [(r, c, v) for r, (row, _, _) in enumerate(program.rows) for c, v in row.items()]
    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    n = len(program.upper)
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(program.rows), n))
    low, high = (np.array([row[i] for row in program.rows]) for i in (1, 2))
    costs = np.zeros(n)
    costs[score] = 100.0  # the solver stops at a gap of 1e-6 in the objective's own unit
    options = {"mip_rel_gap": 0.0} | ({} if time_limit_s is None else {"time_limit": time_limit_s})
    with stdout_to_stderr():
        found = optimize.milp(
            costs,
            constraints=optimize.LinearConstraint(matrix, low, high),
            integrality=np.array(program.integer, dtype=float),
            bounds=optimize.Bounds(np.array(program.lower), np.array(program.upper)),
            options=options,
        )
    if found.status == 2:  # infeasible
        return None, float("inf")
    bound = found.mip_dual_bound
    return found.x, float("-inf") if bound is None else float(bound) / 100.0
