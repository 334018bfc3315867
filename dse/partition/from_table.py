"""From the cost table to the planner's arrays, and from its answer back to a plan.

The units of a layer are folded into one choice per layer: every combination of their precisions that no other
combination beats on every device, at every micro-batch, in memory and in penalty. A plan that uses a beaten
combination can be improved by the one that beats it, so the fold loses nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from cost_models.memory import kv_cache_bytes
from dse.errors import ConfigError
from dse.evaluate.cost_table import Array, CostTable
from dse.formats.precision import Precision
from dse.graph.workload import Workload
from dse.partition.problem import Arrangement, EnergyTables, PipelineProblem
from dse.plan import Assignment, Plan, Stage
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import Cluster

MAX_CHOICES = 96
MAX_ORDERS = 5040
MAX_PERMUTED_DEVICES = 8
N_DIRECTIONS = 512


@dataclass(frozen=True)
class TableProblem:
    """A pipeline problem with what its choices mean.

    Attributes:
        problem: the arrays.
        combinations: per layer and choice the precision index of every unit of the layer.
        units: unit names of every layer; precisions: what the indices mean.
        cluster: its name.
        n_thinned: combinations left out beyond exact dominance because a layer had too many; with 0 the
            planner's proofs hold for all assignments, otherwise for those among the remaining combinations.
        all_orders: whether every device order is a candidate; else only those that keep like devices
            together.
    """

    problem: PipelineProblem
    combinations: tuple[tuple[tuple[int, ...], ...], ...]
    units: tuple[tuple[str, ...], ...]
    precisions: tuple[Precision, ...]
    cluster: str
    n_thinned: int
    all_orders: bool

    def assignment_from(self, choices: Sequence[int]) -> Assignment:
        """Return the precision of every unit."""
        return Assignment(
            tuple(
                (unit, self.precisions[q])
                for units, combinations, choice in zip(self.units, self.combinations, choices, strict=True)
                for unit, q in zip(units, combinations[choice], strict=True)
            )
        )

    def plan_from(
        self, arrangement: Arrangement, *, model: str, granularity: str = "block", name: str = ""
    ) -> Plan:
        """Return the plan of an arrangement."""
        return Plan(
            model=model,
            cluster=self.cluster,
            assignment=self.assignment_from(arrangement.choices),
            stages=tuple(
                Stage((self.problem.devices[device],), (first, end))
                for device, first, end in arrangement.stages
            ),
            prefill_micro_batch=arrangement.prefill_micro_batch,
            decode_micro_batch=arrangement.decode_micro_batch,
            granularity=granularity,
            name=name,
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
    types = [table.devices.index(kind) for kind in _device_kinds(table, cluster)]
    costs = _UnitCosts.of(table, _penalties(table, sensitivity), workload, sizes, with_energy)
    folded = [
        _fold(table, costs, layer, usable, mixed_within_layer, max_choices)
        for layer in range(len(table.layer_fixed_bytes))
    ]
    orders, all_orders = candidate_orders(cluster)
    problem = _problem(table, cluster, workload, sizes, types, folded, orders, allow_empty)
    if with_energy:
        energy = _energy_tables(table, cluster, sizes, types, folded)
        problem = replace(problem, energy=energy)
    of_layer = _units_of_layers(table)
    return TableProblem(
        problem=problem,
        combinations=tuple(tuple(tuple(int(q) for q in row) for row in fold.picks) for fold in folded),
        units=tuple(tuple(table.units[u].name for u in units) for units in of_layer),
        precisions=table.precisions,
        cluster=cluster.name,
        n_thinned=sum(fold.n_thinned for fold in folded),
        all_orders=all_orders,
    )


def candidate_orders(cluster: Cluster) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """Return device orders, one of each kind of equivalent ones, and whether they are all.

    Two orders are equivalent if they put equal devices in the same places and change nodes at the same ones.
    Beyond 8 devices, or ``MAX_ORDERS`` kinds, only orders that keep the devices of a node together are made.
    """
    node_of = {node.name: node for node in cluster.nodes}
    names = [name for name, _ in cluster.devices]
    nodes = [name.partition("/")[0] for name in names]
    kinds = [
        (
            node_of[node].device,
            node_of[node].n_devices,
            node_of[node].intra_link,
            cluster.capacity_bytes(name),
        )
        for node, name in zip(nodes, names, strict=True)
    ]

    def signature(order: tuple[int, ...]) -> object:
        numbering: dict[str, int] = {}
        return tuple((kinds[i], numbering.setdefault(nodes[i], len(numbering))) for i in order)

    if len(names) <= MAX_PERMUTED_DEVICES:
        found: dict[object, tuple[int, ...]] = {}
        for order in itertools.permutations(range(len(names))):
            found.setdefault(signature(order), order)
            if len(found) > MAX_ORDERS:
                break
        else:
            return tuple(found.values()), True
    groups = [[i for i, node in enumerate(nodes) if node == name] for name in dict.fromkeys(nodes)]
    blocks: dict[object, tuple[int, ...]] = {}
    for arranged in itertools.permutations(groups):
        order = tuple(i for group in arranged for i in group)
        blocks.setdefault(signature(order), order)
        if len(blocks) >= MAX_ORDERS:
            break
    return tuple(blocks.values()), False


@dataclass(frozen=True)
class _UnitCosts:
    """Costs of units, columns (C): times of device types (infinite: unsupported), joules, memory, penalty.

    ``values``: (U, Q, C); ``n_times`` of the columns are times: prefill (P, D types), then decode (D sizes,
    types). Energies, where they are asked for, come in the same order.
    """

    values: Array
    n_times: int

    @staticmethod
    def of(
        table: CostTable,
        penalty: Array,
        workload: Workload,
        sizes: tuple[tuple[int, ...], ...],
        with_energy: bool,
    ) -> _UnitCosts:
        """Collect the columns."""
        times, joules = [], []
        for phase, candidates in enumerate(sizes):
            for size in candidates:
                m = table.micro_batch_index(size)
                seconds = table.unit_time_s[phase, m]  # (D, U, Q)
                times.append(np.where(table.supported[:, None, :], seconds, np.inf))
                energy = table.unit_energy_j[phase, m]
                joules.append(np.where(table.supported[:, None, :], energy, np.inf))
        one = kv_cache_bytes(workload.batch, workload.total_context, 1.0)
        memory = table.unit_weight_bytes + one * table.unit_kv_bytes_per_token
        n_times = len(times) * len(table.devices)
        measured = np.stack(times + joules * with_energy).reshape(-1, *memory.shape)
        columns = np.concatenate([measured, memory[None], penalty[None]])
        return _UnitCosts(np.moveaxis(columns, 0, 2), n_times)


@dataclass(frozen=True)
class _Fold:
    """Choices of one layer: ``picks`` (K, units) precision indices, ``costs`` (K, C) sums over the units."""

    picks: NDArray[np.int64]
    costs: Array
    n_thinned: int


def _fold(
    table: CostTable,
    costs: _UnitCosts,
    layer: int,
    usable: NDArray[np.bool_],
    mixed_within_layer: bool,
    max_choices: int,
) -> _Fold:
    """Combine the units of a layer one after another, dropping beaten combinations on the way."""
    units = _units_of_layers(table)[layer]
    able = usable & table.supported.any(axis=0)
    picks, sums, n_thinned = np.zeros((1, 0), np.int64), np.zeros((1, costs.values.shape[2])), 0
    if not mixed_within_layer:
        qs = np.flatnonzero(able[units].all(axis=0))
        picks = np.repeat(qs[:, None], len(units), axis=1)
        sums = costs.values[units][:, qs].sum(axis=0)
        keep = _undominated(sums)
        picks, sums = picks[keep], sums[keep]
    else:
        for unit in units:
            qs = np.flatnonzero(able[unit])
            sums = (sums[:, None] + costs.values[unit, qs][None]).reshape(-1, sums.shape[1])
            picks = np.concatenate(
                [np.repeat(picks, len(qs), axis=0), np.tile(qs, len(picks))[:, None]], axis=1
            )
            # a combination must run as a whole on at least one device
            runs = np.isfinite(sums[:, : costs.n_times]).any(axis=1)
            picks, sums = picks[runs], sums[runs]
            keep = _undominated(sums)
            if len(keep) > max_choices:
                n_thinned += len(keep) - max_choices
                keep = keep[_spread(sums[keep], picks[keep], max_choices)]
            picks, sums = picks[keep], sums[keep]
    if len(picks) == 0:
        raise ConfigError(
            f"no device can run any allowed combination of precisions of layer {layer}",
            path="precisions",
        )
    return _Fold(picks, sums, n_thinned)


def _undominated(sums: Array) -> NDArray[np.int64]:
    """Return indices of rows (N, C) that no other beats or equals in every column (of equals the first)."""
    alive = np.lexsort(sums.T[::-1])
    kept: list[int] = []
    while len(alive):
        head = alive[0]
        kept.append(int(head))
        alive = alive[~(sums[alive] >= sums[head]).all(axis=1)]
    return np.sort(np.array(kept, dtype=np.int64))


def _spread(sums: Array, picks: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Choose n rows that win in most directions of weights; uniform rows and column minima stay first."""
    finite = np.where(np.isfinite(sums), sums, np.nan)
    low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
    scaled = np.where(np.isfinite(sums), (sums - low) / np.where(high > low, high - low, 1.0), 2.0)
    directions = np.random.default_rng(0).dirichlet(np.full(sums.shape[1], 0.3), N_DIRECTIONS)
    wins = np.bincount((scaled @ directions.T).argmin(axis=0), minlength=len(sums)).astype(np.float64)
    wins[scaled.argmin(axis=0)] += N_DIRECTIONS
    wins[(picks == picks[:, :1]).all(axis=1)] += N_DIRECTIONS
    return np.sort(np.argsort(-wins, kind="stable")[:n])


