"""From the cost table to the planner's arrays, and from its answer back to a plan.

The units of a layer are folded into one choice per layer (``fold``). Groups of devices that share layers are
devices of the problem. Where some of them hold copies of the cache, a choice takes more memory there: it then
has a variant for each way to hold the cache, which only the devices that hold it so can run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array, CostTable
from dse.formats.precision import Precision
from dse.graph.workload import Workload
from dse.partition.fold import Fold, UnitCosts, fold_layer, units_of_layers
from dse.partition.groups import DeviceGroup, link_of, placed, single_devices
from dse.partition.orders import candidate_orders
from dse.partition.problem import Arrangement, EnergyTables, PipelineProblem
from dse.partition.sequences import MAX_SUBSET_DEVICES
from dse.plan import Assignment, Plan, Stage
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import Cluster

MAX_CHOICES = 96


@dataclass(frozen=True)
class TableProblem:
    """A pipeline problem with what its choices mean.

    Attributes:
        problem: the arrays.
        combinations: per layer and choice the precision index of every unit of the layer.
        units: unit names of every layer; precisions: what the indices mean.
        cluster: its name.
        groups: what the problem's devices are.
        width: choices without variants: ``choice % width`` is the index into ``combinations``.
        offloaded_from: choices from here on leave the layer's weights outside the device; None for none.
        n_thinned: combinations left out beyond exact dominance because a layer had too many; with 0 the
            planner's proofs hold for all assignments, otherwise for those among the remaining combinations.
        all_orders: whether every order and subset of the devices is a candidate; else only orders that keep
            like devices together, and of many devices only whole runs of them: proofs hold among those.
    """

    problem: PipelineProblem
    combinations: tuple[tuple[tuple[int, ...], ...], ...]
    units: tuple[tuple[str, ...], ...]
    precisions: tuple[Precision, ...]
    cluster: str
    groups: tuple[DeviceGroup, ...]
    width: int
    n_thinned: int
    all_orders: bool
    offloaded_from: int | None = None

    def assignment_from(self, choices: Sequence[int]) -> Assignment:
        """Return the precision of every unit."""
        return Assignment(
            tuple(
                (unit, self.precisions[q])
                for units, combinations, choice in zip(self.units, self.combinations, choices, strict=True)
                for unit, q in zip(units, combinations[choice % self.width], strict=True)
            )
        )

    def plan_from(
        self,
        arrangement: Arrangement,
        *,
        model: str,
        granularity: str = "block",
        name: str = "",
        taken: Collection[str] = (),
    ) -> Plan:
        """Return the plan of an arrangement; devices that are ``taken`` elsewhere are left alone."""
        return Plan(
            model=model,
            cluster=self.cluster,
            assignment=self.assignment_from(arrangement.choices),
            stages=self.stages_from(arrangement, taken),
            prefill_micro_batch=arrangement.prefill_micro_batch,
            decode_micro_batch=arrangement.decode_micro_batch,
            granularity=granularity,
            name=name,
            prefill_chunks=self.problem.n_chunks,
            offloaded_layers=self.offloaded_layers(arrangement),
        )

    def offloaded_layers(self, arrangement: Arrangement) -> tuple[int, ...]:
        """Return the layers whose weights lie outside their device."""
        if self.offloaded_from is None:
            return ()
        first = self.offloaded_from
        return tuple(layer for layer, choice in enumerate(arrangement.choices) if choice >= first)

    def stages_from(self, arrangement: Arrangement, taken: Collection[str] = ()) -> tuple[Stage, ...]:
        """Return the stages on devices of the cluster that are not taken."""
        groups = [self.groups[device] for device, _, _ in arrangement.stages]
        return tuple(
            Stage(devices, (first, end), group.degree)
            for (_, first, end), group, devices in zip(
                arrangement.stages, groups, placed(groups, taken), strict=True
            )
        )

    def choice_of(self, layer: int, precisions: Sequence[Precision]) -> int | None:
        """Return the choice of a layer whose units have exactly these precisions, None if it was dropped."""
        wanted = tuple(self.precisions.index(precision) for precision in precisions)
        found = [k for k, combination in enumerate(self.combinations[layer]) if combination == wanted]
        return found[0] if found else None


def divisors(batch: int) -> tuple[int, ...]:
    """Return the divisors of a batch: micro-batch sizes that leave no remainder."""
    return tuple(size for size in range(1, batch + 1) if batch % size == 0)


def problem_from_table(
    table: CostTable,
    sensitivity: SensitivityTable,
    cluster: Cluster,
    workload: Workload,
    *,
    prefill_micro_batches: Sequence[int] | None = None,
    decode_micro_batches: Sequence[int] | None = None,
    usable: NDArray[np.bool_] | None = None,
    mixed_within_layer: bool = True,
    allow_empty: bool = True,
    max_choices: int = MAX_CHOICES,
    with_energy: bool = False,
    groups: Sequence[DeviceGroup] | None = None,
    sequences: Sequence[tuple[int, ...]] | None = None,
) -> TableProblem:
    """Return the planner's problem of a cost table.

    Args:
        table: its micro-batches must hold all candidate sizes.
        sensitivity: penalties of all units and precisions of the table.
        cluster: its device types must be in the table.
        workload: batch and lengths.
        prefill_micro_batches, decode_micro_batches: candidate sizes; None for the divisors of the batch that
            the table prices.
        usable: (U, Q) choices to consider beside what devices support, for pins and runtimes; None for all.
        mixed_within_layer: whether units of one layer may differ.
        allow_empty: whether devices may stay unused.
        max_choices: combinations kept per layer.
        with_energy: whether energy is asked for; then a choice that is slower but takes fewer joules is kept.
        groups: what may be a stage, single devices where None; their kinds must be in the table.
        sequences: orders of groups, each of them a whole pipeline; needed for groups, which may overlap.

    Raises:
        ConfigError: sizes, units, precisions or device types do not match.
    """
    usable = np.ones(table.unit_weight_bytes.shape, dtype=bool) if usable is None else usable
    sizes = tuple(
        _micro_batches(table, workload, given, name)
        for name, given in (
            ("prefill_micro_batch", prefill_micro_batches),
            ("decode_micro_batch", decode_micro_batches),
        )
    )
    groups = single_devices(cluster) if groups is None else tuple(groups)
    types = [_kind_index(table, group) for group in groups]
    kv_copies, held_as = np.unique(table.kv_copies[types], axis=0, return_inverse=True)
    costs = UnitCosts.of(table, _penalties(table, sensitivity), workload, sizes, with_energy, kv_copies)
    folded = [
        fold_layer(table, costs, layer, usable, mixed_within_layer, max_choices)
        for layer in range(len(table.layer_fixed_bytes))
    ]
    orders, all_orders = candidate_orders(cluster) if sequences is None else (tuple(sequences), True)
    problem = _problem(table, cluster, workload, sizes, groups, folded, orders)
    problem = replace(problem, allow_empty=allow_empty and sequences is None)
    if with_energy:
        problem = replace(problem, energy=_energy_tables(table, cluster, sizes, groups, folded))
    width = problem.memory_bytes.shape[1]
    if len(kv_copies) > 1:
        problem = _with_variants(problem, table, folded, held_as.reshape(-1))
    of_layer = units_of_layers(table)
    return TableProblem(
        problem=problem,
        combinations=tuple(tuple(tuple(int(q) for q in row) for row in fold.picks) for fold in folded),
        units=tuple(tuple(table.units[u].name for u in units) for units in of_layer),
        precisions=table.precisions,
        cluster=cluster.name,
        groups=groups,
        width=width,
        n_thinned=sum(fold.n_thinned for fold in folded),
        all_orders=all_orders and len(problem.devices) <= MAX_SUBSET_DEVICES,
    )


def _with_variants(
    problem: PipelineProblem, table: CostTable, folded: list[Fold], held_as: NDArray[np.int64]
) -> PipelineProblem:
    """Return the problem with every choice once for each way to hold the cache, ``held_as`` (N)."""
    n_ways, (n_layers, width) = int(held_as.max()) + 1, problem.memory_bytes.shape
    memory = np.zeros((n_layers, n_ways, width))
    fixed = table.layer_fixed_bytes + problem.batch * table.layer_state_bytes
    for layer, fold in enumerate(folded):
        memory[layer, :, : len(fold.picks)] = fold.memory_bytes.T + fixed[layer]
    able = (held_as[:, None] == np.arange(n_ways))[:, None, :, None] & problem.allowed[:, :, None, :]

    def repeated(costs: Array) -> Array:
        return np.tile(costs, n_ways)

    energy = problem.energy
    if energy is not None:
        energy = replace(energy, prefill_j=repeated(energy.prefill_j), decode_j=repeated(energy.decode_j))
    return replace(
        problem,
        prefill_s=repeated(problem.prefill_s),
        decode_s=repeated(problem.decode_s),
        allowed=able.reshape(len(held_as), n_layers, n_ways * width),
        memory_bytes=memory.reshape(n_layers, n_ways * width),
        penalty=repeated(problem.penalty),
        energy=energy,
    )


def _problem(
    table: CostTable,
    cluster: Cluster,
    workload: Workload,
    sizes: tuple[tuple[int, ...], ...],
    groups: tuple[DeviceGroup, ...],
    folded: list[Fold],
    orders: tuple[tuple[int, ...], ...],
) -> PipelineProblem:
    types = [_kind_index(table, group) for group in groups]
    n_layers, n_choices = len(folded), max(len(fold.picks) for fold in folded)
    n_types, (prefill_sizes, decode_sizes) = len(table.devices), sizes
    n_p, n_d = len(prefill_sizes), len(decode_sizes)
    times = np.zeros((n_p + n_d, n_types, n_layers, n_choices))
    allowed = np.zeros((n_types, n_layers, n_choices), dtype=bool)
    memory, penalty = np.zeros((2, n_layers, n_choices))
    fixed = table.layer_fixed_bytes + workload.batch * table.layer_state_bytes
    for layer, fold in enumerate(folded):
        k = len(fold.picks)
        seconds = fold.costs[:, : (n_p + n_d) * n_types].T.reshape(n_p + n_d, n_types, k)
        able = np.isfinite(seconds).all(axis=0)
        allowed[:, layer, :k] = able
        times[:, :, layer, :k] = np.where(able, seconds, 0.0)
        memory[layer, :k] = fold.memory_bytes[:, 0] + fixed[layer]
        penalty[layer, :k] = fold.penalty
    indices = [[table.micro_batch_index(size) for size in candidates] for candidates in sizes]
    for phase, (offset, chosen) in enumerate(((0, indices[0]), (n_p, indices[1]))):
        for i, m in enumerate(chosen):
            times[offset + i] += table.layer_time_s[phase, m][:, :, None]
    degrees = np.array([float(group.degree) for group in groups])
    capacity = np.array([cluster.capacity_bytes(group.first_device) for group in groups])
    activations = np.maximum(
        table.activation_bytes[0, indices[0]][:, None], table.activation_bytes[1, indices[1]][None, :]
    )
    return PipelineProblem(
        devices=tuple(group.name for group in groups),
        device_types=tuple(group.kind for group in groups),
        orders=orders,
        prefill_micro_batches=prefill_sizes,
        decode_micro_batches=decode_sizes,
        prefill_s=times[:n_p][:, types],
        decode_s=times[n_p:][:, types],
        allowed=allowed[types],
        memory_bytes=memory,
        capacity_bytes=degrees * (capacity - table.reserve_bytes[types]),
        first_bytes=table.first_bytes,
        last_bytes=table.last_bytes,
        tied_bytes=table.tied_bytes,
        first_prefill_s=table.first_time_s[0, indices[0]][:, types],
        first_decode_s=table.first_time_s[1, indices[1]][:, types],
        last_prefill_s=table.last_time_s[0, indices[0]][:, types],
        last_decode_s=table.last_time_s[1, indices[1]][:, types],
        hop_prefill_s=_hops(cluster, groups, table.hop_bytes[0, indices[0]]),
        hop_decode_s=_hops(cluster, groups, table.hop_bytes[1, indices[1]]),
        penalty=penalty,
        batch=workload.batch,
        output_tokens=workload.output_tokens,
        price_usd_per_h=tuple(_price(cluster, group) for group in groups),
        activation_bytes=activations[:, :, None] * degrees,
        n_chunks=table.n_chunks,
    )


def _energy_tables(
    table: CostTable,
    cluster: Cluster,
    sizes: tuple[tuple[int, ...], ...],
    groups: tuple[DeviceGroup, ...],
    folded: list[Fold],
) -> EnergyTables:
    """Return joules in the shapes of the problem's times; static power that is unknown counts as 0."""
    types = [_kind_index(table, group) for group in groups]
    n_types, n_p, n_d = len(table.devices), len(sizes[0]), len(sizes[1])
    n_times = (n_p + n_d) * n_types
    joules = np.zeros((n_p + n_d, n_types, len(folded), max(len(fold.picks) for fold in folded)))
    for layer, fold in enumerate(folded):
        found = fold.costs[:, n_times : 2 * n_times].T.reshape(n_p + n_d, n_types, -1)
        joules[:, :, layer, : len(fold.picks)] = np.where(np.isfinite(found), found, 0.0)
    at = [[table.micro_batch_index(size) for size in candidates] for candidates in sizes]
    for phase, offset in ((0, 0), (1, n_p)):
        for i, m in enumerate(at[phase]):
            joules[offset + i] += table.layer_energy_j[phase, m][:, :, None]
    hops = []
    for phase in (0, 1):
        moved = table.hop_bytes[phase, at[phase]]
        hop = np.zeros((len(moved), len(groups), len(groups)))
        for (a, first), (b, second) in itertools.permutations(enumerate(groups), 2):
            hop[:, a, b] = link_energy_j(moved, link_of(cluster, first, second))
        hops.append(hop)
    return EnergyTables(
        prefill_j=joules[:n_p][:, types],
        decode_j=joules[n_p:][:, types],
        first_prefill_j=table.first_energy_j[0, at[0]][:, types],
        first_decode_j=table.first_energy_j[1, at[1]][:, types],
        last_prefill_j=table.last_energy_j[0, at[0]][:, types],
        last_decode_j=table.last_energy_j[1, at[1]][:, types],
        hop_prefill_j=hops[0],
        hop_decode_j=hops[1],
        static_w=table.static_w[types],
    )


