"""Looking up a plan's stages in a cost table: one micro-batch on each stage, and the hops between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cost_models.collectives import p2p_time_s
from cost_models.energy import link_energy_j
from dse.errors import ConfigError, UnsupportedOnDevice
from dse.evaluate.cost_table import PHASES, Array, CostTable
from dse.evaluate.tensor_parallel import group_name
from dse.plan import Plan, Stage
from hardware_specs.spec import Cluster

PREFILL, DECODE = range(len(PHASES))
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class StageCosts:
    """What the stages of a plan cost, one micro-batch each.

    Attributes:
        time_s, energy_j: (P, S), energy without static power.
        weight_bytes, kv_bytes_per_token: (S,) of the layers, without embedding and head; of a group of
            devices together, with the copies of the cache.
        span_s: (2, P, S) the times that nine of ten kernels exceed and stay below, if all err alike.
        hop_s, hop_j: (P, S - 1) transfers between the stages.
    """

    time_s: Array
    energy_j: Array
    span_s: Array
    weight_bytes: Array
    kv_bytes_per_token: Array
    hop_s: Array
    hop_j: Array


def stage_costs(plan: Plan, table: CostTable, cluster: Cluster) -> StageCosts:
    """Look up and sum what the stages of a plan cost.

    Raises:
        ConfigError, UnsupportedOnDevice: as for ``predict``.
    """
    choice = _choices(plan, table)
    _check_stages(plan, table)
    micro = micro_indices(plan, table)
    layer_of_unit = np.array([unit.layer for unit in table.units])
    n_stages, last = len(plan.stages), len(plan.stages) - 1
    every = np.arange(len(table.units))
    costs = np.zeros((4, 2, n_stages))
    for s, stage in enumerate(plan.stages):
        kind = stage_type(cluster, stage)
        if kind not in table.devices:
            raise ConfigError(f"device type '{kind}' is not priced", value=kind, allowed=table.devices)
        d = table.devices.index(kind)
        inside = every[_in_stage(layer_of_unit, stage)]
        _check_supported(table, d, choice[inside])
        layers = slice(*stage.layers)
        for p, m in enumerate(micro):
            for out, (unit, layer, first, end) in zip(costs, _quantities(table), strict=True):
                out[p, s] = unit[p, m, d, inside, choice[inside]].sum() + layer[p, m, d, layers].sum()
                out[p, s] += first[p, m, d] * (s == 0) + end[p, m, d] * (s == last)
    in_stage = np.stack([_in_stage(layer_of_unit, stage) for stage in plan.stages]).astype(np.float64)
    weights = in_stage @ table.unit_weight_bytes[every, choice]
    weights += [table.layer_fixed_bytes[slice(*stage.layers)].sum() for stage in plan.stages]
    types = [table.devices.index(stage_type(cluster, stage)) for stage in plan.stages]
    kv = (in_stage * table.kv_copies[types]) @ table.unit_kv_bytes_per_token[every, choice]
    hop_s, hop_j = _hops(plan.stages, table, cluster, micro)
    return StageCosts(costs[0], costs[1], costs[2:], weights, kv, hop_s, hop_j)


def _quantities(table: CostTable) -> tuple[tuple[Array, Array, Array, Array], ...]:
    """(unit, layer, first, last arrays) of time, energy, and the low and the high end of time."""
    low, high = (
        (table.unit_span_s[end], table.layer_span_s[end], table.first_span_s[end], table.last_span_s[end])
        for end in (0, 1)
    )
    return (
        (table.unit_time_s, table.layer_time_s, table.first_time_s, table.last_time_s),
        (table.unit_energy_j, table.layer_energy_j, table.first_energy_j, table.last_energy_j),
        low,
        high,
    )


def _choices(plan: Plan, table: CostTable) -> Indices:
    """Return (U,) the index of each unit's precision."""
    column = {precision: q for q, precision in enumerate(table.precisions)}
    choice = np.zeros(len(table.units), dtype=np.intp)
    for u, unit in enumerate(table.units):
        precision = plan.assignment.by_unit.get(unit.name)
        if precision is None:
            raise ConfigError(f"unit '{unit.name}' has no precision", path="assignment")
        if precision not in column:
            raise ConfigError(
                f"precision '{precision.name}' is not priced",
                path=f"assignment.{unit.name}",
                value=precision.name,
                allowed=[entry.name for entry in table.precisions],
            )
        choice[u] = column[precision]
    return choice