def _problem(
    table: CostTable,
    cluster: Cluster,
    workload: Workload,
    sizes: tuple[tuple[int, ...], ...],
    types: list[int],
    folded: list[_Fold],
    orders: tuple[tuple[int, ...], ...],
    allow_empty: bool,
) -> PipelineProblem:
    n_layers, n_choices = len(folded), max(len(fold.picks) for fold in folded)
    n_types, (prefill_sizes, decode_sizes) = len(table.devices), sizes
    n_p, n_d = len(prefill_sizes), len(decode_sizes)
    times = np.zeros((n_p + n_d, n_types, n_layers, n_choices))
    allowed = np.zeros((n_types, n_layers, n_choices), dtype=bool)
    memory, penalty = np.zeros((2, n_layers, n_choices))
    for layer, fold in enumerate(folded):
        k = len(fold.picks)
        seconds = fold.costs[:, : (n_p + n_d) * n_types].T.reshape(n_p + n_d, n_types, k)
        able = np.isfinite(seconds).all(axis=0)
        allowed[:, layer, :k] = able
        times[:, :, layer, :k] = np.where(able, seconds, 0.0)
        memory[layer, :k] = fold.costs[:, -2] + table.layer_fixed_bytes[layer]
        penalty[layer, :k] = fold.costs[:, -1]
    indices = [[table.micro_batch_index(size) for size in candidates] for candidates in sizes]
    for phase, (offset, chosen) in enumerate(((0, indices[0]), (n_p, indices[1]))):
        for i, m in enumerate(chosen):
            times[offset + i] += table.layer_time_s[phase, m][:, :, None]
    names = tuple(name for name, _ in cluster.devices)
    activations = np.maximum(
        table.activation_bytes[0, indices[0]][:, None], table.activation_bytes[1, indices[1]][None, :]
    )
    return PipelineProblem(
        devices=names,
        device_types=tuple(kind for _, kind in cluster.devices),
        orders=orders,
        prefill_micro_batches=prefill_sizes,
        decode_micro_batches=decode_sizes,
        prefill_s=times[:n_p][:, types],
        decode_s=times[n_p:][:, types],
        allowed=allowed[types],
        memory_bytes=memory,
        capacity_bytes=np.array([cluster.capacity_bytes(name) for name in names])
        - table.reserve_bytes[types],
        first_bytes=table.first_bytes,
        last_bytes=table.last_bytes,
        tied_bytes=table.tied_bytes,
        first_prefill_s=table.first_time_s[0, indices[0]][:, types],
        first_decode_s=table.first_time_s[1, indices[1]][:, types],
        last_prefill_s=table.last_time_s[0, indices[0]][:, types],
        last_decode_s=table.last_time_s[1, indices[1]][:, types],
        hop_prefill_s=_hops(cluster, names, table.hop_bytes[0, indices[0]]),
        hop_decode_s=_hops(cluster, names, table.hop_bytes[1, indices[1]]),
        penalty=penalty,
        batch=workload.batch,
        output_tokens=workload.output_tokens,
        price_usd_per_h=tuple(cluster.spec_of(name).price_usd_per_h for name in names),
        allow_empty=allow_empty,
        activation_bytes=np.repeat(activations[:, :, None], len(names), axis=2),
    )


