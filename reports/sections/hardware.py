"""The hardware numbers behind every prediction, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reports.blocks import Block, Cell, Column, Details, Note, Row, Table
from reports.section import section
from reports.units import UNKNOWN, fmt_si, fmt_significant, plural
from studies.result import StudyResult

SI_UNITS = {
    "bytes": "B",
    "bytes/s": "B/s",
    "bytes_per_s": "B/s",
    "flop/s": "FLOP/s",
    "flop_per_s": "FLOP/s",
    "w": "W",
    "j": "J",
    "j/bit": "J/bit",
    "j_per_bit": "J/bit",
    "j/flop": "J/FLOP",
    "j_per_flop": "J/FLOP",
    "s": "s",
    "hz": "Hz",
}


@dataclass(frozen=True)
class SourceLine:
    """One number of a spec file."""

    path: str
    value: str
    source: str
    confidence: str


@dataclass(frozen=True)
class DeviceInfo:
    """One device type with its headline numbers as text, and all sourced numbers."""

    name: str
    description: str
    memory: str
    bandwidth: str
    peaks: str
    tdp: str
    static: str
    sources: tuple[SourceLine, ...]


@dataclass(frozen=True)
class HardwareInfo:
    """All device types of the cluster."""

    devices: tuple[DeviceInfo, ...]


def info(result: StudyResult) -> HardwareInfo:
    """Format the numbers of every device type."""
    return HardwareInfo(tuple(_device(entry) for entry in result.devices))


def _device(entry: dict[str, Any]) -> DeviceInfo:
    peaks = {kind: peak for kind, peak in (entry.get("peaks") or {}).items() if peak}
    return DeviceInfo(
        name=entry.get("name", UNKNOWN),
        description=entry.get("description", ""),
        memory=fmt_si(entry.get("memory_capacity_bytes"), "B"),
        bandwidth=fmt_si(entry.get("memory_bandwidth_bytes_per_s"), "B/s"),
        peaks=", ".join(f"{kind} {fmt_si(peak, 'FLOP/s')}" for kind, peak in peaks.items()) or UNKNOWN,
        tdp=fmt_si(entry.get("tdp_w"), "W"),
        static=fmt_si(entry.get("static_w"), "W"),
        sources=tuple(_source(source) for source in entry.get("sources") or []),
    )


def _source(entry: dict[str, Any]) -> SourceLine:
    return SourceLine(
        path=str(entry.get("path", "")),
        value=value_text(entry.get("value"), str(entry.get("unit") or "")),
        source=str(entry.get("source") or UNKNOWN),
        confidence=str(entry.get("confidence") or ""),
    )


def value_text(value: object, unit: str) -> str:
    """Return a sourced number with its unit: with an SI prefix where the unit is a known SI one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNKNOWN if value is None else str(value)
    si = SI_UNITS.get(unit.lower())
    return fmt_si(float(value), si) if si else f"{fmt_significant(float(value), 4)} {unit}".strip()


def source_cell(source: str) -> Cell:
    """Return a link where the source is a web address, else its text."""
    first = source.split(maxsplit=1)[0] if source.split() else ""
    return Cell(source, href=first.rstrip(",;") if first.startswith(("https://", "http://")) else "")


@section(
    "hardware",
    title="Hardware",
    nav="Hardware",
    order=110,
    lead="Dense peaks and bandwidths as published. What nobody published stays unknown.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the devices, and per device a folded table of its sources."""
    facts = info(result)
    if not facts.devices:
        return (Note("The result lists no devices."),)
    columns = (
        Column("Device"),
        Column("Memory", numeric=True),
        Column("Bandwidth", numeric=True),
        Column("TDP", numeric=True),
        Column("Static power", numeric=True),
        Column("Dense peaks"),
    )
    rows = tuple(
        Row(
            (
                Cell(d.name, detail=d.description),
                *(
                    Cell(text, tone="muted" if text == UNKNOWN else "")
                    for text in (d.memory, d.bandwidth, d.tdp, d.static, d.peaks)
                ),
            )
        )
        for d in facts.devices
    )
    sources = tuple(_sources(device) for device in facts.devices if device.sources)
    return (Table("Devices of the cluster", columns, rows), *sources)


def _sources(device: DeviceInfo) -> Details:
    rows = tuple(
        Row((Cell(line.path), Cell(line.value), source_cell(line.source), Cell(line.confidence)))
        for line in device.sources
    )
    columns = (Column("Number"), Column("Value", numeric=True), Column("Source"), Column("Confidence"))
    table = Table(f"Numbers of {device.name} and where they come from", columns, rows)
    return Details(f"{device.name}: {plural(len(rows), 'number')} with sources", (table,))
