"""The replicas that the machines of a catalogue could hold: layouts times precisions, and why not others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dse.capacity.analytic import Room
from dse.capacity.replica import Batching, Replica, replica_from_plan
from dse.capacity.step_times import TabulatedSteps
from dse.errors import DseError
from dse.evaluate.kernel_path import supports
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit, units_of
from dse.plan import Assignment, Plan, Stage
from dse.search.knapsack import allocate
from dse.sensitivity.noise import noise_table
from dse.sensitivity.table import SensitivityTable
from hardware_specs.catalogue import Catalogue, NodeOffer
from hardware_specs.spec import RuntimeProfile

MAX_PENALTY_SLACK = 1e-9
REFERENCE_BITS = 16
UNLIMITED_TOKENS = 1e12  # of a model without a cache
DEFAULT_BATCHING = Batching()


@dataclass(frozen=True)
class QualityClaim:
    """What is known of a plan's quality against full precision.

    Attributes:
        perplexity_frac: relative growth of the perplexity, None where unknown.
        provenance: "measured", "predicted" or "unknown"; reason: why it is unknown, or where it is from.
    """

    perplexity_frac: float | None
    provenance: str
    reason: str


@dataclass(frozen=True)
class Bits:
    """An assignment that options may use: its name, the precisions it holds, and its quality."""

    name: str
    assignment: Assignment
    precisions: tuple[Precision, ...]
    quality: QualityClaim


@dataclass(frozen=True, eq=False)
class ReplicaOption:
    """A replica on devices of one machine (or several whole ones)."""

    name: str
    offer: int
    n_devices: int
    bits: Bits
    replica: Replica

    @property
    def steps(self) -> TabulatedSteps:
        """Costs of iterations of any size."""
        assert isinstance(self.replica.steps, TabulatedSteps)
        return self.replica.steps

    @property
    def room(self) -> Room:
        """What its cache and engine hold at once."""
        tokens = self.replica.kv_tokens
        return Room(
            UNLIMITED_TOKENS if tokens is None else float(tokens), self.replica.batching.max_sequences
        )

    @property
    def layout(self) -> str:
        """Tensor and pipeline parallelism in words."""
        stages = self.replica.plan.stages if self.replica.plan is not None else ()
        return f"TP {self.n_devices // max(1, len(stages))} x PP {len(stages)}"


@dataclass(frozen=True)
class Absent:
    """An option that does not exist, and why."""

    name: str
    reason: str


def uniform_bits(
    units: Sequence[Unit],
    precisions: Sequence[Precision],
    sensitivity: SensitivityTable | None = None,
) -> list[Bits]:
    """Return one assignment per precision."""
    names = tuple(unit.name for unit in units)
    return [
        Bits(
            precision.name,
            Assignment.uniform(names, precision),
            (precision,),
            quality_of([precision] * len(units), sensitivity),
        )
        for precision in precisions
    ]


def mixed_bits(
    graph: OperatorGraph,
    units: Sequence[Unit],
    low: Precision,
    high: Precision,
    budget_frac: float = 0.5,
    sensitivity: SensitivityTable | None = None,
) -> Bits:
    """Return the smallest assignment of two precisions whose penalty is within a budget, exactly.

    Args:
        graph, units: the model.
        low, high: few and many bits.
        budget_frac: where the budget lies between the uniform plans of ``high`` (0) and ``low`` (1).
        sensitivity: penalties; None takes the noise of a uniform quantizer, which needs no weights.
    """
    pair = (high, low)
    table = noise_table(graph, tuple(units), pair) if sensitivity is None else sensitivity
    penalty = table.penalty[:, [table.precisions.index(precision) for precision in pair]]
    sizes = np.array([[_bits_of(graph, unit, precision) for precision in pair] for unit in units])
    first, last = penalty[:, 0].sum(), penalty[:, 1].sum()
    budget = float(first + budget_frac * (last - first)) * (1 + MAX_PENALTY_SLACK)
    found = allocate(sizes, penalty, max(budget, float(penalty.min(axis=1).sum())))
    chosen = [pair[k] for k in found.choices]
    name = f"mixed {low.weights.name}+{high.weights.name}"
    assignment = Assignment(tuple((unit.name, p) for unit, p in zip(units, chosen, strict=True)))
    return Bits(name, assignment, pair, quality_of(chosen, sensitivity))


def _bits_of(graph: OperatorGraph, unit: Unit, precision: Precision) -> float:
    ops = {op.name: op for op in graph.block_of_layer[unit.layer].ops}
    return sum(ops[name].parameters for name in unit.ops) * float(precision.weights.bits)


def quality_of(chosen: Sequence[Precision], sensitivity: SensitivityTable | None) -> QualityClaim:
    """Return the predicted growth of the perplexity, where sensitivities in nats of KL are known.

    The loss of the quantized model exceeds that of the reference by about the KL divergence to it, and the
    perplexity is the exponential of the loss; KL is taken as additive over the units.
    """
    if all(min(p.weights.bits, p.activations.bits, p.kv.bits) >= REFERENCE_BITS for p in chosen):
        return QualityClaim(0.0, "predicted", "16 bits are the reference")
    if sensitivity is None:
        return QualityClaim(None, "unknown", "no sensitivities: an architecture without weights")
    if sensitivity.unit != "nats":
        return QualityClaim(None, "unknown", f"{sensitivity.metric} does not predict perplexity")
    columns = [sensitivity.precisions.index(precision) for precision in chosen]
    kl_nats = float(sensitivity.penalty[np.arange(len(columns)), columns].sum())
    return QualityClaim(float(np.expm1(kl_nats)), "predicted", f"additive {sensitivity.metric}")


def replica_options(
    graph: OperatorGraph,
    catalogue: Catalogue,
    bits: Sequence[Bits],
    *,
    max_context_tokens: int,
    runtime: RuntimeProfile | None = None,
    batching: Batching = DEFAULT_BATCHING,
    granularity: str = "block",
    max_perplexity_frac: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ReplicaOption], list[Absent]]:
    """Return every option, and what is absent for a reason.

    Args:
        graph: the model.
        catalogue: the machines.
        bits: assignments to offer.
        max_context_tokens: longest prompt and output.
        runtime: fused launches, host time, and which formats load.
        batching: of the engines.
        granularity: of the units of the assignments.
        max_perplexity_frac: options that lose more, or whose loss is unknown, are absent.
        progress: called with (done, all).
    """
    units = units_of(graph, granularity, () if runtime is None else runtime.ties)
    found: list[ReplicaOption] = []
    absent: list[Absent] = []
    work = [(index, offer, entry) for index, offer in enumerate(catalogue.nodes) for entry in bits]
    for done, (index, offer, entry) in enumerate(work):
        reason = _refused(offer, entry, runtime, max_perplexity_frac)
        if reason is not None:
            absent.append(Absent(f"{offer.name} {entry.name}", reason))
        else:
            options, reason = _layouts(
                graph, catalogue, index, entry, units, max_context_tokens, runtime, batching
            )
            found += options
            if not options:
                absent.append(Absent(f"{offer.name} {entry.name}", reason))
        if progress is not None:
            progress(done + 1, len(work))
    return found, absent


def _refused(
    offer: NodeOffer, entry: Bits, runtime: RuntimeProfile | None, max_perplexity_frac: float | None
) -> str | None:
    for precision in entry.precisions:
        reason = supports(offer.spec, precision)
        if reason is not None:
            return f"{precision.name}: {reason}"
        names = precision.to_json()
        for tensor in ("weights", "activations", "kv"):
            if runtime is not None and not runtime.allows(tensor, names[tensor]):
                return f"{runtime.name} does not load {tensor} in {names[tensor]}"
    if max_perplexity_frac is None:
        return None
    if entry.quality.perplexity_frac is None:
        return (
            f"its quality is unknown ({entry.quality.reason}), so +{max_perplexity_frac:.2%} is not assured"
        )
    if entry.quality.perplexity_frac > max_perplexity_frac:
        lost = entry.quality.perplexity_frac
        return f"perplexity +{lost:.2%} ({entry.quality.provenance}) is above +{max_perplexity_frac:.2%}"
    return None


def _layouts(
    graph: OperatorGraph,
    catalogue: Catalogue,
    index: int,
    entry: Bits,
    units: Sequence[Unit],
    max_context_tokens: int,
    runtime: RuntimeProfile | None,
    batching: Batching,
) -> tuple[list[ReplicaOption], str]:
    offer = catalogue.nodes[index]
    found: list[ReplicaOption] = []
    reason = "no layout"
    for n_devices, degree in _sizes(graph, offer, with_two=catalogue.network is not None):
        if n_devices > offer.n_devices and found:
            break  # more machines only where one does not hold the model
        cluster = catalogue.cluster(offer, -(-n_devices // offer.n_devices))
        names = [name for name, _ in cluster.devices][:n_devices]
        plan = Plan(
            model=graph.model,
            cluster=cluster.name,
            assignment=entry.assignment,
            stages=_stages(names, degree, graph.n_layers),
            prefill_micro_batch=1,
            decode_micro_batch=1,
        )
        name = f"{offer.name} TP{degree}xPP{n_devices // degree} {entry.name}"
        try:
            replica = replica_from_plan(
                plan,
                graph,
                cluster,
                max_context_tokens=max_context_tokens,
                batching=batching,
                runtime=runtime,
                units=units,
                name=name,
            )
        except DseError as error:
            reason = str(error)
            continue
        found.append(ReplicaOption(name, index, n_devices, entry, replica))
    return found, reason


def _sizes(graph: OperatorGraph, offer: NodeOffer, *, with_two: bool) -> Iterator[tuple[int, int]]:
    """Yield (devices, tensor-parallel degree): powers of two within a machine, then two whole machines."""
    heads = [op.attention.n_heads for block in graph.blocks for op in block.ops if op.attention is not None]
    n = 1
    while n <= offer.n_devices:
        for degree in (2**k for k in range(n.bit_length())):
            if n // degree <= min(4, graph.n_layers) and all(h % degree == 0 for h in heads):
                yield n, degree
        n *= 2
    if with_two:
        degree = 2 ** (offer.n_devices.bit_length() - 1)
        if degree == offer.n_devices and all(h % degree == 0 for h in heads):
            yield 2 * offer.n_devices, degree


def _stages(names: Sequence[str], degree: int, n_layers: int) -> tuple[Stage, ...]:
    """Cut the layers evenly over groups of ``degree`` devices."""
    n = len(names) // degree
    cuts = [round(s * n_layers / n) for s in range(n + 1)]
    return tuple(
        Stage(tuple(names[s * degree : (s + 1) * degree]), (cuts[s], cuts[s + 1]), degree) for s in range(n)
    )
