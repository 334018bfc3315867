"""How long pricing takes: one operator, and a whole model in all precisions, beside the same one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cost_models.pricing import price
from dse.calibrate.rows import matmul_rows
from dse.evaluate.build import CostModel, build_cost_table
from dse.evaluate.kernel_path import supports
from dse.evaluate.lowering import lower
from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import units_of
from dse.graph.workload import Workload
from hardware_specs.spec import HardwareSpec

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
N_PRODUCTS = 4096
REPEATS = 40


@dataclass(frozen=True)
class Speed:
    """Shortest times of several runs.

    Attributes:
        operator_s: one matrix product, priced together with 4096 others.
        table_s: a whole cost table of ``n_points`` workload points (micro-batch sizes) at once.
        point_s: of it, one point: prefill and decode of every layer in every precision.
        alone_s: one point asked for alone, of a model whose operators and kernels are looked up already;
            first_s: with looking them up.
        loop_s: one point with each layer, precision and phase priced on its own.
    """

    model: str
    device: str
    n_layers: int
    n_precisions: int
    n_points: int
    operator_s: float
    table_s: float
    point_s: float
    alone_s: float
    first_s: float
    loop_s: float

    @property
    def ratio(self) -> float:
        """How many times faster than the loop."""
        return self.loop_s / self.point_s

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {**asdict(self), "ratio": self.ratio}


def shortest_s(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the shortest of several runs in seconds."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_speed(graph: OperatorGraph, spec: HardwareSpec, names: Sequence[str]) -> Speed:
    """Measure pricing of a model on one device in the precisions that it supports."""
    precisions = [entry for entry in map(parse_precision, names) if supports(spec, entry) is None]
    workload = Workload(max(MICRO_BATCHES), 512, 128)
    units = units_of(graph, "block")
    specs = {spec.name: spec}

    def table() -> object:
        return build_cost_table(graph, units, precisions, specs, workload, MICRO_BATCHES)

    model = CostModel(graph, units, tuple(precisions), specs)
    model.table(workload, (1,))
    table_s = shortest_s(table)
    return Speed(
        graph.model,
        spec.name,
        graph.n_layers,
        len(precisions),
        len(MICRO_BATCHES),
        _operator_s(spec),
        table_s,
        table_s / len(MICRO_BATCHES),
        shortest_s(lambda: model.table(workload, (1,))),
        shortest_s(lambda: build_cost_table(graph, units, precisions, specs, workload, (1,))),
        shortest_s(lambda: _one_by_one(graph, spec, precisions, workload), 2),
    )


def _operator_s(spec: HardwareSpec) -> float:
    generator = np.random.default_rng(0)
    m, n, k = 2.0 ** generator.integers(0, 14, (3, N_PRODUCTS))
    work = matmul_rows("speed", spec, parse_precision("bf16"), m, n, k, np.ones(N_PRODUCTS)).work
    return shortest_s(lambda: price(work, spec)) / N_PRODUCTS


def _one_by_one(
    graph: OperatorGraph, spec: HardwareSpec, precisions: Sequence[Precision], workload: Workload
) -> float:
    """Price every layer, precision and phase of one micro-batch on its own."""
    total = 0.0
    for block in graph.block_of_layer:
        for op in block.ops:
            for precision in precisions:
                prompt = float(workload.prompt_tokens)
                total += float(price(lower(op, precision, spec, "prefill", 1.0, prompt, prompt), spec).time_s)
                total += float(price(lower(op, precision, spec, "decode", 1.0, 1.0, prompt), spec).time_s)
    return total
