"""Problems of the planner's benchmark: published ones, and a seeded one of realistic size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dse.partition.placement import NodeKind
from dse.partition.problem import Array, PipelineProblem

MIB = 2.0**20
# LLM-PQ, arXiv 2403.01136, evaluation on cluster 3: layer times recovered from its published optimiser log,
# seconds at micro-batch 8 for 4, 8 and 16 bits
CLUSTER3_PREFILL_S = {"T4": (11.1671932, 0.1730854, 0.2653805), "V100": (2.2794226, 0.0920233, 0.0874794)}
CLUSTER3_DECODE_S = {"T4": (0.0243237, 0.0082902, 0.0086481), "V100": (0.0060609, 0.0154637, 0.003242)}
CLUSTER3_LAYER_MIB = (830.0, 1124.0, 1712.0)
CLUSTER3_CAPACITY_MIB = {"T4": 11886.0, "V100": 28404.0}
CLUSTER3_FIRST_MIB = 1872.0
# Helix (ASPLOS 2025), LLaMA-30B on 6 T4 and 4 L4: tokens/s of a node with 1, 2, 3 ... layers
HELIX_T4: tuple[float, ...] = (1987.96933583407, 901.9376894944129, 539.0387352860497, 404.2621425031171)
HELIX_T4 += (285.3446689050558, 331.3431275280855, 231.0619074422882)
HELIX_L4: tuple[float, ...] = (2485.538093984443, 1145.043877646622, 763.5176797357898, 480.9921941878029)
HELIX_L4 += (384.9009498403431, 286.5874097546421, 245.7346965865289, 189.1084291640167)
HELIX_L4 += (168.1672159813898, 212.6372855671968, 193.4964086035588)
HELIX_LAYERS = 60


def llmpq_cluster3() -> PipelineProblem:
    """OPT-30B on three T4 and one V100, the V100 first: LLM-PQ's recorded problem."""
    types = ("V100", "T4", "T4", "T4")
    n_layers, nothing = 48, np.zeros((1, 4))

    def layers(table: Mapping[str, tuple[float, ...]]) -> Array:
        rows = np.array([table[kind] for kind in types])
        return np.repeat(rows[None, :, None, :], n_layers, axis=2)

    return PipelineProblem(
        devices=("v100/0", "t4/0", "t4/1", "t4/2"),
        device_types=types,
        orders=((0, 1, 2, 3),),
        prefill_micro_batches=(8,),
        decode_micro_batches=(8,),
        prefill_s=layers(CLUSTER3_PREFILL_S),
        decode_s=layers(CLUSTER3_DECODE_S),
        allowed=np.ones((4, n_layers, 3), dtype=bool),
        memory_bytes=np.tile(CLUSTER3_LAYER_MIB, (n_layers, 1)) * MIB,
        capacity_bytes=np.array([CLUSTER3_CAPACITY_MIB[kind] for kind in types]) * MIB,
        first_bytes=CLUSTER3_FIRST_MIB * MIB,
        last_bytes=0.0,
        tied_bytes=0.0,
        first_prefill_s=nothing,
        first_decode_s=nothing,
        last_prefill_s=nothing,
        last_decode_s=nothing,
        hop_prefill_s=np.zeros((1, 4, 4)),
        hop_decode_s=np.zeros((1, 4, 4)),
        penalty=np.zeros((n_layers, 3)),
        batch=32,
        output_tokens=100,
        allow_empty=False,
    )


# measured layer times of the same cluster, published with LLM-PQ: ms, micro-batch 2, 4, 8; 3, 4, 8, 16 bits
MEASURED_PREFILL_MS: dict[str, tuple[tuple[float, ...], ...]] = {
    "T4": (
        (2226.458931, 2844.448304, 40.5836165, 67.00835228),
        (4468.593407, 5654.017258, 81.82716966, 124.6872902),
        (8890.639544, 11203.58102, 173.6923337, 262.5949144),
    ),
    "V100": (
        (413.0125761, 555.6130171, 21.85966969, 16.05703831),
        (829.2733431, 1112.234402, 41.45514965, 31.77056313),
        (1663.913631, 2237.720752, 85.11660099, 75.61903),
    ),
}
MEASURED_DECODE_MS = {  # micro-batch 8
    "T4": (18.77187192, 23.80271256, 7.886072993, 7.772779465),
    "V100": (4.653978348, 5.690550804, 8.077287674, 3.182959557),
}
MEASURED_LAYER_MIB = (757.0, *CLUSTER3_LAYER_MIB)
MEASURED_FIRST_MIB = {2: 1403.0, 4: 1403.0, 8: 1872.0}  # at 8 the prefill's activations exceed the decode's


