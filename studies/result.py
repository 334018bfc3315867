"""The outcome of a study. A report needs nothing else, and ``result.json`` is its exact text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dse.content import write_atomic
from dse.errors import ConfigError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Predicted:
    """What the analytic models say of a plan.

    ``energy_excludes_static`` names the devices whose static power is unknown and therefore left out.
    ``memory_bytes`` is what the model takes on each device, without the runtime's own reserve.
    ``kl_nats`` is the additive prediction (sum of unit sensitivities); ``effective_bits`` counts all
    parameters, ``linear_effective_bits`` the linears of the blocks only. ``memory_parts`` optionally splits
    ``memory_bytes`` per device into "weights", "kv" and "activations". ``missing_bytes`` is by how
    much it exceeds the devices' memory, 0 where it fits. Intervals are (low, high), see
    ``dse.evaluate.plan_cost``; ``energy_excludes`` maps devices to the parts of the energy that are unknown.
    """

    kl_nats: float
    ttft_s: float
    tpot_s: float
    total_s: float
    throughput_tokens_per_s: float
    energy_j_per_token: float
    energy_excludes_static: list[str]
    cost_usd_per_mtok: float | None
    memory_bytes: dict[str, float]
    memory_total_bytes: float
    effective_bits: float
    linear_effective_bits: float
    provenance: str
    memory_parts: dict[str, dict[str, float]] | None = None
    missing_bytes: float = 0.0
    ttft_interval_s: list[float] | None = None
    tpot_interval_s: list[float] | None = None
    total_interval_s: list[float] | None = None
    energy_j_per_request: float | None = None
    energy_excludes: dict[str, list[str]] | None = None
    co2e_g_per_request: float | None = None


@dataclass(frozen=True)
class Measured:
    """What the emulated quantized forward pass says of a plan."""

    perplexity: float
    kl_nats: float
    top1_agreement_frac: float
    n_tokens: int
    sequence_length: int


@dataclass(frozen=True)
class Point:
    """One plan with its numbers. ``origin``: "exact", "tpe" or "uniform"."""

    name: str
    origin: str
    plan: dict[str, Any]
    predicted: Predicted
    measured: Measured | None
    solver: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Point:
        """Read one entry of ``front`` or ``baselines``."""
        measured = document.get("measured")
        return cls(
            name=document["name"],
            origin=document["origin"],
            plan=document["plan"],
            predicted=Predicted(**document["predicted"]),
            measured=None if measured is None else Measured(**measured),
            solver=document.get("solver"),
        )


@dataclass(frozen=True)
class StudyResult:
    """Everything a study found.

    Attributes:
        study: the resolved inputs (name, model, cluster, workload, runtime, granularity, precisions, seed,
            quality {corpus, n_tokens, sequence_length, dtype}, search {n_trials, ...}).
        model: {name, parameters, n_layers, hidden_size, note, prefill_flop, decode_flop, kv_bytes_per_token}.
        devices: per device type {name, description, memory_capacity_bytes, memory_bandwidth_bytes_per_s,
            peaks {kind: flop/s}, tdp_w, static_w, sources [{path, value, unit, source, confidence}],
            instances [names of such devices in the cluster, as plans and memory_bytes use them]}.
        units: [{name, layer}] in model order.
        reference: quality of the unquantized model {perplexity, n_tokens, sequence_length}.
        front: non-dominated points, sorted by effective bits, the measured ones first decided by measurement;
            ``chosen``: name of the recommended point and ``chosen_reason`` why.
        baselines: uniform plans.
        comparisons: mixed against uniform, [{uniform, uniform_bits, uniform_perplexity, mixed, mixed_bits,
            mixed_perplexity, wins}].
        sensitivity: {tables [SensitivityTable JSON], correlations [{first, second, spearman}]}.
        hypervolume: {reference {objective: value}, objectives [...], exact, tpe, combined}; progress:
            [{trial, hypervolume}].
        roofline: [{device, phase, name, intensity_flop_per_byte, achieved_flop_per_s, time_s, bound_by}].
        timeline: of the chosen plan, [{device, phase, micro_batch, start_s, end_s}].
        dropped: choices that a device or the runtime rules out, [{device, precision, reason}].
        provenance: versions, hashes of specs, corpus and checkpoint, seed; no times.
        times: seconds per step and when it ran: the only part that differs between equal runs.
        planners: the published planners beside the chosen plan, see ``studies.comparison.planners_beside``;
            empty in results that were made before there were any.
    """

    study: dict[str, Any]
    model: dict[str, Any]
    devices: list[dict[str, Any]]
    units: list[dict[str, Any]]
    reference: dict[str, Any]
    front: list[Point]
    chosen: str
    chosen_reason: str
    baselines: list[Point]
    comparisons: list[dict[str, Any]]
    sensitivity: dict[str, Any]
    hypervolume: dict[str, Any]
    progress: list[dict[str, Any]]
    roofline: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    dropped: list[dict[str, str]]
    provenance: dict[str, Any]
    times: dict[str, Any]
    planners: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of ``result.json``."""
        return (
            json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"
        )

    @classmethod
    def from_json(cls, text: str, *, file: str = "result.json") -> StudyResult:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: not JSON, another schema version, or missing parts.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"is not JSON ({error})", file=file) from error
        version = document.pop("schema_version", None) if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ConfigError(f"schema_version must be {SCHEMA_VERSION}, but got {version!r}", file=file)
        document.setdefault("planners", {})
        missing = sorted(set(cls.__dataclass_fields__) - document.keys())
        if missing:
            raise ConfigError(f"lacks {', '.join(missing)}", file=file)
        document["front"] = [Point.from_json(entry) for entry in document["front"]]
        document["baselines"] = [Point.from_json(entry) for entry in document["baselines"]]
        return cls(**{name: document[name] for name in cls.__dataclass_fields__})

    def write(self, folder: Path) -> Path:
        """Write ``result.json`` and each front point's plan into ``folder``; return the result's path."""
        for point in self.front:
            write_atomic(folder / "plans" / point.name / "plan.json", json.dumps(point.plan, indent=1) + "\n")
        path = folder / "result.json"
        write_atomic(path, self.to_json())
        return path
