"""A replica: devices that serve one copy of the model, as a simulator or an analytic estimate sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, get_args

from dse.capacity.step_times import StepTimes, TabulatedSteps
from dse.errors import ConfigError, DoesNotFitMemory
from dse.evaluate.footprint import activation_peak_elements
from dse.evaluate.lowering import SIXTEEN_BIT_BYTES
from dse.evaluate.stage_costs import stage_type
from dse.evaluate.step_costs import StagePricer, stage_model
from dse.evaluate.tensor_parallel import TensorGroup
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit, units_of
from dse.plan import Plan, Stage
from hardware_specs.spec import Cluster, RuntimeProfile

Role = Literal["both", "prefill", "decode"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Batching:
    """How an engine forms iterations.

    Attributes:
        max_sequences: running at once, over all micro-batches of a pipeline.
        batch_tokens: most tokens of an iteration that holds prompts.
        chunked: prompts are cut into chunks that fill up the decode iterations (Sarathi-Serve, arXiv
            2403.02310); otherwise waiting prompts go first, whole, in iterations of their own (Orca, vLLM).
        block_tokens: tokens of a block of the paged KV cache (vLLM, arXiv 2309.06180).
    """

    max_sequences: int = 256
    batch_tokens: int = 2048
    chunked: bool = True
    block_tokens: int = 16

    def __post_init__(self) -> None:
        for name in ("max_sequences", "batch_tokens", "block_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"must be a whole number of at least 1, but got {value!r}", path=name, value=value
                )


@dataclass(frozen=True, eq=False)
class Replica:
    """One copy of the model.

    Attributes:
        name: for display.
        devices: type of each device.
        steps: times of iterations.
        kv_tokens: positions that the KV cache holds; None where the model has no cache.
        kv_bytes_per_token: of all layers, what a transfer of a sequence moves.
        max_context_tokens: longest prompt and output together.
        batching: how iterations are formed.
        role: "both", or "prefill" or "decode" where the two have pools of their own.
        price_usd_per_h: rent of all devices, None where unknown.
        static_w: drawn while it is on; ``static_known`` is False where a device's part is unknown.
        tdp_w: board limits of all devices, None where unknown.
        plan: what it runs.
    """

    name: str
    devices: tuple[str, ...]
    steps: StepTimes
    kv_tokens: int | None
    kv_bytes_per_token: float
    max_context_tokens: int
    batching: Batching = Batching()
    role: Role = "both"
    price_usd_per_h: float | None = None
    static_w: float = 0.0
    static_known: bool = True
    tdp_w: float | None = None
    plan: Plan | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError("unknown role", path="role", value=self.role, allowed=ROLES)

    @property
    def n_stages(self) -> int:
        """Pipeline stages."""
        return self.steps.n_stages

    @property
    def n_blocks(self) -> int | None:
        """Blocks of the KV cache, None where there is no cache."""
        return None if self.kv_tokens is None else self.kv_tokens // self.batching.block_tokens

    def changed(
        self,
        *,
        name: str | None = None,
        role: Role | None = None,
        batching: Batching | None = None,
        price_usd_per_h: float | None = None,
    ) -> Replica:
        """Return a replica that shares the tables of this one. Memory was sized for the former batching."""
        return replace(
            self,
            name=name or self.name,
            role=role or self.role,
            batching=batching or self.batching,
            price_usd_per_h=self.price_usd_per_h if price_usd_per_h is None else price_usd_per_h,
        )


def replica_from_plan(
    plan: Plan,
    graph: OperatorGraph,
    cluster: Cluster,
    *,
    max_context_tokens: int,
    batching: Batching = Batching(),
    role: Role = "both",
    runtime: RuntimeProfile | None = None,
    units: Sequence[Unit] | None = None,
    name: str | None = None,
) -> Replica:
    """Return the replica of a plan: any stages, tensor-parallel groups and per-unit precisions.

    The KV cache gets what each device has beside weights, activations, recurrent states and the reserve; the
    stage with the fewest positions decides. More devices in a group than KV heads hold copies.

    Args:
        plan: stages on devices of the cluster, and the assignment.
        graph: the traced model.
        cluster: where the devices and links are.
        max_context_tokens: longest prompt and output together.
        batching: bounds of an iteration, which the activations are sized for.
        role: of the replica.
        runtime: fused launches and host time.
        units: of the assignment, None for those of the plan's granularity.
        name: for display, else that of the plan or its devices.

    Raises:
        ConfigError: the plan does not fit the model or cluster, or the context is beyond the model's.
        UnsupportedOnDevice: a precision does not run on its device.
        DoesNotFitMemory: a device cannot hold its part and one sequence of the longest context.
    """
    limit = graph.max_context
    if max_context_tokens < 2 or (limit is not None and max_context_tokens > limit):
        text = f"must be from 2 to {limit}, but got {max_context_tokens}"
        raise ConfigError(text, path="max_context_tokens", value=max_context_tokens)
    if not plan.stages or plan.stages[-1].layers[1] != graph.n_layers:
        raise ConfigError(f"stages must hold {graph.n_layers} layers", path="stages")
    ties = () if runtime is None else runtime.ties
    of_units = tuple(units) if units is not None else units_of(graph, plan.granularity, ties)
    pricers = [_pricer(stage, plan, graph, cluster, of_units, runtime) for stage in plan.stages]
    kv_tokens = [
        _kv_tokens(stage, pricer, graph, cluster, batching, max_context_tokens)
        for stage, pricer in zip(plan.stages, pricers, strict=True)
    ]
    links = [
        cluster.link_between(before.devices[0], after.devices[0]) for before, after in pairwise(plan.stages)
    ]
    names = [device for stage in plan.stages for device in stage.devices]
    specs = [cluster.spec_of(device) for device in names]
    prices = [spec.price_usd_per_h for spec in specs if spec.price_usd_per_h is not None]
    limits = [spec.power.tdp_w for spec in specs if spec.power.tdp_w is not None]
    static = [spec.power.static_w for spec in specs if spec.power.static_w is not None]
    return Replica(
        name=name or plan.name or " + ".join(stage_type(cluster, stage) for stage in plan.stages),
        devices=tuple(spec.name for spec in specs),
        steps=TabulatedSteps(pricers, links),
        kv_tokens=min((tokens for tokens in kv_tokens if tokens is not None), default=None),
        kv_bytes_per_token=sum(pricer.model.kv_bytes_per_token(max_context_tokens) for pricer in pricers),
        max_context_tokens=max_context_tokens,
        batching=batching,
        role=role,
        price_usd_per_h=sum(prices) if len(prices) == len(specs) else None,
        static_w=sum(static),
        static_known=len(static) == len(specs),
        tdp_w=sum(limits) if len(limits) == len(specs) else None,
        plan=plan,
    )


def _pricer(
    stage: Stage,
    plan: Plan,
    graph: OperatorGraph,
    cluster: Cluster,
    units: tuple[Unit, ...],
    runtime: RuntimeProfile | None,
) -> StagePricer:
    if stage.tensor_parallel != len(stage.devices):
        raise ConfigError(
            f"tensor parallelism of {stage.tensor_parallel} needs as many devices", path="stages"
        )
    stage_type(cluster, stage)
    spec = cluster.spec_of(stage.devices[0])
    group = None
    if stage.tensor_parallel > 1:
        link = cluster.link_between(*stage.devices[:2])
        group = TensorGroup(spec, stage.tensor_parallel, link)
    return StagePricer(stage_model(graph, units, plan.assignment.by_unit, stage.layers, runtime), spec, group)


def _kv_tokens(
    stage: Stage,
    pricer: StagePricer,
    graph: OperatorGraph,
    cluster: Cluster,
    batching: Batching,
    max_context_tokens: int,
) -> int | None:
    """Return the positions that the devices of a stage can cache, None where they cache nothing."""
    model, degree = pricer.model, pricer.degree
    per_token = model.kv_bytes_per_token(max_context_tokens, degree)
    held = (model.weight_bytes + model.state_bytes * batching.max_sequences) / degree
    held += pricer.spec.reserve_bytes + _activation_bytes(graph, batching, max_context_tokens)
    free = min(cluster.capacity_bytes(device) for device in stage.devices) - held
    missing = per_token * max_context_tokens - free
    if missing > 0:
        raise DoesNotFitMemory(
            f"{pricer.spec.name}: layers {stage.layers[0]} to {stage.layers[1] - 1} and the cache of one "
            f"sequence of {max_context_tokens} tokens exceed each device's memory by {missing / 1e9:.2f} GB"
        )
    return int(free // per_token) if per_token else None


def _activation_bytes(graph: OperatorGraph, batching: Batching, max_context_tokens: int) -> float:
    """Return the larger peak of a full iteration: of prompt tokens, and of the head for all sequences."""
    tokens = float(
        batching.batch_tokens if batching.chunked else max(batching.batch_tokens, max_context_tokens)
    )
    sequences = float(batching.max_sequences)
    prompts = float(activation_peak_elements(graph, 1.0, tokens, tokens))
    decodes = float(activation_peak_elements(graph, sequences, 1.0, float(max_context_tokens)))
    return SIXTEEN_BIT_BYTES * max(prompts, decodes)
