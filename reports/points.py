"""What can be said of a plan with one number, and how plans are named and compared across sections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dse.errors import ConfigError
from dse.formats.grammar import parse_format
from reports.blocks import Tag
from reports.units import UNKNOWN, fmt_fixed, fmt_percent, fmt_perplexity, fmt_si, fmt_significant, fmt_usd
from studies.result import Point, StudyResult

SOURCE_WORDS: dict[str, Tag] = {
    "analytic": "predicted",
    "calibrated": "calibrated",
    "measured": "measured",
    "mixed": "mixed",
}


@dataclass(frozen=True)
class Metric:
    """One quantity of a plan.

    Attributes:
        name: short key; ``label``: how people call it; ``unit``: SI unit, "" for a bare number.
        tag: whether it is predicted, measured or given by construction.
        smaller_is_better: its sense.
        value: reads it from a point, None where it is unknown.
        text: formats it with its unit.
    """

    name: str
    label: str
    unit: str
    tag: Tag
    value: Callable[[Point], float | None]
    text: Callable[[float | None], str]
    smaller_is_better: bool = True

    @property
    def axis_title(self) -> str:
        """Title of an axis: label, unit and origin of the number."""
        unit = f" [{self.unit}]" if self.unit else ""
        origin = "" if self.tag in {"", "given"} else f" — {self.tag}"
        return f"{self.label}{unit}{origin}"

    def cost(self, point: Point) -> float | None:
        """Return the value with a sign such that smaller is better."""
        value = self.value(point)
        return value if value is None or self.smaller_is_better else -value


def _seconds(value: float | None) -> str:
    return fmt_si(value, "s")


METRICS: tuple[Metric, ...] = (
    Metric(
        "perplexity",
        "Perplexity",
        "",
        "measured",
        lambda p: p.measured.perplexity if p.measured else None,
        fmt_perplexity,
    ),
    Metric(
        "kl_measured",
        "KL to full precision",
        "nats",
        "measured",
        lambda p: p.measured.kl_nats if p.measured else None,
        lambda v: fmt_significant(v, 3),
    ),
    Metric(
        "kl_predicted",
        "KL to full precision",
        "nats",
        "predicted",
        lambda p: p.predicted.kl_nats,
        lambda v: fmt_significant(v, 3),
    ),
    Metric(
        "top1",
        "Top-1 agreement",
        "",
        "measured",
        lambda p: p.measured.top1_agreement_frac if p.measured else None,
        fmt_percent,
        smaller_is_better=False,
    ),
    Metric(
        "bits",
        "Effective bits per parameter",
        "bits",
        "given",
        lambda p: p.predicted.effective_bits,
        fmt_fixed,
    ),
    Metric(
        "linear_bits",
        "Effective bits, block linears only",
        "bits",
        "given",
        lambda p: p.predicted.linear_effective_bits,
        fmt_fixed,
    ),
    Metric("ttft", "Time to first token", "s", "predicted", lambda p: p.predicted.ttft_s, _seconds),
    Metric("tpot", "Time per output token", "s", "predicted", lambda p: p.predicted.tpot_s, _seconds),
    Metric(
        "throughput",
        "Throughput",
        "tokens/s",
        "predicted",
        lambda p: p.predicted.throughput_tokens_per_s,
        lambda v: fmt_si(v, "tokens/s"),
        smaller_is_better=False,
    ),
    Metric(
        "energy",
        "Energy per token",
        "J",
        "predicted",
        lambda p: p.predicted.energy_j_per_token,
        lambda v: fmt_si(v, "J"),
    ),
    Metric(
        "memory",
        "Memory, all devices",
        "B",
        "predicted",
        lambda p: p.predicted.memory_total_bytes,
        lambda v: fmt_si(v, "B"),
    ),
    Metric(
        "cost",
        "Cost per million tokens",
        "US$",
        "predicted",
        lambda p: p.predicted.cost_usd_per_mtok,
        fmt_usd,
    ),
)
METRIC: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def chosen_point(result: StudyResult) -> Point | None:
    """Return the recommended point, or None where the result names none that exists."""
    return next((point for point in (*result.front, *result.baselines) if point.name == result.chosen), None)


def plans_chosen_first(result: StudyResult) -> tuple[Point, ...]:
    """Return the front with the chosen point in front, then the baselines, each name once."""
    chosen = chosen_point(result)
    ordered = ((chosen,) if chosen else ()) + (*result.front, *result.baselines)
    return tuple({point.name: point for point in ordered}.values())


def plan_label(point: Point, chosen: str) -> str:
    """Return the name as menus show it, the chosen one marked."""
    return f"{point.name} (chosen)" if point.name == chosen else point.name


def name_of(value: object, default: str = UNKNOWN) -> str:
    """Return the name of an input that is written as text or as a mapping with ``name``."""
    if isinstance(value, dict):
        value = value.get("name")
    return str(value) if value not in (None, "") else default


def format_bits(name: str) -> float | None:
    """Return the bits of one element of a named format; None for a name this version does not know."""
    try:
        return float(parse_format(name).bits)
    except ConfigError:
        return None


def stages_of(point: Point) -> list[dict[str, Any]]:
    """Return the stages of a plan document, in layer order."""
    return list(point.plan.get("stages", []))


def stage_name(stage: dict[str, Any]) -> str:
    """Return the devices of a stage as one label, e.g. ``gpu/0`` or ``gpu/0 + gpu/1 (tensor parallel 2)``."""
    devices = " + ".join(stage["devices"])
    degree = stage.get("tensor_parallel", 1)
    return devices if degree == 1 else f"{devices} (tensor parallel {degree})"


def device_names(result: StudyResult) -> tuple[str, ...]:
    """Return every device name that a plan uses, in order of first use; it fixes the colours."""
    names: dict[str, None] = {}
    for point in plans_chosen_first(result):
        for stage in stages_of(point):
            names.update(dict.fromkeys(stage["devices"]))
    return tuple(names)


def device_entry(result: StudyResult, name: str) -> dict[str, Any] | None:
    """Return the entry of ``devices`` for a device's or device type's name."""
    for entry in result.devices:
        if name == entry.get("name") or name in entry.get("instances", ()):
            return entry
    return None
