"""Measured or regressed layer times as another source of a cost table's times.

A file of measurements (CSV or JSON) has the columns ``device, precision, phase, batch, tokens, seconds``: one
layer, with ``tokens`` the prompt of a prefill or the cached positions of a decode step. They are used as they
are (``table``: straight lines between measured batches, at the measured lengths only), or through LLM-PQ's
regression (``regression``), so that published plans can be priced as they were published.

LLM-PQ's published tables, by GPU, phase and bits, are read as they are: b bits are ``int{b}_row`` weights
(16: fp16), activations and cache are fp16, and a GPU's short name stands for every device that has it as a
word.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cost_models.regression import N_FEATURES, LinearLatency
from dse.errors import ConfigError
from dse.evaluate.cost_table import PHASES, CostTable
from dse.evaluate.lowering import Phase
from dse.formats.grammar import parse_precision
from dse.graph.workload import Workload

COLUMNS = ("device", "precision", "phase", "batch", "tokens", "seconds")
Method = Literal["table", "regression"]
METHODS: tuple[Method, ...] = get_args(Method)
Key = tuple[str, str, Phase]


@dataclass(frozen=True)
class LayerTime:
    """One measurement of one layer."""

    device: str
    precision: str
    phase: Phase
    batch: float
    tokens: float
    seconds: float


def read_layer_times(path: Path) -> list[LayerTime]:
    """Return the measurements of a CSV, or of a JSON: a list of such objects, or LLM-PQ's tables.

    Raises:
        ConfigError: missing file or column, unknown phase, or a number that is not positive.
    """
    if not path.exists():
        raise ConfigError("there is no such file", file=str(path))
    if path.suffix.lower() == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(rows, dict):
            rows = _published_rows(rows, str(path))
    else:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    return [_layer_time(row, f"row {index}", str(path)) for index, row in enumerate(rows, start=1)]


PUBLISHED_KEYS = ("layer_time_ms", "batch_sizes", "prompt_tokens", "past_tokens")


def _published_rows(tables: Mapping[str, Any], file: str) -> list[dict[str, object]]:
    """Return the rows of LLM-PQ's tables: ``layer_time_ms[GPU][phase][bits]`` over ``batch_sizes``."""
    missing = [key for key in PUBLISHED_KEYS if key not in tables]
    if missing:
        raise ConfigError(
            f"must be a list of measurements, or tables with '{missing[0]}'",
            file=file,
            allowed=PUBLISHED_KEYS,
        )
    tokens = {"prefill": tables["prompt_tokens"], "decode": tables["past_tokens"]}
    rows: list[dict[str, object]] = []
    try:
        for device, phases in tables["layer_time_ms"].items():
            for phase, widths in phases.items():
                for bits, times in widths.items():
                    weights = "fp16" if bits == "16" else f"int{bits}_row"
                    common = {"device": device, "precision": f"{weights}/fp16/fp16", "phase": phase}
                    rows += [
                        {
                            **common,
                            "batch": batch,
                            "tokens": tokens.get(phase, 0),
                            "seconds": float(time) / 1e3,
                        }
                        for batch, time in zip(tables["batch_sizes"], times, strict=True)
                    ]
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"its tables do not fit together: {error}", file=file, path="layer_time_ms"
        ) from error
    return rows


def _layer_time(row: Mapping[str, object], place: str, file: str) -> LayerTime:
    missing = [name for name in COLUMNS if row.get(name) in (None, "")]
    if missing:
        raise ConfigError(f"has no '{missing[0]}'", file=file, path=place, allowed=COLUMNS)
    phase = str(row["phase"])
    if phase not in PHASES:
        raise ConfigError(f"unknown phase '{phase}'", file=file, path=place, value=phase, allowed=PHASES)
    try:
        numbers = [float(str(row[name])) for name in ("batch", "tokens", "seconds")]
    except ValueError as error:
        raise ConfigError(str(error), file=file, path=place) from error
    if min(numbers) <= 0:
        raise ConfigError("batch, tokens and seconds must be positive", file=file, path=place)
    name = parse_precision(str(row["precision"])).name
    return LayerTime(str(row["device"]), name, "prefill" if phase == "prefill" else "decode", *numbers)