def llmpq_measured(size: int) -> PipelineProblem:
    """The same cluster with its measured layer times, for a prefill micro-batch of 2, 4 or 8."""
    base = llmpq_cluster3()
    types, n_layers = base.device_types, len(base.memory_bytes)
    row = (2, 4, 8).index(size)

    def layers(table: Mapping[str, tuple[float, ...]]) -> Array:
        rows = np.array([table[kind] for kind in types]) / 1e3
        return np.repeat(rows[None, :, None, :], n_layers, axis=2)

    return replace(
        base,
        prefill_micro_batches=(size,),
        prefill_s=layers({kind: rows[row] for kind, rows in MEASURED_PREFILL_MS.items()}),
        decode_s=layers(MEASURED_DECODE_MS),
        allowed=np.ones((4, n_layers, 4), dtype=bool),
        memory_bytes=np.tile(MEASURED_LAYER_MIB, (n_layers, 1)) * MIB,
        first_bytes=MEASURED_FIRST_MIB[size] * MIB,
        penalty=np.zeros((n_layers, 4)),
    )


def allocation(n_units: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Return (U, 8) penalties and sizes in bytes of a seeded allocation, sizes of three kinds of linears."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.25, 3.25, 4.25, 5.25, 6.25, 8.25, 9.0, 16.0])
    weights = rng.choice([4096 * 4096, 4096 * 14336, 1024 * 4096], n_units).astype(np.float64)
    lost = 4.0 ** (2 - bits) * (1 + 0.2 * rng.random((n_units, len(bits))))
    return rng.lognormal(0, 1, (n_units, 1)) * lost, weights[:, None] * bits / 8


def helix_nodes() -> tuple[NodeKind, ...]:
    """The published placement instance, for ``HELIX_LAYERS`` layers."""
    return tuple(
        NodeKind(name, count, dict(enumerate(rates, start=1)))
        for name, count, rates in (("T4", 6, HELIX_T4), ("L4", 4, HELIX_L4))
    )


def seeded(
    n_layers: int = 64,
    counts: tuple[int, ...] = (3, 3, 2),
    n_choices: int = 4,
    seed: int = 0,
    *,
    sizes: tuple[int, ...] = (4,),
    all_orders: bool = False,
    batch: int = 32,
) -> PipelineProblem:
    """Equal layers with distinct sensitivities on devices of unlike types: roofline times, round numbers.

    ``sizes``: micro-batches of both phases; ``all_orders``: every order of the types instead of one.
    """
    rng = np.random.default_rng(seed)
    n_types, prompt, tokens = len(counts), 512, 100
    size = np.array(sizes, dtype=np.float64)[:, None, None]
    types = np.repeat(np.arange(n_types), counts)
    bits = np.linspace(3.25, 16.0, n_choices)
    parameters, hidden = 7e8, 8192
    bandwidth, rate = np.linspace(3e11, 1.5e12, n_types), np.linspace(6e13, 2.5e14, n_types)
    read_s = parameters * bits / 8 / bandwidth[:, None]
    slower = 1 + np.linspace(0.6, 0, n_choices) * rng.random((n_types, n_choices))
    faster = np.where(bits <= 9, 0.7 + 0.6 * rng.random((n_types, n_choices)), 1.0)
    prefill = 2 * parameters * prompt * size / rate[:, None] * faster + read_s
    decode = read_s * slower + 2 * parameters * size / rate[:, None] + 2e-5
    memory = parameters * bits / 8 + 4 * hidden * (prompt + tokens) * batch * 0.25
    capacity = np.linspace(15e9, 40e9, n_types)[types]
    capacity *= 1.25 * n_layers * memory[n_choices // 2] / capacity.sum()
    lost = np.where(bits == 16, 0.0, 4.0 ** (3 - bits))
    penalty = rng.lognormal(0, 1, (n_layers, 1)) * lost * (1 + 0.2 * rng.random((n_layers, n_choices)))
    n = len(types)
    message_s = hidden * 2 * size / 1.2e10 * np.ones((1, n, n))
    orders = {tuple(range(n)): tuple(range(n))}
    if all_orders:
        orders = {tuple(types[i] for i in order): order for order in itertools.permutations(range(n))}

    def layers(table: Array) -> Array:
        return np.repeat(table[:, types, None, :], n_layers, axis=2)

    def ends(seconds: float) -> Array:
        return np.full((len(sizes), n), seconds)

    return PipelineProblem(
        devices=tuple(f"type{kind}/{i}" for i, kind in enumerate(types)),
        device_types=tuple(f"type{kind}" for kind in types),
        orders=tuple(orders.values()),
        prefill_micro_batches=sizes,
        decode_micro_batches=sizes,
        prefill_s=layers(prefill),
        decode_s=layers(decode),
        allowed=np.ones((n, n_layers, n_choices), dtype=bool),
        memory_bytes=np.tile(memory, (n_layers, 1)),
        capacity_bytes=capacity,
        first_bytes=1e9,
        last_bytes=1e9,
        tied_bytes=0.0,
        first_prefill_s=ends(1e-4),
        first_decode_s=ends(1e-4),
        last_prefill_s=ends(1e-3),
        last_decode_s=ends(1e-3),
        hop_prefill_s=message_s * prompt,
        hop_decode_s=message_s + 1e-5,
        penalty=penalty,
        batch=batch,
        output_tokens=tokens,
        allow_empty=False,
    )