def _price(cluster: Cluster, group: DeviceGroup) -> float | None:
    """Return the rent of a group, None where it is unknown."""
    price = cluster.specs[group.device].price_usd_per_h
    return None if price is None else group.degree * price


def _hops(cluster: Cluster, groups: tuple[DeviceGroup, ...], message_bytes: Array) -> Array:
    """Return (M, N, N) seconds of a transfer between two devices; 0 from a device to itself."""
    hops = np.zeros((len(message_bytes), len(groups), len(groups)))
    for (a, first), (b, second) in itertools.permutations(enumerate(groups), 2):
        hops[:, a, b] = p2p_time_s(message_bytes, link_of(cluster, first, second))
    return hops


def _kind_index(table: CostTable, group: DeviceGroup) -> int:
    if group.kind not in table.devices:
        raise ConfigError(
            f"device type '{group.kind}' is not priced", value=group.kind, allowed=table.devices
        )
    return table.devices.index(group.kind)


def _micro_batches(
    table: CostTable, workload: Workload, given: Sequence[int] | None, name: str
) -> tuple[int, ...]:
    if given is None:
        sizes = tuple(size for size in divisors(workload.batch) if size in table.micro_batches)
        if not sizes:
            raise ConfigError(f"no divisor of the batch {workload.batch} is priced", path=name)
        return sizes
    for size in given:
        if size not in table.micro_batches:
            raise ConfigError(
                f"micro-batch {size} is not priced",
                path=name,
                value=size,
                allowed=[str(entry) for entry in table.micro_batches],
            )
    return tuple(given)


def _penalties(table: CostTable, sensitivity: SensitivityTable) -> Array:
    """Return (U, Q) penalties in the table's order."""
    row = {name: i for i, name in enumerate(sensitivity.units)}
    column = {precision: i for i, precision in enumerate(sensitivity.precisions)}
    missing = [unit.name for unit in table.units if unit.name not in row]
    missing += [precision.name for precision in table.precisions if precision not in column]
    if missing:
        raise ConfigError(
            f"the sensitivity table lacks {', '.join(missing[:5])} ({len(missing)} in all)",
            path="sensitivity",
        )
    rows = [row[unit.name] for unit in table.units]
    columns = [column[precision] for precision in table.precisions]
    return sensitivity.penalty[np.ix_(rows, columns)]
