"""An operator graph as one HTML page: a strip of all layers, and a drawing of each distinct block."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dse.content import write_atomic
from dse.graph.liveness import DTYPE_BYTES
from dse.graph.operator import Block, OperatorGraph
from dse.graph.summary import trace_document
from reports.build import content_policy, page_environment, template_text
from reports.graph_costs import GraphCosts
from reports.graph_layout import Drawing, draw_block
from reports.theme import HEAT_SCALE, TAG_COLOURS
from reports.units import fmt_percent, fmt_si, fmt_significant, plural

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Measure:
    """A number that colours the page; ``adds_up`` says that a layer's is the sum over its operators."""

    key: str
    label: str
    unit: str
    adds_up: bool = True


MEASURES = (
    Measure("time_s", "Time", "s"),
    Measure("energy_j", "Energy", "J"),
    Measure("bits", "Bits a weight", "bits", adds_up=False),
    Measure("bytes", "Bytes moved", "B"),
    Measure("flop", "FLOP", "FLOP"),
    Measure("intensity", "FLOP per byte", "FLOP/B", adds_up=False),
)
"""The last three need no device."""


@dataclass(frozen=True)
class Part:
    """Prologue, one block template or epilogue, as the page shows it.

    Attributes:
        key: name in the page; ``title``, ``subtitle``: in words.
        layers: indices that share it.
        drawing: boxes and lines.
        rows: one row of numbers for each operator, as in the drawing.
        shares: of the model's FLOP and bytes in prefill and decode, in words.
    """

    key: str
    title: str
    subtitle: str
    layers: tuple[int, ...]
    drawing: Drawing
    rows: tuple[dict[str, Any], ...]
    shares: str


def write_graph_page(
    graph: OperatorGraph,
    path: Path,
    batch: int,
    prompt: int,
    context: int | None = None,
    costs: GraphCosts | None = None,
) -> Path:
    """Write the page of a graph at one shape, an older one replaced only once it is whole.

    Args:
        graph: the traced model.
        path: an ``.html`` file.
        batch, prompt: sequences and prompt tokens of each in prefill.
        context: positions that the decode step attends to; prompt + 1 by default.
        costs: of every operator on a device at the same shape, which adds time, energy and bits.
    """
    write_atomic(path, render_graph_page(graph, batch, prompt, context, costs))
    return path


def render_graph_page(
    graph: OperatorGraph,
    batch: int,
    prompt: int,
    context: int | None = None,
    costs: GraphCosts | None = None,
) -> str:
    """Return the page as one HTML text that loads nothing; equal graphs give equal bytes."""
    document = trace_document(graph, batch, prompt, context)
    measures = MEASURES if costs is not None else MEASURES[-3:]
    parts = _parts(graph, document)
    variants, strip = _strip(graph, parts, document, costs)
    script = template_text("graph.js")
    data = {
        "variants": variants,
        "scale": HEAT_SCALE,
        "units": {measure.key: measure.unit for measure in measures},
        "sums": [measure.key for measure in measures if measure.adds_up],
    }
    return (
        page_environment()
        .get_template("graph.html.j2")
        .render(
            document=document,
            workload=_workload(document, costs),
            tiles=_tiles(document),
            parts=parts,
            strip=strip,
            measures=measures,
            has_costs=costs is not None,
            style=Markup(template_text("style.css") + template_text("graph.css")),  # noqa: S704  our own files
            script=Markup(script),  # noqa: S704  our own file
            policy=content_policy((script,)),
            tags=TAG_COLOURS,
            data=Markup(json.dumps(data, sort_keys=True)),  # noqa: S704
        )
    )


def _workload(document: dict[str, Any], costs: GraphCosts | None) -> str:
    shape = document["shape"]
    where = "bfloat16" if costs is None else f"{', '.join(costs.precisions)} on {costs.device}"
    return (
        f"batch of {shape['batch']:,}: prefill of {shape['prompt']:,} tokens, "
        f"decode step at {shape['context']:,} positions, {where}"
    )


