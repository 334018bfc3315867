"""What a search decides: the precision of every unit, and which devices run which layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dse.content import content_hash
from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision
from dse.policy import RuntimePolicy


@dataclass(frozen=True)
class Assignment:
    """Precision of every unit, in model order. A unit is the smallest part that a search decides on."""

    items: tuple[tuple[str, Precision], ...]

    def __post_init__(self) -> None:
        names = [unit for unit, _ in self.items]
        if len(set(names)) != len(names):
            raise ConfigError("a unit is assigned twice", path="assignment")

    @cached_property
    def by_unit(self) -> dict[str, Precision]:
        """Mapping view; do not change it."""
        return dict(self.items)

    @classmethod
    def uniform(cls, units: tuple[str, ...], precision: Precision) -> Assignment:
        """Give every unit the same precision."""
        return cls(tuple((unit, precision) for unit in units))

    @cached_property
    def hash(self) -> str:
        """Content hash, the key of cached evaluations."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return {unit: {"weights", "activations", "kv"}}."""
        return {unit: precision.to_json() for unit, precision in self.items}

    @classmethod
    def from_json(cls, document: dict[str, dict[str, str]]) -> Assignment:
        """Read what ``to_json`` wrote."""
        return cls(tuple((unit, parse_precision(names)) for unit, names in document.items()))


@dataclass(frozen=True)
class Stage:
    """A contiguous range of layers on one device, or on several with tensor parallelism.

    ``layers`` is (first, last + 1). The stage with layer 0 also holds the embedding, and the stage with the
    last layer the final norm and the output head.
    """

    devices: tuple[str, ...]
    layers: tuple[int, int]
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        first, end = self.layers
        if not 0 <= first < end:
            raise ConfigError(
                f"must be [first, last + 1] with first < last + 1, but got {list(self.layers)}",
                path="stages.layers",
                value=self.layers,
            )

    def to_json(self) -> dict[str, Any]:
        """Return {"devices", "tensor_parallel", "layers"}."""
        return {
            "devices": list(self.devices),
            "tensor_parallel": self.tensor_parallel,
            "layers": list(self.layers),
        }


@dataclass(frozen=True)
class Plan:
    """An assignment with its arrangement. Predicted and measured numbers are kept apart, elsewhere.

    ``prefill_chunks`` are the passes that a prompt takes (chunked prefill); the weights of
    ``offloaded_layers`` lie outside their devices and are fetched in every pass.
    """

    model: str
    cluster: str
    assignment: Assignment
    stages: tuple[Stage, ...]
    prefill_micro_batch: int
    decode_micro_batch: int
    granularity: str = "block"
    name: str = field(default="", compare=False)
    prefill_chunks: int = 1
    offloaded_layers: tuple[int, ...] = ()
    runtime_policy: RuntimePolicy = field(default_factory=RuntimePolicy)

    def __post_init__(self) -> None:
        expected = 0
        for stage in self.stages:
            if stage.layers[0] != expected:
                raise ConfigError(
                    f"stages must be contiguous: expected layer {expected}, but got {stage.layers[0]}",
                    path="stages",
                )
            expected = stage.layers[1]

    @cached_property
    def hash(self) -> str:
        """Content hash over everything but the name."""
        document = self.to_json()
        document.pop("name", None)
        return content_hash(document)

    def to_json(self) -> dict[str, Any]:
        """Return the plan document that ``dse plan --json`` and ``plan.json`` carry."""
        policy = self.runtime_policy.to_json()
        return {
            "name": self.name,
            "model": self.model,
            "cluster": self.cluster,
            "granularity": self.granularity,
            "stages": [stage.to_json() for stage in self.stages],
            "assignment": self.assignment.to_json(),
            "prefill_micro_batch": self.prefill_micro_batch,
            "decode_micro_batch": self.decode_micro_batch,
            **({"runtime_policy": policy} if policy else {}),
            **({"prefill_chunks": self.prefill_chunks} if self.prefill_chunks > 1 else {}),
            **({"offloaded_layers": list(self.offloaded_layers)} if self.offloaded_layers else {}),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """Read what ``to_json`` wrote, also inside the document of ``dse plan --json``.

        Raises:
            ConfigError: a key is missing or unknown, or a value is not allowed.
        """
        for key in _REQUIRED:
            if key not in document:
                raise ConfigError("is missing", path=key)
        for key in document:
            if key not in _REQUIRED and key not in _OPTIONAL and key not in REPORTED:
                raise ConfigError("unknown key", path=key, value=key, allowed=[*_REQUIRED, *_OPTIONAL])
        return cls(
            model=document["model"],
            cluster=document["cluster"],
            assignment=Assignment.from_json(document["assignment"]),
            stages=tuple(
                Stage(
                    tuple(stage["devices"]),
                    (stage["layers"][0], stage["layers"][1]),
                    stage["tensor_parallel"],
                )
                for stage in document["stages"]
            ),
            prefill_micro_batch=document["prefill_micro_batch"],
            decode_micro_batch=document["decode_micro_batch"],
            granularity=document.get("granularity", "block"),
            name=document.get("name", ""),
            prefill_chunks=document.get("prefill_chunks", 1),
            offloaded_layers=tuple(document.get("offloaded_layers", ())),
            runtime_policy=_policy_of(document),
        )


_REQUIRED = ("model", "cluster", "stages", "assignment", "prefill_micro_batch", "decode_micro_batch")
_OPTIONAL = ("name", "granularity", "runtime_policy", "prefill_chunks", "offloaded_layers")
REPORTED = (
    *("predicted", "solver", "serving", "encoder_layers", "perplexity", "what_if", "baselines"),
    *("replicas", "pools"),
)
"""What ``dse plan --json`` says beside the plan; whoever reads the plan passes over it."""


def _policy_of(document: dict[str, Any]) -> RuntimePolicy:
    try:
        return RuntimePolicy.from_json(document.get("runtime_policy", {}))
    except ConfigError as error:
        path = "runtime_policy" if error.path is None else f"runtime_policy.{error.path}"
        raise ConfigError(error.message, path=path, value=error.value, allowed=error.allowed) from None
