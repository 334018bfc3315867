"""Replicas and pools under bounds that they share, over all partitions of the devices and the requests.

The best deployment by what is proven of every replica is a bound for all deployments; the replicas it is made
of are looked into, until the best deployment of known plans is as good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dse.partition.layout.cells import Cell, Column, Point
from dse.partition.layout.ledger import SUMS, Ledger
from dse.partition.layout.master import TOLERANCE_FRAC, Choice, Master
from dse.partition.layout.pipeline import Pipeline, Role
from dse.partition.layout.shares import Counts, bundles_of
from dse.partition.problem import Goal, Objective

if TYPE_CHECKING:
    from dse.partition.layout.deployment import Replica
    from dse.partition.layout.replicas import DeploymentSearch


@dataclass(frozen=True)
class _Devices:
    """Solves pipelines on some devices of each node."""

    search: DeploymentSearch
    counts: Counts
    batch: int
    role: Role
    usable: NDArray[np.bool_] | None

    def solved(self, goal: Goal) -> Pipeline:
        return self.search.pipeline(self.counts, self.batch, self.role, self.usable, goal)

    def work_bound(self, goal: Goal) -> float:
        return self.search.work_bound_s(self.counts, self.batch, self.role, goal)


@dataclass(eq=False)
class _Form:
    """One way to form pools: shared, or separate with one cache format."""

    search: DeploymentSearch
    ledger: Ledger
    usable: NDArray[np.bool_] | None
    bound: float = -np.inf
    score: float = np.inf
    taken: tuple[Choice, ...] = ()
    n_points: int = 0
    open: bool = True
    columns: dict[tuple[Role, Counts, int], Column] = field(default_factory=dict)

    @cached_property
    def master(self) -> Master:
        search = self.search
        return Master(self.ledger, search.whole, search.options.n_replicas, search.goal.max_devices)

    def begin(self) -> None:
        """Set up the columns with the bounds of all devices' work; equal devices share one."""
        search = self.search
        alike: dict[object, Column] = {}
        for role in self.ledger.roles:
            names = self.ledger.names(role)
            for size in range(1, self.ledger.workload.batch + 1):
                everything = _Devices(search, search.whole, size, role, self.usable)
                lower = {q: everything.work_bound(self.ledger.goal_of(role, q, {})) for q in names}
                for counts in bundles_of(search.whole):
                    if not 0 < sum(counts) <= (search.goal.max_devices or sum(counts)):
                        continue
                    key = role, size, search.alike(counts)
                    if key not in alike:
                        devices = _Devices(search, counts, size, role, self.usable)
                        alike[key] = Column(self.ledger, role, size, devices, lower)
                    self.columns[role, counts, size] = alike[key]

    def step(self, cutoff: float) -> None:
        """Raise the bound, and look for a better deployment."""
        picked = self.master.pick(
            [
                choice
                for (_, counts, _), column in self.columns.items()
                for choice in (
                    *(Choice.of(column, counts, cell, cell.lower) for cell in column.cells),
                    *(Choice.of(column, counts, p, self._floored(column, p)) for p in column.points),
                )
            ],
            min(cutoff, self.score),
            margin=TOLERANCE_FRAC / 10,
            time_limit_s=self.search.seconds_left(),
        )
        self.bound = max(self.bound, picked.bound)
        if not picked.choices or not self._refine(picked.choices):
            self.open = False
        self._find(cutoff)

    def _floored(self, column: Column, point: Point) -> dict[Objective, float]:
        return {**point.values, column.names[0]: point.floor}

    def _refine(self, picked: tuple[Choice, ...]) -> bool:
        """Look into the replicas that a bound stands on; whether anything was left to look into."""
        found: dict[int, tuple[Choice, Cell]] = {}
        for choice in picked:
            if isinstance(choice.source, Cell) and choice.column.can_refine(choice.source):
                found[id(choice.source)] = (choice, choice.source)
        unsolved = [(c, cell) for c, cell in found.values() if not cell.solved]
        name, share = self._over(picked)
        for choice, cell in unsolved or found.values():
            if cell not in choice.column.cells or not self.search.time_left():
                continue
            before = choice.column.tier
            choice.column.refine(cell, name, self._split_at(choice, name, share))
            if before < choice.column.tier:
                self._spread(choice)
        return bool(found)

    def _over(self, picked: tuple[Choice, ...]) -> tuple[Objective | None, float]:
        """Return the bound that the cells' own plans exceed most, and the share of the way that it allows."""
        worst: tuple[float, Objective | None, float] = (0.0, None, 0.0)
        for name, limit in self.ledger.shared.items():
            corner = self.master.score(picked, name)
            plans = self.ledger.total(
                name, ((c.column.role, _part_of_plan(c, name)) for c in picked if name in c.parts)
            )
            if plans > limit:
                share = (limit - corner) / (plans - corner) if plans > corner else 0.0
                worst = max(worst, ((plans - limit) / abs(limit), name, share), key=lambda entry: entry[0])
        return worst[1], worst[2]

    def _split_at(self, choice: Choice, name: Objective | None, share: float) -> float:
        if name is None or name not in choice.parts:
            return 0.0
        low, high = choice.parts[name], _part_of_plan(choice, name)
        column = choice.column
        return self.ledger.value(name, low + share * (high - low), column.batch, column.role)

    def _spread(self, choice: Choice) -> None:
        """Let replicas on a part of some devices know what those cannot beat."""
        column = choice.column
        if not column.cells:
            return
        lower = column.cells[0].lower
        for (role, counts, size), other in self.columns.items():
            inside = all(a <= b for a, b in zip(counts, choice.counts, strict=True))
            if role == column.role and size == column.batch and inside:
                other.raise_to(lower)

    def _find(self, cutoff: float) -> None:
        """Find the best deployment of known plans where there are new ones."""
        n_points = sum(len(column.points) for column in set(self.columns.values()))
        if n_points == self.n_points:
            return
        self.n_points = n_points
        choices = [
            Choice.of(column, counts, point, point.values)
            for (_, counts, _), column in self.columns.items()
            for point in column.points
        ]
        for margin in (0.0, -2 * TOLERANCE_FRAC):
            picked = self.master.pick(
                choices, min(cutoff, self.score), margin=margin, time_limit_s=self.search.seconds_left()
            )
            if picked.choices and self.master.keeps_bounds(picked.choices):
                score = self.master.score(picked.choices, self.ledger.goal.objective)
                if score < self.score:
                    self.score, self.taken = score, picked.choices
                return