def _tiles(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    totals = document["totals"]
    tiles = [
        ("Parameters", fmt_si(totals["parameters"]), f"{fmt_si(totals['weight_bytes'], 'B')} in bfloat16"),
        ("Layers", f"{totals['n_layers']}", "drawn once for each distinct block"),
        ("Prefill", fmt_si(totals["prefill_flop"], "FLOP"), "2 per multiply-add, all positions"),
        ("Decode step", fmt_si(totals["decode_flop"], "FLOP"), "one token of each sequence"),
        ("Cache", fmt_si(totals["kv_bytes_per_token"], "B"), "a token, over all layers"),
        ("Activations", fmt_si(totals["peak_activation_bytes"], "B"), "peak of the prefill"),
    ]
    if totals["state_bytes_per_sequence"]:
        state = fmt_si(totals["state_bytes_per_sequence"], "B")
        tiles[4] = (*tiles[4][:2], f"a token, and {state} of state a sequence")
    return tiles


def _parts(graph: OperatorGraph, document: dict[str, Any]) -> tuple[Part, ...]:
    by_name = {row["name"]: row for row in document["operators"]}
    named: list[tuple[str, str, Block]] = [("before", "Before the blocks", graph.prologue)]
    letters = [chr(ord("A") + index) for index in range(len(graph.blocks))]
    named += [(letter, f"Block {letter}", block) for letter, block in zip(letters, graph.blocks, strict=True)]
    named.append(("after", "After the blocks", graph.epilogue))
    totals = {
        (phase, size): sum(_number(row, phase, size) for row in document["operators"])
        for phase in PHASES
        for size in ("flop", "bytes")
    }
    return tuple(_part(graph, key, title, block, by_name, totals) for key, title, block in named if block.ops)


def _in_words(graph: OperatorGraph, block: Block) -> str:
    if not block.layers:
        return ""
    whose = ""
    if graph.n_encoder_layers:
        whose = "encoder, " if block.layers[0] < graph.n_encoder_layers else "decoder, "
    return f"{whose}{plural(len(block.layers), 'layer')}: {layer_ranges(block.layers)}"


def _part(
    graph: OperatorGraph,
    key: str,
    title: str,
    block: Block,
    by_name: dict[str, dict[str, Any]],
    totals: dict[tuple[str, str], int],
) -> Part:
    first = block.layers[0] if block.layers else None
    rows = tuple(_row(by_name[block.full_name(op, first)]) for op in block.ops)
    item = DTYPE_BYTES[graph.dtype]
    shares = []
    for phase in PHASES:
        parts = (
            fmt_percent(block.repeats * sum(row[phase][size] for row in rows) / max(1, totals[phase, size]))
            + f" of {'FLOP' if size == 'flop' else 'bytes'}"
            for size in ("flop", "bytes")
        )
        shares.append(f"{phase} {', '.join(parts)}")
    return Part(
        key, title, _in_words(graph, block), block.layers, draw_block(block, item), rows, " · ".join(shares)
    )


def layer_ranges(layers: tuple[int, ...]) -> str:
    """Return layers in words: ``0–2, 5, 7–9``, or with a step ``0, 2 … 46``."""
    if len(layers) > 3:
        steps = {b - a for a, b in itertools.pairwise(layers)}
        if len(steps) == 1 and steps != {1}:
            return f"{layers[0]}, {layers[1]} … {layers[-1]}"
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in spans)


def _number(row: dict[str, Any], phase: str, size: str) -> int:
    prefix = "" if phase == "prefill" else "decode_"
    if size == "bytes":
        return int(row[f"{prefix}read_bytes"] + row[f"{prefix}write_bytes"])
    return int(row[f"{prefix}flop"] + row[f"{prefix}vector_flop"])


def _row(row: dict[str, Any]) -> dict[str, Any]:
    outputs, inputs = row.get("weight_shape") or (0, 0)
    experts = row.get("experts")
    told = f"{outputs:,} × {inputs:,}" if inputs else ""
    if experts:
        each = outputs // experts["total"]
        told = f"{experts['total']} × {each:,} × {inputs:,}, {experts['per_token']} a token"
    entry: dict[str, Any] = {"kind": row["kind"], "parameters": row["parameters"], "shape": told}
    entry["parameters_text"] = fmt_si(row["parameters"]) if row["parameters"] else "–"
    for phase in PHASES:
        flop, moved = _number(row, phase, "flop"), _number(row, phase, "bytes")
        intensity = flop / moved if moved else 0.0
        entry[phase] = {
            "flop": flop,
            "bytes": moved,
            "intensity": round(intensity, 4),
            "text": {
                "flop": fmt_si(flop, "FLOP"),
                "bytes": fmt_si(moved, "B"),
                "intensity": f"{fmt_significant(intensity)} FLOP/B",
            },
        }
    return entry


def _strip(
    graph: OperatorGraph, parts: tuple[Part, ...], document: dict[str, Any], costs: GraphCosts | None
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Return the distinct rows of numbers, and a cell for each part in model order, which points to its own.

    Layers that share a block have numbers of their own where a plan gives them unlike precisions.
    """
    by_name = {row["name"]: row for row in document["operators"]}
    of_layer = {layer: part for part in parts for layer in part.layers}
    places: list[tuple[Part, Block, int | None]] = [
        (part, graph.prologue, None) for part in parts if part.key == "before"
    ]
    places += [(of_layer[layer], block, layer) for layer, block in enumerate(graph.block_of_layer)]
    places += [(part, graph.epilogue, None) for part in parts if part.key == "after"]
    variants: list[list[dict[str, Any]]] = []
    known: dict[tuple[str, str], int] = {}
    cells = []
    for part, block, layer in places:
        names = [block.full_name(op, layer) for op in block.ops]
        rows = [_numbers(row, by_name[name], name, costs) for row, name in zip(part.rows, names, strict=True)]
        key = (part.key, json.dumps(rows, sort_keys=True))
        if key not in known:
            known[key] = len(variants)
            variants.append(rows)
        label = {"before": "in", "after": "out"}.get(part.key, str(layer))
        path = "" if layer is None else block.path(layer)
        cells.append({"key": part.key, "label": label, "layer": layer, "variant": known[key], "path": path})
    return variants, cells


def _numbers(
    row: dict[str, Any], traced: dict[str, Any], name: str, costs: GraphCosts | None
) -> dict[str, Any]:
    """Return {phase: {measure: number, "text": {measure: words}}} of one operator of one layer."""
    if costs is None:
        return {phase: row[phase] for phase in PHASES}
    entry = {}
    for phase in PHASES:
        priced = costs.numbers[name, phase]
        flop = _number(traced, phase, "flop")
        values = {
            "time_s": priced["time_s"],
            "energy_j": priced["energy_j"],
            "bits": costs.bits.get(name, 0.0),
            "bytes": priced["bytes"],
            "flop": flop,
            "intensity": round(flop / priced["bytes"], 4) if priced["bytes"] else 0.0,
        }
        entry[phase] = {**values, "text": {m.key: _told(values[m.key], m) for m in MEASURES}}
    return entry


def _told(value: float, measure: Measure) -> str:
    if measure.adds_up:
        return fmt_si(value, measure.unit)
    return f"{fmt_significant(value)} {measure.unit}" if value else "–"
