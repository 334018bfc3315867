"""What layouts are priced from: one model, its choices and their penalties, on any part of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dse.evaluate.build import build_cost_table
from dse.evaluate.cost_table import CostTable
from dse.evaluate.tensor_parallel import degrees_for
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.graph.workload import Workload
from dse.partition.from_table import TableProblem, divisors, problem_from_table
from dse.partition.groups import DeviceGroup, tensor_groups
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import Cluster, RuntimeProfile


@dataclass(frozen=True)
class ModelInputs:
    """A model with the choices that a search may take.

    Attributes:
        usable: (U, Q) choices to consider beside what devices support; None for all.
    """

    graph: OperatorGraph
    units: tuple[Unit, ...]
    precisions: tuple[Precision, ...]
    sensitivity: SensitivityTable
    runtime: RuntimeProfile
    usable: NDArray[np.bool_] | None = None

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.graph.n_layers

    @cached_property
    def kv_groups(self) -> tuple[NDArray[np.bool_], ...]:
        """The usable choices by KV format, all of them in one entry where layers may differ."""
        usable = self._usable
        if not self.runtime.kv_is_global:
            return (usable,)
        return self.by_kv_format

    @cached_property
    def by_kv_format(self) -> tuple[NDArray[np.bool_], ...]:
        """The usable choices by KV format; formats that some unit lacks are left out."""
        formats = [precision.kv.name for precision in self.precisions]
        groups = [self._usable & (np.array(formats) == name)[None, :] for name in dict.fromkeys(formats)]
        return tuple(group for group in groups if group.any(axis=1).all())

    @property
    def _usable(self) -> NDArray[np.bool_]:
        shape = (len(self.units), len(self.precisions))
        return np.ones(shape, dtype=bool) if self.usable is None else self.usable

    def degrees(self, n_devices: int) -> tuple[int, ...]:
        """Return the degrees of tensor parallelism that the model allows in a node of so many devices."""
        return degrees_for(self.graph, n_devices)

    def table(
        self, cluster: Cluster, workload: Workload, degrees: Sequence[int] = (1,), n_chunks: int = 1
    ) -> CostTable:
        """Price every choice on the devices and groups of a cluster."""
        return build_cost_table(
            self.graph,
            self.units,
            self.precisions,
            cluster.specs,
            workload,
            divisors(workload.batch),
            tensor_groups(cluster, degrees),
            self.runtime,
            n_chunks,
        )

    def problem(
        self,
        table: CostTable,
        cluster: Cluster,
        workload: Workload,
        groups: Sequence[DeviceGroup],
        sequences: Sequence[tuple[int, ...]],
        usable: NDArray[np.bool_] | None = None,
        *,
        with_energy: bool = False,
    ) -> TableProblem:
        """Return the planner's problem over sequences of groups."""
        return problem_from_table(
            table,
            self.sensitivity,
            cluster,
            workload,
            usable=self._usable if usable is None else usable,
            mixed_within_layer=self.runtime.mixed_within_layer,
            groups=groups,
            sequences=sequences,
            with_energy=with_energy,
        )


def part_of(cluster: Cluster, counts: dict[str, int]) -> Cluster:
    """Return a cluster of some devices of another one: so many of each node."""
    nodes = tuple(
        replace(node, n_devices=counts[node.name]) for node in cluster.nodes if counts.get(node.name, 0) > 0
    )
    used = {node.device for node in nodes}
    specs = {name: spec for name, spec in cluster.specs.items() if name in used}
    return replace(cluster, nodes=nodes, specs=specs)
