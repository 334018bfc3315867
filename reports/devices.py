"""One page about the hardware library: peak against power, roofs, memory and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dse.content import write_atomic
from hardware_specs.derived import (
    bandwidth_bytes_per_s,
    best_rate,
    capacity_bytes,
    dollars_per_pflop,
    efficiency_flop_per_s_per_w,
    ridge_flop_per_byte,
)
from hardware_specs.sanity import rate_16_bit
from hardware_specs.spec import DeviceClass, HardwareSpec
from reports.blocks import Block, Cell, Column, Details, Note, Row, Table, Tile, Tiles
from reports.build import RenderedSection, render_page
from reports.device_figures import memory, peak_against_power
from reports.device_points import GROUPS, drawable, not_drawn
from reports.device_roofs import roofs
from reports.units import fmt_si, plural

SHORT: dict[DeviceClass, str] = {
    "datacenter_gpu": "GPU",
    "desktop_gpu": "desktop",
    "edge_gpu": "edge",
    "asic": "ASIC",
    "wafer": "wafer",
    "npu": "NPU",
    "cpu": "CPU",
}

Quantity = Callable[[HardwareSpec], float | None]


@dataclass(frozen=True)
class DevicesHeading:
    """The top of the page."""

    title: str
    lead: str
    facts: str


def write_devices_page(specs: Sequence[HardwareSpec], path: Path, *, highlighted: Sequence[str] = ()) -> Path:
    """Write the page, in place of an older one only once it is whole; return ``path``."""
    write_atomic(path, render_devices_page(specs, highlighted=highlighted))
    return path


def render_devices_page(specs: Sequence[HardwareSpec], *, highlighted: Sequence[str] = ()) -> str:
    """Return the page as one HTML text that needs nothing but a browser.

    Args:
        specs: what is drawn and listed, in any order; at least one with a published rate.
        highlighted: names that stand out, and whose roofs come first.
    """
    ordered = sorted(specs, key=lambda spec: (list(GROUPS).index(spec.device_class), spec.name))
    title = " and ".join(highlighted) if 0 < len(highlighted) <= 3 else plural(len(specs), "device")
    counts = Counter(GROUPS[spec.device_class] for spec in ordered)
    heading = DevicesHeading(
        title,
        "Peak rates, power, memory and roofs from spec files in which every number has its source.",
        " · ".join(f"{group}: {count}" for group, count in counts.items()),
    )
    drawn = drawable(ordered)
    power: list[Block] = [_tiles(drawn), peak_against_power(drawn, highlighted)]
    sections = (
        RenderedSection(
            "power",
            "Work per watt",
            "Power",
            "What each device does at its best, and what it draws for it.",
            tuple(power),
        ),
        RenderedSection(
            "roofs",
            "Roofs",
            "Roofs",
            "Where memory stops being the limit.",
            (roofs(drawn, highlighted),),
        ),
        RenderedSection(
            "memory",
            "Memory",
            "Memory",
            "How much fits, and how fast it can be read.",
            (memory(drawn, highlighted),),
        ),
        RenderedSection(
            "table",
            "All numbers",
            "Table",
            "",
            (_table(ordered, highlighted), _absent(ordered)),
        ),
    )
    return render_page("devices.html.j2", heading, sections)


def _tiles(specs: Sequence[HardwareSpec]) -> Tiles:
    tiles = []
    figures: tuple[tuple[str, Quantity, Callable[[float], str]], ...] = (
        ("Most TOPS per watt", efficiency_flop_per_s_per_w, lambda v: f"{v / 1e12:.3g}"),
        ("Highest 16-bit peak", rate_16_bit, lambda v: fmt_si(v, "FLOP/s", 2)),
        ("Fastest main memory", bandwidth_bytes_per_s, lambda v: fmt_si(v, "B/s")),
        ("Largest main memory", capacity_bytes, lambda v: f"{v / 2**30:.4g} GiB"),
    )
    for label, value, write in figures:
        best = max(_known(specs, value), default=None, key=lambda entry: entry[1])
        if best is not None:
            tiles.append(Tile(label, write(best[1]), best[0].name))
    cheapest = min(_known(specs, dollars_per_pflop), default=None, key=lambda entry: entry[1])
    if cheapest is not None:
        spec, dollars = cheapest
        when = f"{spec.name}, {spec.price_date}"
        tiles.append(Tile("16-bit PFLOP/s for an hour", f"${dollars:.2f}", when))
    incomplete = [spec.name for spec in specs if spec.incomplete_reason is not None]
    if incomplete:
        tiles.append(Tile("Too little published", str(len(incomplete)), ", ".join(incomplete)))
    return Tiles(tuple(tiles))


def _known(specs: Sequence[HardwareSpec], value: Quantity) -> list[tuple[HardwareSpec, float]]:
    return [(spec, number) for spec in specs if (number := value(spec)) is not None]


def _table(specs: Sequence[HardwareSpec], highlighted: Sequence[str]) -> Table:
    columns = (
        Column("Device"),
        Column("Class"),
        Column("Year", numeric=True),
        Column("16-bit", numeric=True),
        Column("Best", numeric=True),
        Column("Memory", numeric=True),
        Column("Bandwidth", numeric=True),
        Column("Corner", "FLOP/B", numeric=True),
        Column("TDP", numeric=True),
        Column("TOPS/W", numeric=True),
        Column("Price", "$/h", numeric=True),
    )
    rows = tuple(Row(_cells(spec), "strong" if spec.name in highlighted else "") for spec in specs)
    return Table("Every device; a click on a heading sorts", columns, rows, sortable=True)


def _cells(spec: HardwareSpec) -> tuple[Cell, ...]:
    rate, best = rate_16_bit(spec), best_rate(spec)
    best_cell = Cell("–", tone="muted")
    if best is not None:
        best_cell = Cell(fmt_si(best[1], "OP/s"), best[1], detail=best[0])
    price = spec.price_usd_per_h
    return (
        Cell(spec.name, detail="" if spec.availability == "shipping" else spec.availability),
        Cell(SHORT[spec.device_class]),
        Cell("–" if spec.year is None else str(spec.year), spec.year),
        _number(rate, "FLOP/s"),
        best_cell,
        _sized(capacity_bytes(spec)),
        _number(bandwidth_bytes_per_s(spec), "B/s"),
        _plain(ridge_flop_per_byte(spec)),
        _number(spec.power.tdp_w, "W"),
        _per_watt(efficiency_flop_per_s_per_w(spec)),
        Cell("–", tone="muted") if price is None else Cell(f"{price:.2f}", price, detail=spec.price_date),
    )


def _per_watt(value: float | None) -> Cell:
    return Cell("–", tone="muted") if value is None else Cell(f"{value / 1e12:.3g}", value)


def _number(value: float | None, unit: str) -> Cell:
    return Cell("–", tone="muted") if value is None else Cell(fmt_si(value, unit), value)


def _plain(value: float | None) -> Cell:
    return Cell("–", tone="muted") if value is None else Cell(fmt_si(value), value)


def _sized(value: float | None) -> Cell:
    if value is None:
        return Cell("–", tone="muted")
    if value < 2**30:
        return Cell(f"{value / 2**20:.4g} MiB", value)
    return Cell(f"{value / 2**30:.4g} GiB", value)


def _absent(specs: Sequence[HardwareSpec]) -> Details:
    lines = not_drawn(specs)
    text = "What nobody published is left out of a drawing rather than guessed."
    return Details(f"{plural(len(lines), 'device')} not in every drawing", (Note(text, points=lines),))
