"""The parts of a result that say what was studied and on what: model, devices, roofs, provenance."""

from __future__ import annotations

import itertools
import platform
from importlib.metadata import version
from typing import Any

from dse.evaluate.breakdown import roofline_points
from dse.evaluate.kernel_path import supports
from dse.evaluate.plan_cost import plan_timeline
from dse.evaluate.quality import QualityEvaluator
from dse.formats.precision import Precision
from dse.plan import Plan
from dse.sensitivity.correlation import rank_correlation, rank_correlation_by_precision
from dse.sensitivity.table import SensitivityTable
from hardware_specs.spec import HardwareSpec
from studies.prepare import Prepared
from studies.result import Point
from studies.schema import Study

LIBRARIES = ("precision-dse", "torch", "transformers", "optuna", "ortools", "numpy", "scipy", "plotly")


def describe_model(prepared: Prepared, study: Study) -> dict[str, Any]:
    """Return the ``model`` part: sizes and work of one prefill and one decode step of the workload."""
    graph, workload = prepared.graph, study.workload
    prompt, total = workload.prompt_tokens, workload.total_context
    return {
        "name": study.model,
        "parameters": graph.parameters,
        "n_layers": graph.n_layers,
        "hidden_size": graph.hidden_size,
        "vocab_size": graph.vocab_size,
        "prefill_flop": float(graph.at("flop", workload.batch, prompt, prompt)),
        "decode_flop": float(graph.at("flop", workload.batch, 1, total)),
        "kv_bytes_per_token": 2 * graph.kv_elements_per_token,
        "note": prepared.source.note,
    }


def describe_devices(prepared: Prepared) -> list[dict[str, Any]]:
    """Return the ``devices`` part, one entry a device type."""
    return [_device(spec, prepared) for spec in prepared.cluster.specs.values()]


def _device(spec: HardwareSpec, prepared: Prepared) -> dict[str, Any]:
    instances = [name for name, kind in prepared.cluster.devices if kind == spec.name]
    return {
        "name": spec.name,
        "description": spec.description,
        "instances": instances,
        "usable_bytes": {
            name: prepared.cluster.capacity_bytes(name) - spec.reserve_bytes for name in instances
        },
        "memory_capacity_bytes": spec.main_memory.capacity_bytes,
        "memory_bandwidth_bytes_per_s": spec.main_memory.bandwidth_bytes_per_s,
        "peaks": {
            path.kind: path.dense_flop_per_s
            for path in spec.compute
            if path.support == "native" and path.dense_flop_per_s is not None
        },
        "tdp_w": spec.power.tdp_w,
        "static_w": spec.power.static_w,
        "sources": [
            {
                "path": entry.path,
                "value": entry.value,
                "unit": entry.unit,
                "source": entry.source,
                "confidence": entry.confidence,
            }
            for entry in spec.sources
        ],
    }


def sensitivity_section(tables: list[SensitivityTable]) -> dict[str, Any]:
    """Return the tables and Spearman's rho between each two of them, over all cells and per precision."""
    return {
        "tables": [table.to_json() for table in tables],
        "correlations": [
            {
                "first": first.metric,
                "second": second.metric,
                "spearman": rank_correlation(first, second),
                "by_precision": rank_correlation_by_precision(first, second),
            }
            for first, second in itertools.combinations(tables, 2)
        ],
    }


def roofline(prepared: Prepared, study: Study) -> list[dict[str, Any]]:
    """Return the operators of every device at the precision that it runs with the fewest weight bits."""
    rows: list[dict[str, Any]] = []
    for spec in prepared.cluster.specs.values():
        able = [precision for precision in prepared.precisions if supports(spec, precision) is None]
        if able:
            precision = min(able, key=_weight_bits)
            points = roofline_points(prepared.graph, spec, precision, study.workload)
            rows += [{**point, "precision": precision.name} for point in points]
    return rows


def _weight_bits(precision: Precision) -> int:
    return precision.weights.bits


def timeline(point: Point, prepared: Prepared, study: Study) -> list[dict[str, Any]]:
    """Return the prefill and the first decode rounds of a point's plan."""
    return plan_timeline(Plan.from_json(point.plan), prepared.table, prepared.cluster, study.workload)


def provenance(study: Study, prepared: Prepared, judge: QualityEvaluator) -> dict[str, Any]:
    """Return what the numbers depend on."""
    identity = judge.identity()
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "cluster": {"name": prepared.cluster.name, "hash": prepared.cluster.content_hash},
        "devices": {name: spec.content_hash for name, spec in prepared.cluster.specs.items()},
        "runtime": {"name": prepared.runtime.name, "hash": prepared.runtime.content_hash},
        "graph": prepared.graph.config_hash,
        "checkpoint": identity["checkpoint"],
        "corpus": {"name": judge.sample.corpus, "hash": judge.sample.corpus_hash},
        "evaluation": identity,
        "seed": study.seed,
    }