def _part_of_plan(choice: Choice, name: Objective) -> float:
    """Return the part of the plan that a cell's solution stands for, of its corner where none is known."""
    point = choice.source.point if isinstance(choice.source, Cell) else choice.source
    if point is None:
        return choice.parts[name]
    column = choice.column
    return column.ledger.part(name, point.values[name], column.batch, column.role)


class BoundedSearch:
    """One search over all forms; the one whose bound is least is gone on with."""

    def __init__(self, search: DeploymentSearch) -> None:
        self.search = search
        goal, workload, pools = search.goal, search.workload, search.options.pools
        self.forms: list[_Form] = []
        if pools != "separate":
            self.forms.append(_Form(search, Ledger(goal, workload, separate=False), None))
        if pools != "same" and workload.output_tokens > 1:
            ledger = Ledger(goal, workload, separate=True)
            self.forms += [_Form(search, ledger, usable) for usable in search.inputs.by_kv_format]

    def run(self) -> tuple[float, float, tuple[Replica, ...]]:
        """Return score, bound and replicas."""
        for form in self.forms:
            form.begin()
        while self.search.time_left():
            best = min(form.score for form in self.forms)
            enough = best - self.search.limits.gap_frac * abs(best) if np.isfinite(best) else best
            rest = [form for form in self.forms if form.open and form.bound < enough]
            if not rest:
                break
            min(rest, key=lambda form: form.bound).step(best)
        form = min(self.forms, key=lambda form: form.score)
        bound = min(form.bound for form in self.forms)
        return form.score, bound, self._replicas(form)

    def _replicas(self, form: _Form) -> tuple[Replica, ...]:
        found = []
        for choice in form.taken:
            assert isinstance(choice.source, Point)
            column = choice.column
            found.append(
                self.search.as_replica(choice.counts, column.batch, column.role, choice.source.pipeline)
            )
        return tuple(found)


def needs_accounts(goal: Goal, *, several: bool, separate: bool) -> bool:
    """Whether replicas share a bound, or pools an objective, that only their sums decide."""
    if separate:
        return bool((SUMS | {"time"}) & set(goal.bounds)) or goal.objective in ("energy", "cost")
    return several and bool(SUMS & set(goal.bounds))
