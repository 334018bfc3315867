"""Where this result comes from: inputs, versions, hashes, seed, corpus, times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reports.blocks import Block, Cell, Column, Details, Note, Row, Table
from reports.section import section
from reports.units import UNKNOWN, fmt_si, fmt_significant
from studies.result import StudyResult

Lines = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProvenanceInfo:
    """Dotted keys and their values as text, by group."""

    model_note: str
    quality: str
    groups: tuple[tuple[str, Lines], ...]


def info(result: StudyResult) -> ProvenanceInfo:
    """Flatten the nested inputs and records."""
    named = (
        ("Model", {key: value for key, value in result.model.items() if key != "note"}),
        ("Study inputs", result.study),
        ("Versions, hashes, seed", result.provenance),
        ("Times", result.times),
    )
    groups = ((title, flatten(document)) for title, document in named)
    return ProvenanceInfo(
        model_note=str(result.model.get("note") or ""),
        quality=_quality_text(result),
        groups=tuple((title, lines) for title, lines in groups if lines),
    )


def _quality_text(result: StudyResult) -> str:
    quality = result.study.get("quality") or {}
    n_tokens = result.reference.get("n_tokens")
    if not n_tokens:
        return "No quality was measured in this study."
    length = result.reference.get("sequence_length")
    corpus = quality.get("corpus") or "the embedded corpus"
    dtype = f", emulated in {quality['dtype']}" if quality.get("dtype") else ""
    sequences = f" in sequences of {length:,}" if length else ""
    return f"Measured quality is on {n_tokens:,} tokens of {corpus}{sequences}{dtype}."


def flatten(document: Any, prefix: str = "") -> Lines:
    """Return (dotted key, text) of every leaf; a list of plain values is one leaf.

    Keys that end with a unit (``_s``, ``_bytes``, ``_flop``) are shown with it.
    """
    if isinstance(document, dict):
        return tuple(
            line
            for key, value in document.items()
            for line in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        )
    if isinstance(document, list) and any(isinstance(entry, dict | list) for entry in document):
        return tuple(
            line for index, entry in enumerate(document) for line in flatten(entry, f"{prefix}[{index}]")
        )
    return ((prefix, _leaf(prefix, document)),)


def _leaf(key: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_leaf("", entry) for entry in value) or "none"
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and math.isfinite(value):
        return _number(key, value)
    return str(value) or UNKNOWN


def _number(key: str, value: float) -> str:
    if key.endswith(("bytes", "bytes_per_token")):
        return fmt_si(value, "B")
    if key.endswith("_flop"):
        return fmt_si(value, "FLOP")
    if key.endswith("_s"):
        return fmt_si(value, "s")
    if isinstance(value, int):
        return str(value) if "seed" in key or abs(value) < 10_000 else f"{value:,}"
    return fmt_significant(value, 4)


@section(
    "provenance",
    title="Provenance",
    nav="Provenance",
    order=120,
    lead="Everything needed to run this study again and get the same numbers.",
)
def render(result: StudyResult) -> tuple[Block, ...]:
    """Show the notes, then each group as a table; long ones are folded."""
    facts = info(result)
    blocks: list[Block] = []
    if facts.model_note:
        blocks.append(Note(facts.model_note, "warn", "About the checkpoint"))
    blocks.append(Note(facts.quality))
    blocks.append(
        Note(
            "Latency, energy, memory and cost are predicted: analytic models of published hardware numbers, "
            "or constants fitted to measurements where it says calibrated. No device was run.",
        )
    )
    for title, lines in facts.groups:
        rows = tuple(Row((Cell(key), Cell(value))) for key, value in lines)
        blocks.append(Details(title, (Table(title, (Column("Key"), Column("Value")), rows),)))
    return tuple(blocks)