class LayerTimes:
    """Times of one layer by device, precision and phase, from measurements.

    Raises:
        ConfigError: a regression has fewer measurements than features.
    """

    def __init__(self, rows: Sequence[LayerTime], method: Method) -> None:
        self.method = method
        self._rows: dict[Key, list[LayerTime]] = {}
        for row in rows:
            self._rows.setdefault((row.device, row.precision, row.phase), []).append(row)
        self._models: dict[Key, LinearLatency] = {}
        if method == "regression":
            self._models = {key: _regression(key, found) for key, found in self._rows.items()}

    def covers(self, device: str, precision: str) -> bool:
        """Return whether both phases were measured."""
        name = self.name_of(device)
        return all((name, precision, phase) in self._rows for phase in PHASES)

    def name_of(self, device: str) -> str:
        """Return the name that the measurements have for a device: its own, or a word of it."""
        measured = {name for name, _, _ in self._rows}
        if device in measured:
            return device
        words = device.lower().split("_")
        return next((name for name in sorted(measured) if name.lower() in words), device)

    def covered_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the micro-batches between the smallest and the largest measured batch; a regression has all.

        Raises:
            ConfigError: none is.
        """
        if self.method == "regression":
            return tuple(sizes)
        batches = [[row.batch for row in rows] for rows in self._rows.values()]
        low, high = max(map(min, batches)), min(map(max, batches))
        found = tuple(size for size in sizes if low <= size <= high)
        if not found:
            raise ConfigError(f"layer times of batches {low:g} to {high:g} cover none of {tuple(sizes)}")
        return found

    def seconds(self, device: str, precision: str, phase: Phase, batch: float, tokens: float) -> float:
        """Return the time of one layer.

        Raises:
            ConfigError: nothing was measured near it, or the regression gives no positive time.
        """
        key = (self.name_of(device), precision, phase)
        what = f"{phase} of a layer on {device} in {precision}, batch {batch:g}, {tokens:g} tokens"
        if key not in self._rows:
            raise ConfigError(f"no layer times for the {what}")
        if self.method == "regression":
            value = float(self._models[key](batch, tokens))
            if value <= 0:
                raise ConfigError(f"the regression gives {value:.3g} s for the {what}")
            return value
        rows = sorted((row.batch, row.seconds) for row in self._rows[key] if row.tokens == tokens)
        batches = [entry[0] for entry in rows]
        if not rows or not batches[0] <= batch <= batches[-1]:
            lengths = sorted({row.tokens for row in self._rows[key]})
            raise ConfigError(
                f"no measurements around the {what}; measured: batches {batches}, lengths {lengths}"
            )
        return float(np.interp(batch, batches, [entry[1] for entry in rows]))


def _regression(key: Key, rows: Sequence[LayerTime]) -> LinearLatency:
    phase = key[2]
    distinct = {(row.batch, row.tokens) for row in rows}
    if len(distinct) < N_FEATURES[phase]:
        raise ConfigError(
            f"a {phase} regression needs {N_FEATURES[phase]} different workloads, "
            f"but {key[0]} in {key[1]} has {len(distinct)}"
        )
    return LinearLatency.fit(
        phase, [row.batch for row in rows], [row.tokens for row in rows], [row.seconds for row in rows]
    )


def with_layer_times(
    table: CostTable, source: LayerTimes, workload: Workload, decode_tokens: float | None = None
) -> CostTable:
    """Return a cost table whose layers take the source's times; energies and sizes stay as they were.

    Args:
        table: one unit per layer, because a measured layer is whole.
        source: measured times; what it does not cover becomes unsupported.
        workload: prompt length. ``decode_tokens`` are the cached positions of the decode step that stands
            for all, the prompt and half of the output as LLM-PQ has it where None.

    Raises:
        ConfigError: units smaller than a layer, or a workload that the source does not cover.
    """
    n_layers = len(table.layer_fixed_bytes)
    if len(table.units) != n_layers:
        raise ConfigError("measured layer times need one unit per layer (granularity 'block')")
    past = workload.prompt_tokens + workload.output_tokens / 2 if decode_tokens is None else decode_tokens
    time_s, supported, reasons = table.unit_time_s.copy(), table.supported.copy(), dict(table.reasons)
    for d, device in enumerate(table.devices):
        for q, precision in enumerate(table.precisions):
            if not source.covers(device, precision.name):
                supported[d, q] = False
                reasons[device, precision.name] = "no measured layer times"
                time_s[:, :, d, :, q] = 0.0
                continue
            supported[d, q] = True
            reasons.pop((device, precision.name), None)
            for m, batch in enumerate(table.micro_batches):
                phases: tuple[tuple[Phase, float], ...] = (
                    ("prefill", float(workload.prompt_tokens)),
                    ("decode", float(past)),
                )
                for p, (phase, tokens) in enumerate(phases):
                    time_s[p, m, d, :, q] = source.seconds(device, precision.name, phase, batch, tokens)
    return replace(
        table,
        unit_time_s=time_s,
        layer_time_s=np.zeros_like(table.layer_time_s),
        unit_span_s=np.stack([time_s, time_s]),
        layer_span_s=np.zeros_like(table.layer_span_s),
        supported=supported,
        reasons=reasons,
        provenance="measured",
    )
