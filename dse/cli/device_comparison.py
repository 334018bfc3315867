"""Several devices side by side, as ``dse devices A B C`` prints them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dse.cli.device_text import UNKNOWN, per_watt, plain, size
from dse.cli.output import si, table
from hardware_specs.derived import (
    bandwidth_bytes_per_s,
    capacity_bytes,
    dollars_per_pflop,
    efficiency_flop_per_s_per_w,
    ridge_flop_per_byte,
)
from hardware_specs.sanity import native_rates
from hardware_specs.spec import HardwareSpec


def show_comparison(specs: Sequence[HardwareSpec]) -> None:
    """Print devices side by side; numbers of the others are followed by their ratio to the first."""
    kinds = [path.kind for path in specs[0].compute]
    kinds += [path.kind for spec in specs for path in spec.compute if path.kind not in kinds]
    rows = [
        ("class", *(spec.device_class for spec in specs)),
        ("availability", *(spec.availability for spec in specs)),
        ("year", *(UNKNOWN if spec.year is None else str(spec.year) for spec in specs)),
        *((kind, *_compared(specs, _rate_of(kind), "FLOP/s", kind)) for kind in dict.fromkeys(kinds)),
        *((label, *_compared(specs, value, unit)) for label, value, unit in _COMPARED),
    ]
    table(
        f"{len(specs)} devices; (x) is the ratio to {specs[0].name}",
        ("", *(spec.name for spec in specs)),
        rows,
        numeric_from=1,
    )


def _rate_of(kind: str) -> Callable[[HardwareSpec], float | None]:
    return lambda spec: native_rates(spec).get(kind)


def _scale_up(spec: HardwareSpec) -> float | None:
    link = spec.link("scale_up")
    return None if link is None else link.bandwidth_bytes_per_s


_COMPARED: tuple[tuple[str, Callable[[HardwareSpec], float | None], str], ...] = (
    ("memory", capacity_bytes, "iB"),
    ("bandwidth", bandwidth_bytes_per_s, "B/s"),
    ("ridge", ridge_flop_per_byte, "FLOP/B"),
    ("scale-up link", _scale_up, "B/s"),
    ("TDP", lambda spec: spec.power.tdp_w, "W"),
    ("best rate per watt", efficiency_flop_per_s_per_w, "TOPS/W"),
    ("price", lambda spec: spec.price_usd_per_h, "$/h"),
    ("price per 16-bit PFLOP/s", dollars_per_pflop, "$/h"),
)


def _compared(
    specs: Sequence[HardwareSpec],
    value: Callable[[HardwareSpec], float | None],
    unit: str,
    kind: str = "",
) -> list[str]:
    reference = value(specs[0])
    cells = []
    for index, spec in enumerate(specs):
        number = value(spec)
        if number is None:
            cells.append(_stand_in(spec, kind))
            continue
        ratio = f" ({number / reference:.2f}x)" if index and reference else ""
        cells.append(f"{_written(number, unit)}{ratio}")
    return cells


def _stand_in(spec: HardwareSpec, kind: str) -> str:
    """What stands where a device has no rate of its own for a kind."""
    path = next((entry for entry in spec.compute if entry.kind == kind), None)
    if path is None:
        return UNKNOWN
    if path.support == "emulated":
        return f"as {path.compute_as}" if path.compute_as else "no rate"
    return "no rate" if path.support == "native" else UNKNOWN


def _written(number: float, unit: str) -> str:
    if unit == "iB":
        return size(number)
    if unit == "TOPS/W":
        return per_watt(number)
    if unit in ("FLOP/B", "$/h"):
        return plain(number, unit)
    return si(number, unit)
