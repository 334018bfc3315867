"""A synthetic study result for tests of whatever reads one: the report, the command line.

The numbers follow simple laws (fewer bits: less memory, less time, more loss) and stand for no real device.
"""

from __future__ import annotations

import math
import random
from typing import Any

from studies.result import Measured, Point, Predicted, StudyResult

BITS = {
    "int3_g64_asym": 3.0,
    "int4_g64_asym": 4.0,
    "int5_g64_asym": 5.0,
    "int6_g64_asym": 6.0,
    "int8_g64_asym": 8.0,
    "bf16": 16.0,
}
FORMATS = tuple(BITS)
UNIFORM = FORMATS[:-1]
DEVICES = (("board_a", "toy_gpu"), ("board_b", "toy_npu"), ("board_c", "toy_cpu"))
REFERENCE_PERPLEXITY = 16.42
ROLES = ("attention", "ffn")


def make_result(
    *,
    n_layers: int = 30,
    n_front: int = 10,
    seed: int = 0,
    model_name: str = "toy-135m-instruct",
    beats_uniform: bool = True,
    measured: bool = True,
) -> StudyResult:
    """Return a result with three devices, ``n_front`` mixed plans and five uniform ones.

    Args:
        n_layers: transformer blocks, two units each.
        n_front: mixed plans.
        seed: of everything random.
        model_name: shown in the title.
        beats_uniform: whether mixed plans lose less than the uniform plans of equal bits, or more.
        measured: whether plans have a measured quality (the last two front points never have one).
    """
    rng = random.Random(seed)
    units = [(f"layers.{layer}.{role}", layer) for layer in range(n_layers) for role in ROLES]
    weight = {name: _importance(layer, n_layers, rng) for name, layer in units}
    names = [name for name, _ in units]
    front = [
        _point(
            f"{origin}-{index}",
            origin,
            _mixed(names, weight, 2.9 + 4.6 * index / max(1, n_front - 1)),
            weight,
            n_layers,
            rng,
            gain=0.72 if beats_uniform else 1.35,
            measured=measured and index < n_front - 2,
        )
        for index in range(n_front)
        for origin in (("exact", "tpe")[index % 3 == 1],)
    ]
    front.sort(key=lambda point: point.predicted.effective_bits)
    baselines = [
        _point(
            f"uniform-{name}",
            "uniform",
            dict.fromkeys(names, name),
            weight,
            n_layers,
            rng,
            gain=1.0,
            measured=measured,
        )
        for name in UNIFORM
    ]
    chosen = front[min(3, len(front) - 1)] if front else None
    return StudyResult(
        study=_study(model_name, seed),
        model={
            "name": model_name,
            "parameters": 134_515_008,
            "n_layers": n_layers,
            "hidden_size": 576,
            "note": "The checkpoint was stored in 4 bits: its weights are decoded, not the original ones.",
            "prefill_flop": 1.13e12,
            "decode_flop": 2.2e9,
            "kv_bytes_per_token": 23_040,
        },
        devices=[_device(name, kind, index) for index, (name, kind) in enumerate(DEVICES)],
        units=[{"name": name, "layer": layer} for name, layer in units],
        reference={"perplexity": REFERENCE_PERPLEXITY, "n_tokens": 8192, "sequence_length": 512}
        if measured
        else {},
        front=front,
        chosen=chosen.name if chosen else "",
        chosen_reason="the fastest plan that loses at most 5 % of perplexity." if chosen else "",
        baselines=baselines,
        comparisons=_comparisons(front, baselines),
        sensitivity=_sensitivity(names, weight, model_name, rng),
        hypervolume={
            "reference": {"kl_nats": 1.2, "tpot_s": 0.08, "energy_j_per_token": 0.6},
            "objectives": ["kl_nats", "tpot_s", "energy_j_per_token"],
            "exact": 0.0389,
            "tpe": 0.0412,
            "combined": 0.0421,
        },
        progress=[
            {"trial": trial, "hypervolume": 0.0412 * (1 - 0.35 * math.exp(-(trial // 4) / 4))}
            for trial in range(60)
        ],
        roofline=_roofline(rng),
        timeline=_timeline(),
        dropped=[
            {"device": "toy_npu", "precision": name, "reason": "group-wise scales are not supported"}
            for name in ("int3_g64_asym", "int5_g64_asym", "int6_g64_asym")
        ]
        + [{"device": "toy_cpu", "precision": "fp8_e4m3", "reason": "the fp8 rate is not published"}],
        provenance={
            "seed": seed,
            "versions": {"precision-dse": "0.1.0", "python": "3.11.2", "optuna": "5.0.0", "torch": "2.13.0"},
            "hashes": {
                "cluster": "8f1d2c3b4a596877",
                "corpus": "00aa11bb22cc33dd",
                "checkpoint": "9e8d7c6b5a493827",
            },
        },
        times={"started": "2026-01-01T00:00:00Z", "trace_s": 2.13, "search_s": 41.8, "measure_s": 96.4},
        planners=_planners(chosen) if chosen else {},
    )


def _planners(chosen: Point) -> dict[str, Any]:
    """One planner that is feasible, one that breaks a bound, one without a plan."""
    own = chosen.predicted.total_s
    rows = [
        {"name": "PipeEdge", "value": 1.5 * own, "penalty": 0.1, "breaks": [], "precision": "int4/bf16/bf16"},
        {"name": "AdaBits", "value": 2 * own, "penalty": 0.2, "breaks": ["penalty 0.2 is above 0.15"]},
        {"name": "uniform", "reason": "toy_npu/0 cannot run it"},
    ]
    empty: dict[str, Any] = {"value": None, "penalty": None, "reason": "", "breaks": [], "precision": ""}
    return {
        "plan": chosen.name,
        "value_s": own,
        "max_penalty": 0.15,
        "bound_s": 0.98 * own,
        "rows": [{**empty, "over_ours_frac": None, "stages": [["toy_npu/0", 0, 4]], **row} for row in rows],
    }


def _importance(layer: int, n_layers: int, rng: random.Random) -> float:
    """First and last layers matter more, with some scatter."""
    ends = math.exp(-layer / 2) + math.exp(-(n_layers - 1 - layer) / 2)
    return (0.3 + 2.5 * ends) * math.exp(rng.gauss(0.0, 0.5))


def _loss(bits: float) -> float:
    return 0.0 if bits >= 16 else 4.0 ** -(bits - 2.0)


def _mixed(names: list[str], weight: dict[str, float], budget_bits: float) -> dict[str, str]:
    """Give the next bit to whoever gains most, until the mean reaches the budget."""
    level = dict.fromkeys(names, 0)
    while sum(BITS[FORMATS[i]] for i in level.values()) / len(names) < budget_bits:
        raisable = [name for name in names if level[name] < len(FORMATS) - 2]
        if not raisable:
            break
        best = max(raisable, key=lambda name: weight[name] * _loss(BITS[FORMATS[level[name]]]))
        level[best] += 1
    return {name: FORMATS[index] for name, index in level.items()}


def _point(
    name: str,
    origin: str,
    formats: dict[str, str],
    weight: dict[str, float],
    n_layers: int,
    rng: random.Random,
    *,
    gain: float,
    measured: bool,
) -> Point:
    linear_bits = sum(BITS[form] + (0.0 if form == "bf16" else 0.5) for form in formats.values()) / len(
        formats
    )
    bits = 0.79 * linear_bits + 0.21 * 16
    kl = sum(weight[unit] * _loss(BITS[form]) for unit, form in formats.items()) / len(formats)
    cuts = [0, round(0.55 * n_layers), round(0.85 * n_layers), n_layers]
    memory = {
        f"{device}/0": (end - first) / n_layers * 134.5e6 * bits / 8 + 2.4e8 * (1 + index)
        for index, ((device, _), first, end) in enumerate(zip(DEVICES, cuts, cuts[1:], strict=False))
    }
    tpot = (11.0 + 2.9 * linear_bits) * 1e-3
    true_kl = gain * kl**0.93 * math.exp(rng.gauss(0.0, 0.06))
    return Point(
        name=name,
        origin=origin,
        plan={
            "name": name,
            "model": "toy",
            "cluster": "toy_boards",
            "granularity": "sublayer",
            "stages": [
                {"devices": [f"{device}/0"], "tensor_parallel": 1, "layers": [first, end]}
                for (device, _), first, end in zip(DEVICES, cuts, cuts[1:], strict=False)
                if first < end
            ],
            "assignment": {
                unit: {
                    "weights": form,
                    "activations": "bf16",
                    "kv": "bf16" if linear_bits > 5 else "int8_token",
                }
                for unit, form in formats.items()
            },
            "prefill_micro_batch": 2,
            "decode_micro_batch": 4,
        },
        predicted=Predicted(
            kl_nats=kl,
            ttft_s=1.4 + 0.03 * linear_bits,
            tpot_s=tpot,
            total_s=1.4 + 127 * tpot,
            throughput_tokens_per_s=8 / tpot,
            energy_j_per_token=0.11 + 0.021 * linear_bits,
            energy_excludes_static=["toy_npu"],
            cost_usd_per_mtok=None,
            memory_bytes=memory,
            memory_total_bytes=sum(memory.values()),
            effective_bits=bits,
            linear_effective_bits=linear_bits,
            provenance="analytic",
            memory_parts={device: _parts(used) for device, used in memory.items()},
        ),
        measured=Measured(
            perplexity=REFERENCE_PERPLEXITY * math.exp(true_kl),
            kl_nats=true_kl,
            top1_agreement_frac=math.exp(-1.1 * math.sqrt(true_kl)),
            n_tokens=8192,
            sequence_length=512,
        )
        if measured
        else None,
        solver={"status": "optimal", "value": tpot, "bound": tpot, "gap_frac": 0.0, "time_s": 0.4}
        if origin == "exact"
        else None,
    )


def _parts(used_bytes: float) -> dict[str, float]:
    shares = {"weights": 0.3, "kv": 0.2, "activations": 0.1, "reserve": 0.4}
    return {name: share * used_bytes for name, share in shares.items()}


def _study(model_name: str, seed: int) -> dict[str, Any]:
    return {
        "name": "toy",
        "model": model_name,
        "cluster": "toy_boards",
        "workload": {
            "batch": 8,
            "prompt_tokens": 512,
            "output_tokens": 128,
            "ttft_limit_s": None,
            "tpot_limit_s": None,
        },
        "precisions": list(FORMATS),
        "uniform": list(UNIFORM),
        "runtime": "generic",
        "granularity": "sublayer",
        "metric": "kl",
        "seed": seed,
        "quality": {"corpus": None, "tokens": 8192, "sequence_length": 512, "dtype": "bfloat16"},
        "search": {"trials": 60, "front_points": 10},
    }


def _device(name: str, kind: str, index: int) -> dict[str, Any]:
    bandwidth = (200e9, 34e9, 50e9)[index]
    peaks = {"bf16": (40e12, 1.5e12, 0.4e12)[index], "int8": (85e12, 6e12, 0.8e12)[index]}
    source = {"source": "https://example.invalid/datasheet.pdf p. 3", "confidence": "high"}
    return {
        "name": kind,
        "description": f"synthetic board {index + 1}, for tests",
        "memory_capacity_bytes": (32e9, 1.2e9, 2.5e9)[index],
        "memory_bandwidth_bytes_per_s": bandwidth,
        "peaks": peaks | {"fp16": peaks["bf16"]},
        "tdp_w": (60.0, 12.0, None)[index],
        "static_w": (9.0, None, 4.0)[index],
        "sources": [
            {"path": "memory.dram.bandwidth", "value": bandwidth, "unit": "bytes/s", **source},
            {"path": "compute.bf16.dense", "value": peaks["bf16"], "unit": "flop/s", **source},
            {"path": "power.tdp", "value": 15.0, "unit": "W", "source": "synthetic", "confidence": "low"},
        ],
        "instances": [f"{name}/0"],
    }


def _comparisons(front: list[Point], baselines: list[Point]) -> list[dict[str, Any]]:
    rows = []
    for uniform in baselines:
        fit = [
            point
            for point in front
            if point.measured and point.predicted.effective_bits <= uniform.predicted.effective_bits
        ]
        best = min(fit, key=lambda p: p.measured.perplexity if p.measured else math.inf, default=None)
        ours = best.measured.perplexity if best and best.measured else None
        theirs = uniform.measured.perplexity if uniform.measured else None
        rows.append(
            {
                "uniform": uniform.name,
                "uniform_bits": uniform.predicted.effective_bits,
                "uniform_perplexity": theirs,
                "mixed": best.name if best else None,
                "mixed_bits": best.predicted.effective_bits if best else None,
                "mixed_perplexity": ours,
                "wins": ours is not None and theirs is not None and ours < theirs,
            }
        )
    return rows


def _sensitivity(
    names: list[str], weight: dict[str, float], model: str, rng: random.Random
) -> dict[str, Any]:
    def table(metric: str, unit: str, provenance: str, scatter: float, scale: float) -> dict[str, Any]:
        return {
            "metric": metric,
            "unit": unit,
            "units": names,
            "precisions": [{"weights": form, "activations": "bf16", "kv": "bf16"} for form in FORMATS],
            "penalty": [
                [
                    scale * weight[name] * _loss(BITS[form]) * math.exp(rng.gauss(0.0, scatter))
                    for form in FORMATS
                ]
                for name in names
            ],
            "model": model,
            "calibration_hash": "00aa11bb22cc33dd",
            "seed": 0,
            "n_tokens": 1024,
            "provenance": provenance,
        }

    return {
        "tables": [
            table("kl", "nats", "measured", 0.1, 1e-2),
            table("variance", "arbitrary", "analytic", 0.6, 40.0),
        ],
        "correlations": [{"first": "kl", "second": "variance", "spearman": 0.91}],
    }


def _roofline(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for index, (_, kind) in enumerate(DEVICES):
        bandwidth, peak = (200e9, 34e9, 50e9)[index], (40e12, 1.5e12, 0.4e12)[index]
        for phase, base in (("prefill", 300.0), ("decode", 6.0)):
            for name in ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "attention", "lm_head"):
                intensity = base * math.exp(rng.gauss(0.0, 0.5)) * (0.15 if name == "attention" else 1.0)
                roof = min(peak, intensity * bandwidth)
                memory_bound = intensity * bandwidth < peak
                launch = name == "k_proj" and phase == "decode"
                rows.append(
                    {
                        "device": kind,
                        "phase": phase,
                        "name": name,
                        "intensity_flop_per_byte": intensity,
                        "achieved_flop_per_s": roof * (0.06 if launch else rng.uniform(0.5, 0.8)),
                        "time_s": rng.uniform(0.1, 1.0) * (1e-2 if phase == "prefill" else 4e-4),
                        "bound_by": "launch" if launch else "memory" if memory_bound else "compute",
                    }
                )
    return rows


def _timeline() -> list[dict[str, Any]]:
    rows = []
    stage_s = {"prefill": (0.30, 0.22, 0.26), "decode": (0.011, 0.008, 0.0095)}
    free = [0.0, 0.0, 0.0]
    for micro_batch in range(4):
        ready = 0.0
        for index, (device, _) in enumerate(DEVICES):
            start = max(ready, free[index])
            ready = free[index] = start + stage_s["prefill"][index]
            rows.append(_span(f"{device}/0", "prefill", micro_batch, start, ready))
            if index == 0:
                rows.append(_span("board_a/0 -> board_b/0", "prefill", micro_batch, ready, ready + 0.02))
                ready += 0.02
    back = [max(free)] * 2
    free = [max(free)] * 3
    for _ in range(4):
        for micro_batch in range(2):
            ready = back[micro_batch]
            for index, (device, _) in enumerate(DEVICES):
                start = max(ready, free[index])
                ready = free[index] = start + stage_s["decode"][index]
                rows.append(_span(f"{device}/0", "decode", micro_batch, start, ready))
            back[micro_batch] = ready
    return rows


def _span(device: str, phase: str, micro_batch: int, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "device": device,
        "phase": phase,
        "micro_batch": micro_batch,
        "start_s": start_s,
        "end_s": end_s,
    }
