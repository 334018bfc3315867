"""Lower bounds over all groupings at once: how many stages of every class, and which layers on the class.

The mixed-integer program forgets the order of stages and the cuts between them. A class's stages together
hold its layers within their memory, and take no longer than so many times the slowest stage. Every pipeline
is a point of it with the same value or a lower one, so its bound holds for all orders and cuts, and its best
numbers of stages are where to look for a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dse.partition.layout.classes import LayerClass, StageClasses, least_hops_s
from dse.partition.layout.program import Linear, Program, plus, times
from dse.partition.layout.rates import RateWindow
from dse.partition.problem import Array, Goal, Objective, PipelineProblem

TOLERANCE_FRAC = 1e-6  # of the solver: bounds are lowered by it


@dataclass(frozen=True)
class Aggregate:
    """An answer: ``bound`` for all groupings that are not excluded, and the numbers of stages of the best."""

    bound: float
    counts: tuple[int, ...] | None


class Aggregation:
    """The program of one pair of micro-batches; groupings that were looked at are excluded one by one.

    Only those are meant whose devices together draw or cost what is within the ``windows``.
    """

    def __init__(
        self,
        problem: PipelineProblem,
        stages: StageClasses,
        layers: Sequence[LayerClass],
        goal: Goal,
        p: int,
        d: int,
        windows: tuple[RateWindow, ...] = (),
    ) -> None:
        self.problem, self.goal, self.p, self.d = problem, goal, p, d
        self.windows = windows
        self.stages, self.layers = stages, layers
        self.classes, self.n_devices = stages.classes, stages.n_devices
        self.hops = least_hops_s(problem, stages, p, d)
        self.k = problem.n_prefill_passes(problem.prefill_micro_batches[p])
        self.m = problem.n_decode_passes(problem.decode_micro_batches[d])
        self.excluded: list[tuple[int, ...]] = []
        self._layer_columns: list[Linear] = []

    def halves(self) -> list[Aggregation]:
        """Return the programs of both halves of a window; none where no window can be split."""
        for i, window in enumerate(self.windows):
            parts = window.halves()
            if parts:
                return [self._within((*self.windows[:i], part, *self.windows[i + 1 :])) for part in parts]
        return []

    def _within(self, windows: tuple[RateWindow, ...]) -> Aggregation:
        return Aggregation(self.problem, self.stages, self.layers, self.goal, self.p, self.d, windows)

    def solve(self, cutoff: float, *, integer: bool = True, time_limit_s: float = 10.0) -> Aggregate:
        """Return the bound; groupings whose value is at or above ``cutoff`` need not be told apart.

        An infinite bound says that nothing below the cutoff is left.
        """
        program = Program()
        used = self._add_stages(program)
        sums = self._add_layers(program, used)
        self._layer_columns = sums["layers"]
        quantities = self._add_quantities(program, used, sums, cutoff)
        objective = quantities[self.goal.objective]
        if self.goal.theta_s > 0:
            objective = plus(objective, times(sums["penalty"][0], self.goal.theta_s))
        for name, limit in self.goal.bounds.items():
            program.at_most(quantities[name], float(limit) * (1 + TOLERANCE_FRAC))
        if np.isfinite(cutoff):
            program.at_most(objective, float(cutoff))
        self._exclude(program, used)
        found = program.minimise(objective, integer=integer, time_limit_s=time_limit_s)
        counts = None
        if integer and found.x is not None:
            counts = tuple(round(float(found.x[columns].sum())) for columns in used)
        if found.bound == float("inf"):
            return Aggregate(found.bound, None)
        return Aggregate(max(found.bound - TOLERANCE_FRAC * abs(found.bound), 0.0), counts)

    def _add_stages(self, program: Program) -> list[list[int]]:
        """Add whether there is a first, second, ... stage of every class; return the columns."""
        used = [[program.column(1.0, integer=True) for _ in range(c.most)] for c in self.classes]
        for columns in used:
            for one, following in pairwise(columns):
                program.at_most({following: 1.0}, {one: 1.0})
        for devices, available in self._device_limits(used):
            program.at_most(devices, available)
        for window in self.windows:
            for rate, columns in zip(window.of_classes, used, strict=True):
                if rate is None or rate > window.high * (1 + TOLERANCE_FRAC):
                    program.upper[columns[0]] = 0.0
            rates = _rates(window, used)
            program.at_most(rates, window.high * (1 + TOLERANCE_FRAC))
            program.at_most(times(rates, -1.0), -window.low * (1 - TOLERANCE_FRAC))
        return used

    def _device_limits(self, of_stages: list[list[int]]) -> Iterator[tuple[Linear, float]]:
        """Yield devices of the stages, of each kind of node and of all, with how many there are."""
        everything: Linear = {}
        for kind, available in self.n_devices.items():
            taken = {
                column: float(c.degree)
                for c, columns in zip(self.classes, of_stages, strict=True)
                if c.node_kind == kind
                for column in columns
            }
            everything.update(taken)
            yield taken, float(available)
        if self.goal.max_devices is not None:
            yield everything, float(self.goal.max_devices)

    def _add_layers(self, program: Program, used: list[list[int]]) -> dict[str, list[Linear]]:
        """Add layers to classes, embedding and head; return the sums of every class by what they sum."""
        problem, p, d = self.problem, self.p, self.d
        names = ("prefill", "decode", "joules", "memory", "layers", "first")
        sums: dict[str, list[Linear]] = {name: [{} for _ in self.classes] for name in names}
        placed: list[Linear] = [{} for _ in self.layers]
        penalty: Linear = {}
        for c, entry in enumerate(self.classes):
            for g, layers in enumerate(self.layers):
                for choice in _choices(layers, entry.device, p, d, with_penalty=self._counts_penalty):
                    column = program.column(float(layers.n_layers))
                    placed[g][column] = 1.0
                    sums["layers"][c][column] = 1.0
                    sums["prefill"][c][column] = float(layers.prefill_s[p, entry.device, choice])
                    sums["decode"][c][column] = float(layers.decode_s[d, entry.device, choice])
                    sums["memory"][c][column] = float(layers.memory_bytes[choice])
                    penalty[column] = float(layers.penalty[choice])
                    if layers.prefill_j is not None and layers.decode_j is not None:
                        joules = self.k * layers.prefill_j[p, entry.device, choice]
                        joules += self._rounds * self.m * layers.decode_j[d, entry.device, choice]
                        sums["joules"][c][column] = float(joules)
        for g, layers in enumerate(self.layers):
            program.equals(placed[g], float(layers.n_layers))
        if self.goal.max_penalty is not None:
            scale = abs(self.goal.max_penalty) or 1.0
            program.at_most(times(penalty, 1 / scale), float(self.goal.max_penalty / scale + TOLERANCE_FRAC))
        self._add_ends(program, used, sums)
        for c, entry in enumerate(self.classes):
            room = float(problem.capacity_bytes[entry.device])
            if problem.activation_bytes is not None:
                room -= float(problem.activation_bytes[p, d, entry.device])
            if room <= 0:
                program.upper[used[c][0]] = 0.0
                room = 1.0
            stages = dict.fromkeys(used[c], 1.0 + TOLERANCE_FRAC)
            program.at_most(times(sums["memory"][c], 1 / room), stages)
        sums["penalty"] = [penalty]
        return sums

    def _add_ends(self, program: Program, used: list[list[int]], sums: dict[str, list[Linear]]) -> None:
        problem, p, d = self.problem, self.p, self.d
        ends: list[Linear] = [{}, {}]
        tables = (
            (problem.first_prefill_s[p], problem.first_decode_s[d], problem.first_bytes - problem.tied_bytes),
            (problem.last_prefill_s[p], problem.last_decode_s[d], problem.last_bytes),
        )
        for end, (prefill, decode, size) in zip(ends, tables, strict=True):
            for c, entry in enumerate(self.classes):
                column = program.column(1.0)
                program.at_most({column: 1.0}, {used[c][0]: 1.0})
                end[column] = 1.0
                sums["prefill"][c][column] = float(prefill[entry.device])
                sums["decode"][c][column] = float(decode[entry.device])
                sums["memory"][c][column] = max(float(size), 0.0)
                if end is ends[0]:
                    sums["first"][c][column] = 1.0
            program.equals(end, 1.0)

    def _add_quantities(
        self, program: Program, used: list[list[int]], sums: dict[str, list[Linear]], cutoff: float
    ) -> dict[Objective, Linear]:
        """Return every quantity that the goal needs as a linear form."""
        k, m, rounds = self.k, self.m, self._rounds
        wanted = self.goal.quantities
        into = [
            [
                plus(dict.fromkeys(used[c], float(hop)), times(sums["first"][c], -float(hop)))
                for c, hop in enumerate(hops)
            ]
            for hops in self.hops
        ]
        prefill, decode = (
            plus(*sums[name], *hops) for name, hops in zip(("prefill", "decode"), into, strict=True)
        )
        found: dict[Objective, Linear] = {}
        limits = self._limits(cutoff)
        if wanted & {"time", "ttft", "energy", "cost"}:
            slow = self._slowest(program, used, sums["prefill"], self._units(1.0, 0.0), limits["prefill"])
            if self.problem.handover_s is not None:
                handover = float(self.problem.handover_s[self.p])
                program.lower[slow] = handover
                one = program.column(handover)
                program.lower[one] = handover
                prefill = plus(prefill, {one: 1.0})
            found["ttft"] = plus(prefill, {slow: float(k - 1)})
        if wanted & {"time", "tpot", "energy", "cost"}:
            slow = self._slowest(program, used, sums["decode"], self._units(0.0, 1.0), limits["decode"])
            turn = program.column()
            program.at_most(decode, {turn: 1.0})
            program.at_most({slow: float(m)}, {turn: 1.0})
            found["tpot"] = {turn: 1.0}
            if "ttft" in found:
                if self.goal.formula == "makespan" and rounds > 0:
                    last = plus(decode, {slow: float(m - 1)})
                    found["time"] = plus(found["ttft"], {turn: float(rounds - 1)}, last)
                else:
                    found["time"] = plus(found["ttft"], {turn: float(rounds)})
        if "throughput" in wanted:
            busy = [
                plus(times(a, float(k)), times(b, float(rounds * m)))
                for a, b in zip(sums["prefill"], sums["decode"], strict=True)
            ]
            slow = self._slowest(
                program, used, busy, self._units(float(k), float(rounds * m)), limits["busy"]
            )
            period = program.column()
            program.at_most({slow: 1.0}, {period: 1.0})
            program.at_most(plus(prefill, times(decode, float(rounds))), {period: 1.0})
            found["throughput"] = {period: 1.0}
        joules = [times(joules, 1 / self._n_tokens) for joules in sums["joules"]]
        for window in self.windows:
            product = self._add_product(program, window, used, found["time"], cutoff)
            found[window.name] = plus(product, *(joules if window.name == "energy" else []))
        return found

    def _add_product(
        self, program: Program, window: RateWindow, used: list[list[int]], time_s: Linear, cutoff: float
    ) -> Linear:
        """Add the rate times the time, above McCormick's planes (1976) through the ends of the window."""
        longest, product = self._longest_s(cutoff), program.column()
        program.at_most(times(time_s, window.low), {product: 1.0})
        above = plus(times(time_s, window.high), times(_rates(window, used), longest), {product: -1.0})
        program.at_most(above, window.high * longest)
        return {product: window.scale}

    def _slowest(
        self, program: Program, used: list[list[int]], sums: list[Linear], unit: Array, limit: float
    ) -> int:
        """Add the slowest stage's time; ``unit`` (C) is the least time of a layer on each class.

        The stages of a class take no longer together than as many times the slowest, which is the sum of
        products of it with 0 or 1; none holds more layers than its whole number within ``limit``. What
        limits the devices, times the slowest, limits the products (reformulation-linearization, Sherali and
        Adams 1990): else a fraction of a stage could take as long as the slowest.
        """
        slowest = program.column(limit)
        products: list[list[int]] = []
        for columns, total, least, layers in zip(used, sums, unit, self._layer_columns, strict=True):
            parts = [program.column() for _ in columns]
            products.append(parts)
            for column, part in zip(columns, parts, strict=True):
                program.at_most({part: 1.0}, {slowest: 1.0})
                program.at_most({part: 1.0}, {column: limit})
            program.at_most(total, dict.fromkeys(parts, 1.0))
            if least > 0:
                most = min(np.floor(limit / least * (1 + TOLERANCE_FRAC)), 1e6)
                program.at_most(layers, dict.fromkeys(columns, float(most)))
        for devices, available in self._device_limits(products):
            program.at_most(devices, {slowest: available})
        for window in self.windows:
            rates = _rates(window, products)
            program.at_most(rates, {slowest: window.high * (1 + TOLERANCE_FRAC)})
            program.at_most({slowest: window.low * (1 - TOLERANCE_FRAC)}, rates)
        return slowest

    def _limits(self, cutoff: float) -> dict[str, float]:
        """Return what the slowest stage can take at most in a plan below the cutoff and within the bounds."""
        k, m, rounds = self.k, self.m, self._rounds
        slow_p, slow_d = self._all_on_the_slowest_s()
        limits = {"prefill": slow_p, "decode": slow_d, "busy": k * slow_p + rounds * m * slow_d}
        for name, most in [*self._most(cutoff).items(), ("time", self._longest_s(cutoff))]:
            if name in ("time", "ttft"):
                limits["prefill"] = min(limits["prefill"], most / k)
            if name == "time" and rounds > 0:
                limits["decode"] = min(limits["decode"], most / (rounds * m))
            if name == "tpot":
                limits["decode"] = min(limits["decode"], most / m)
            if name == "throughput":
                limits["busy"] = min(limits["busy"], most)
        return limits

    def _most(self, cutoff: float) -> dict[Objective, float]:
        """Return what the quantities are at most in a plan below the cutoff and within the bounds."""
        found = self.goal.bounds
        found[self.goal.objective] = min(cutoff, found.get(self.goal.objective, cutoff))
        return found

    def _longest_s(self, cutoff: float) -> float:
        """Return what the batch takes at most in a plan below the cutoff and within the bounds."""
        slow_p, slow_d = self._all_on_the_slowest_s()
        n_hops = sum(c.n_layers for c in self.layers)
        hop_s = float(self.problem.hop_prefill_s.max() + self._rounds * self.problem.hop_decode_s.max())
        longest = 2 * (self.k * slow_p + self._rounds * self.m * slow_d + self.k * n_hops * hop_s)
        most = self._most(cutoff)
        for window in self.windows:
            if window.low > 0 and window.name in most:
                longest = min(longest, most[window.name] / (window.scale * window.low))
        return min(longest, most.get("time", longest))

    def _all_on_the_slowest_s(self) -> tuple[float, float]:
        """Return the prefill and the decode of all layers, one after the other, where each is slowest."""
        problem = self.problem
        prefill = sum(c.n_layers * float(c.prefill_s[self.p].max()) for c in self.layers)
        decode = sum(c.n_layers * float(c.decode_s[self.d].max()) for c in self.layers)
        prefill += float(problem.first_prefill_s.max() + problem.last_prefill_s.max())
        decode += float(problem.first_decode_s.max() + problem.last_decode_s.max())
        if problem.handover_s is not None:
            prefill = max(prefill, float(problem.handover_s[self.p]))
        return prefill, decode

    def _units(self, weight_p: float, weight_d: float) -> Array:
        """Return (C) the least weighted time of any layer on each class."""
        found = np.zeros(len(self.classes))
        for c, entry in enumerate(self.classes):
            found[c] = (
                min(
                    float(weight_p * layers.prefill_s[self.p, entry.device, choice])
                    + float(weight_d * layers.decode_s[self.d, entry.device, choice])
                    for layers in self.layers
                    for choice in np.flatnonzero(layers.allowed[entry.device])
                )
                if any(layers.allowed[entry.device].any() for layers in self.layers)
                else 0.0
            )
        return found

    def _exclude(self, program: Program, used: list[list[int]]) -> None:
        """Ask for other numbers of stages than each grouping that was looked at: one stage more or less."""
        for counts in self.excluded:
            there: Linear = {}
            missing = 0
            for columns, n in zip(used, counts, strict=True):
                if n > 0:
                    there[columns[n - 1]] = -1.0
                    missing += 1
                if n < len(columns):
                    there[columns[n]] = 1.0
            program.at_most(times(there, -1.0), float(missing - 1))

    @property
    def _rounds(self) -> int:
        return self.problem.output_tokens - 1

    @property
    def _n_tokens(self) -> int:
        return self.problem.batch * self.problem.output_tokens

    @property
    def _counts_penalty(self) -> bool:
        return self.goal.theta_s > 0 or self.goal.max_penalty is not None


def _rates(window: RateWindow, of_stages: list[list[int]]) -> Linear:
    """Return what the stages draw or cost together."""
    return {
        column: rate
        for rate, columns in zip(window.of_classes, of_stages, strict=True)
        if rate
        for column in columns
    }


def _choices(layers: LayerClass, device: int, p: int, d: int, *, with_penalty: bool) -> list[int]:
    """Return the choices that no other one equals or beats on a device."""
    able = np.flatnonzero(layers.allowed[device])
    costs = [layers.prefill_s[p, device, able], layers.decode_s[d, device, able], layers.memory_bytes[able]]
    if with_penalty:
        costs.append(layers.penalty[able])
    if layers.prefill_j is not None and layers.decode_j is not None:
        costs += [layers.prefill_j[p, device, able], layers.decode_j[d, device, able]]
    table = np.stack(costs, axis=1)
    kept: list[int] = []
    for i in np.lexsort(table.T[::-1]):
        if not any((table[j] <= table[i]).all() for j in kept):
            kept.append(int(i))
    return [int(able[i]) for i in kept]
