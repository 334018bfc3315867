"""What the page of devices draws: points, roofs and where labels fit. Pure data, no drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log10

from hardware_specs.derived import bandwidth_bytes_per_s
from hardware_specs.sanity import native_rates, rate_16_bit
from hardware_specs.spec import DeviceClass, HardwareSpec

BITS = {
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "int8": 8,
    "mxfp8": 8,
    "mxint8": 8,
    "mxfp6": 6,
    "mxfp4": 4,
    "nvfp4": 4,
    "int4": 4,
    "mxint4": 4,
}

GROUPS: dict[DeviceClass, str] = {
    "datacenter_gpu": "Datacenter GPU",
    "desktop_gpu": "Desktop GPU",
    "edge_gpu": "Edge GPU",
    "asic": "ASIC card or chip",
    "wafer": "Wafer system",
    "npu": "NPU",
    "cpu": "CPU",
}

GENERIC = "generic"


@dataclass(frozen=True)
class PeakPoint:
    """The highest dense rate of a device at one width, against its TDP."""

    name: str
    group: str
    bits: int
    kinds: tuple[str, ...]
    flop_per_s: float
    tdp_w: float

    @property
    def flop_per_s_per_w(self) -> float:
        """Operations per second and watt."""
        return self.flop_per_s / self.tdp_w


@dataclass(frozen=True)
class Roofline:
    """The two roofs of a device: 16-bit rate and main bandwidth."""

    name: str
    group: str
    kind: str
    flop_per_s: float
    bytes_per_s: float

    @property
    def ridge_flop_per_byte(self) -> float:
        """Where the roofs meet."""
        return self.flop_per_s / self.bytes_per_s


def peak_points(specs: Iterable[HardwareSpec]) -> tuple[PeakPoint, ...]:
    """Return one point per device and width, where both its TDP and a rate are published."""
    points = []
    for spec in specs:
        if spec.power.tdp_w is None:
            continue
        best: dict[int, float] = {}
        rates = native_rates(spec)
        for kind, rate in rates.items():
            best[BITS[kind]] = max(rate, best.get(BITS[kind], 0.0))
        for bits, rate in best.items():
            kinds = tuple(kind for kind in rates if BITS[kind] == bits and rates[kind] > 0.99 * rate)
            points.append(
                PeakPoint(spec.name, GROUPS[spec.device_class], bits, kinds, rate, spec.power.tdp_w)
            )
    return tuple(points)


def best_points(points: Iterable[PeakPoint]) -> tuple[PeakPoint, ...]:
    """Return the fastest point of every device; of equal ones the narrowest."""
    best: dict[str, PeakPoint] = {}
    for point in sorted(points, key=lambda p: (p.flop_per_s, -p.bits)):
        best[point.name] = point
    return tuple(best.values())


def rooflines(specs: Iterable[HardwareSpec]) -> tuple[Roofline, ...]:
    """Return the roofs of every device whose 16-bit rate and main bandwidth are published."""
    found = []
    for spec in specs:
        rate, bandwidth = rate_16_bit(spec), bandwidth_bytes_per_s(spec)
        if rate is not None and bandwidth is not None:
            kind = "bf16" if "bf16" in native_rates(spec) else "fp16"
            found.append(Roofline(spec.name, GROUPS[spec.device_class], kind, rate, bandwidth))
    return tuple(found)


def drawable(specs: Iterable[HardwareSpec]) -> tuple[HardwareSpec, ...]:
    """Return the devices that drawings may show: products, not generic stand-ins."""
    return tuple(spec for spec in specs if spec.vendor != GENERIC)


def not_drawn(specs: Iterable[HardwareSpec]) -> tuple[str, ...]:
    """Return, for every device that some drawing lacks, which and why."""
    lines = []
    for spec in specs:
        lacks = ["a stand-in, not one product"] if spec.vendor == GENERIC else []
        if not native_rates(spec):
            lacks.append("no published rate")
        elif rate_16_bit(spec) is None:
            lacks.append("no native 16-bit rate")
        if spec.power.tdp_w is None:
            lacks.append("no published TDP")
        if bandwidth_bytes_per_s(spec) is None:
            lacks.append(
                "no known main memory" if spec.known_main_memory is None else "no published bandwidth"
            )
        if lacks:
            lines.append(f"{spec.name}: {', '.join(lacks)}")
    return tuple(lines)


CHARACTER_PX, LINE_PX, GAP_PX, DOT_PX = 6.7, 13.0, 7.0, 6.0
SIDES = (
    ("top center", 0.0, 1.0),
    ("bottom center", 0.0, -1.0),
    ("middle right", 1.0, 0.0),
    ("middle left", -1.0, 0.0),
)


def place_labels(
    points: Sequence[tuple[float, float, str]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    size_px: tuple[float, float],
    others: Sequence[tuple[float, float]] = (),
) -> list[str | None]:
    """Return the side on which each point's label fits without covering another one, None where it does not.

    Greedy in the order of the points, so the most important come first.

    Args:
        points: (x, y, text), positive, on logarithmic axes.
        x_range, y_range: what the axes show.
        size_px: width and height of the drawing.
        others: (x, y) of further points that no label may cover.
    """

    def pixel(value: float, bounds: tuple[float, float], size: float) -> float:
        return (log10(value) - log10(bounds[0])) / (log10(bounds[1]) - log10(bounds[0])) * size

    width, height = size_px
    dots = [(pixel(x, x_range, width), pixel(y, y_range, height)) for x, y, _ in points]
    marks = dots + [(pixel(x, x_range, width), pixel(y, y_range, height)) for x, y in others]
    taken = [(x - DOT_PX, x + DOT_PX, y - DOT_PX, y + DOT_PX) for x, y in marks]
    sides: list[str | None] = []
    for (x, y), (_, _, text) in zip(dots, points, strict=True):
        half = CHARACTER_PX * len(text) / 2
        chosen = None
        for side, right, up in SIDES:
            middle = x + right * (half + GAP_PX)
            level = y + up * (LINE_PX / 2 + GAP_PX)
            box = (middle - half, middle + half, level - LINE_PX / 2, level + LINE_PX / 2)
            inside = box[0] >= 0 and box[1] <= width and box[2] >= 0 and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                chosen = side
                break
        sides.append(chosen)
    return sides


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[1] and second[0] < first[1] and first[2] < second[3] and second[2] < first[3]


def spread(values: Sequence[float], least: float) -> list[float]:
    """Return values moved apart, in their order, so that neighbours are at least ``least`` apart.

    Values that are too close share their middle; runs that grow into each other are merged.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    runs: list[list[int]] = []
    for index in order:
        runs.append([index])
        while len(runs) > 1 and _low(runs[-1], values, least) < _high(runs[-2], values, least) + least:
            last = runs.pop()
            runs[-1].extend(last)
    moved = [0.0] * len(values)
    for run in runs:
        low = _low(run, values, least)
        for place, index in enumerate(run):
            moved[index] = low + place * least
    return moved


def _low(run: list[int], values: Sequence[float], least: float) -> float:
    return sum(values[index] for index in run) / len(run) - least * (len(run) - 1) / 2


def _high(run: list[int], values: Sequence[float], least: float) -> float:
    return _low(run, values, least) + least * (len(run) - 1)