def _energy_tables(
    table: CostTable,
    cluster: Cluster,
    sizes: tuple[tuple[int, ...], ...],
    types: list[int],
    folded: list[_Fold],
) -> EnergyTables:
    """Return joules in the shapes of the problem's times; static power that is unknown counts as 0."""
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
    names = tuple(name for name, _ in cluster.devices)
    hops = []
    for phase in (0, 1):
        moved = table.hop_bytes[phase, at[phase]]
        hop = np.zeros((len(moved), len(names), len(names)))
        for (a, first), (b, second) in itertools.permutations(enumerate(names), 2):
            hop[:, a, b] = link_energy_j(moved, cluster.link_between(first, second))
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


def _hops(cluster: Cluster, names: tuple[str, ...], message_bytes: Array) -> Array:
    """Return (M, N, N) seconds of a transfer between two devices; 0 from a device to itself."""
    hops = np.zeros((len(message_bytes), len(names), len(names)))
    for (a, first), (b, second) in itertools.permutations(enumerate(names), 2):
        hops[:, a, b] = p2p_time_s(message_bytes, cluster.link_between(first, second))
    return hops


def _units_of_layers(table: CostTable) -> list[list[int]]:
    of_layer: list[list[int]] = [[] for _ in range(len(table.layer_fixed_bytes))]
    for u, unit in enumerate(table.units):
        of_layer[unit.layer].append(u)
    return of_layer


def _device_kinds(table: CostTable, cluster: Cluster) -> list[str]:
    kinds = [kind for _, kind in cluster.devices]
    for kind in kinds:
        if kind not in table.devices:
            raise ConfigError(f"device type '{kind}' is not priced", value=kind, allowed=table.devices)
    return kinds


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
