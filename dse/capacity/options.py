"""The replicas that the machines of a catalogue could hold: layouts times precisions, and why not others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dse.capacity.analytic import Room
from dse.capacity.replica import Batching, Replica, replica_from_plan
from dse.capacity.step_times import TabulatedSteps
from dse.errors import DseError
from dse.evaluate.kernel_path import supports
from dse.formats.precision import Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.plan import Assignment, Plan, Stage
from dse.sensitivity.table import SensitivityTable
from hardware_specs.catalogue import Catalogue, NodeOffer
from hardware_specs.spec import Cluster, RuntimeProfile

TENSORS: tuple[Literal["weights", "activations", "kv"], ...] = ("weights", "activations", "kv")
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
    """A replica on devices of one machine (or several whole ones).

    Attributes:
        offer, n_devices: the machine of the catalogue, and how many of its devices a replica takes.
        also: (offer, devices) of machines of other types that it spans.
    """

    name: str
    offer: int
    n_devices: int
    bits: Bits
    replica: Replica
    also: tuple[tuple[int, int], ...] = ()

    @property
    def devices(self) -> tuple[tuple[int, int], ...]:
        """(offer, devices) of every type of machine that a replica takes devices of."""
        return ((self.offer, self.n_devices), *self.also)

    @property
    def offers(self) -> tuple[int, ...]:
        """The types of machines that it spans."""
        return tuple(offer for offer, _ in self.devices)

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
        degrees = [stage.tensor_parallel for stage in stages]
        if len(set(degrees)) == 1:
            return f"TP {degrees[0]} x PP {len(stages)}"
        return f"TP {', '.join(str(degree) for degree in degrees)}"


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
    for precision in chosen:
        if precision not in sensitivity.precisions:
            return QualityClaim(None, "unknown", f"no sensitivities for {precision.name}")
    columns = [sensitivity.precisions.index(precision) for precision in chosen]
    kl_nats = float(sensitivity.penalty[np.arange(len(columns)), columns].sum())
    return QualityClaim(float(np.expm1(kl_nats)), "predicted", f"additive {sensitivity.metric}")


@dataclass(frozen=True, eq=False)
class Building:
    """What replicas are built from.

    Attributes:
        graph, units: the model and the parts that get one precision each.
        catalogue: the machines.
        runtime: fused launches, host time, and which formats load.
        max_context_tokens: longest prompt and output.
        batching: of the engines.
        max_perplexity_frac: options that lose more, or whose loss is unknown, are absent; None takes all.
    """

    graph: OperatorGraph
    units: tuple[Unit, ...]
    catalogue: Catalogue
    runtime: RuntimeProfile
    max_context_tokens: int
    batching: Batching = DEFAULT_BATCHING
    max_perplexity_frac: float | None = None

    def option(
        self,
        offer: int,
        cluster: Cluster,
        plan: Plan,
        bits: Bits,
        name: str,
        also: tuple[tuple[int, int], ...] = (),
    ) -> ReplicaOption:
        """Return the option of a plan on a cluster of an offer's machines, and ``also`` devices of others.

        Raises:
            DseError: it does not fit, or a precision does not run there.
        """
        replica = replica_from_plan(
            plan,
            self.graph,
            cluster,
            max_context_tokens=self.max_context_tokens,
            batching=self.batching,
            runtime=self.runtime,
            units=self.units,
            name=name,
        )
        n_devices = len(replica.devices) - sum(n for _, n in also)
        return ReplicaOption(name, offer, n_devices, bits, replica, also)

    def quality_refusal(self, bits: Bits) -> str | None:
        """Return why the quality of an assignment is not good enough, None if it is or none is asked for."""
        most, claim = self.max_perplexity_frac, bits.quality
        if most is None:
            return None
        if claim.perplexity_frac is None:
            return f"its quality is unknown ({claim.reason}), so +{most:.2%} is not assured"
        if claim.perplexity_frac > most:
            return f"perplexity +{claim.perplexity_frac:.2%} ({claim.provenance}) is above +{most:.2%}"
        return None


def replica_options(
    building: Building, bits: Sequence[Bits], progress: Callable[[int, int], None] | None = None
) -> tuple[list[ReplicaOption], list[Absent]]:
    """Return every option of the assignments on every machine, and what is absent for a reason.

    Args:
        building: model, machines and engines.
        bits: assignments to offer.
        progress: called with (done, all).
    """
    found: list[ReplicaOption] = []
    absent: list[Absent] = []
    work = [(index, entry) for index in range(len(building.catalogue.nodes)) for entry in bits]
    for done, (index, entry) in enumerate(work):
        offer = building.catalogue.nodes[index]
        options: list[ReplicaOption] = []
        reason = refused(offer, entry.precisions, building.runtime) or building.quality_refusal(entry)
        if reason is None:
            options, reason = _layouts(building, index, entry)
        found += options
        if not options:
            absent.append(Absent(f"{offer.name} {entry.name}", reason))
        if progress is not None:
            progress(done + 1, len(work))
    return found, absent


def refused(offer: NodeOffer, precisions: Sequence[Precision], runtime: RuntimeProfile) -> str | None:
    """Return why a machine or the runtime does not take precisions, None if both do."""
    for precision in precisions:
        reason = supports(offer.spec, precision)
        if reason is not None:
            return f"{precision.name}: {reason}"
        names = precision.to_json()
        for tensor in TENSORS:
            if not runtime.allows(tensor, names[tensor]):
                return f"{runtime.name} does not load {tensor} in {names[tensor]}"
    return None


def _layouts(building: Building, index: int, entry: Bits) -> tuple[list[ReplicaOption], str]:
    offer, graph = building.catalogue.nodes[index], building.graph
    found: list[ReplicaOption] = []
    reason = "no layout"
    for n_devices, degree in _sizes(graph, offer, with_two=building.catalogue.network is not None):
        if n_devices > offer.n_devices and found:
            break  # more machines only where one does not hold the model
        cluster = building.catalogue.cluster(offer, -(-n_devices // offer.n_devices))
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
            found.append(building.option(index, cluster, plan, entry, name))
        except DseError as error:
            reason = str(error)
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