def _check_stages(plan: Plan, table: CostTable) -> None:
    """Check what a plan alone cannot: sizes of groups, shared devices, all layers."""
    used: set[str] = set()
    for index, stage in enumerate(plan.stages):
        if stage.tensor_parallel != len(stage.devices):
            raise ConfigError(
                f"tensor parallelism of {stage.tensor_parallel} needs as many devices",
                path=f"stages[{index}].tensor_parallel",
                value=stage.tensor_parallel,
            )
        for device in stage.devices:
            if device in used:
                raise ConfigError(f"device '{device}' is in two stages", path=f"stages[{index}]")
            used.add(device)
    n_layers, end = len(table.layer_fixed_bytes), plan.stages[-1].layers[1] if plan.stages else 0
    if end != n_layers:
        raise ConfigError(f"stages hold {end} layers, but the model has {n_layers}", path="stages")


def _check_supported(table: CostTable, d: int, choice: Indices) -> None:
    """Check that a device runs all precisions of its units."""
    for q in np.unique(choice):
        if not table.supported[d, q]:
            device, precision = table.devices[d], table.precisions[q].name
            known = [p.name for p, able in zip(table.precisions, table.supported[d], strict=True) if able]
            reason = table.reasons.get((device, precision), "")
            raise UnsupportedOnDevice(device, precision, known=known, reason=f"{precision}: {reason}")


def micro_indices(plan: Plan, table: CostTable) -> tuple[int, int]:
    """Return where the plan's prefill and decode micro-batch sizes are on the table's axis.

    Raises:
        ConfigError: one is not priced.
    """
    found: list[int] = []
    for name, size in (
        ("prefill_micro_batch", plan.prefill_micro_batch),
        ("decode_micro_batch", plan.decode_micro_batch),
    ):
        if size not in table.micro_batches:
            raise ConfigError(
                f"micro-batch {size} is not priced",
                path=name,
                value=size,
                allowed=[str(entry) for entry in table.micro_batches],
            )
        found.append(table.micro_batch_index(size))
    return found[PREFILL], found[DECODE]


def stage_type(cluster: Cluster, stage: Stage) -> str:
    """Return what a stage runs on, as the cost table names it: a type of device, or a group of one type.

    Raises:
        ConfigError: a device that the cluster lacks, or a group of unlike devices.
    """
    types = {device_type(cluster, device) for device in stage.devices}
    if len(types) > 1:
        raise ConfigError(
            "devices that share layers must be of one type", path="stages.devices", value=sorted(types)
        )
    nodes = {device.partition("/")[0] for device in stage.devices}
    return group_name(types.pop(), stage.tensor_parallel, len(nodes))


def device_type(cluster: Cluster, device: str) -> str:
    """Return the type of a device of the cluster."""
    types = dict(cluster.devices)
    if device not in types:
        raise ConfigError(f"cluster '{cluster.name}' has no device '{device}'", value=device, allowed=types)
    return types[device]


def _in_stage(layer_of_unit: Indices, stage: Stage) -> NDArray[np.bool_]:
    return (layer_of_unit >= stage.layers[0]) & (layer_of_unit < stage.layers[1])


def _hops(
    stages: Sequence[Stage], table: CostTable, cluster: Cluster, micro: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return (P, S - 1) seconds and joules of the transfers between stages."""
    n_hops = len(stages) - 1
    time_s, energy_j = np.zeros((2, n_hops)), np.zeros((2, n_hops))
    for h, (before, after) in enumerate(pairwise(stages)):
        link = cluster.link_between(before.devices[0], after.devices[0])
        moved = np.array([table.hop_bytes[p, m] for p, m in enumerate(micro)])
        time_s[:, h] = p2p_time_s(moved, link)
        energy_j[:, h] = link_energy_j(moved, link)
    return time_s, energy_j
