"""A user's measurements: a CSV with one kernel per row.

Columns: ``kind`` (matmul, attention_prefill, attention_decode), ``precision`` (as everywhere, e.g. ``bf16``,
``int4_g128``, ``int8_row/int8_token/bf16``; of attention only the KV format counts), ``seconds``, and for
products ``m, n, k`` of y[m, n] = x[m, k] W[n, k], for attention ``batch, query, context, heads, kv_heads,
head_dim`` (a decode has query 1). Columns of the other kind may be empty or absent; further columns are
ignored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dse.calibrate.rows import Array, AttentionSizes, Measured, attention_rows, matmul_rows
from dse.errors import ConfigError
from dse.evaluate.lowering import Phase
from dse.formats.grammar import parse_precision
from hardware_specs.spec import HardwareSpec

KINDS = ("matmul", "attention_prefill", "attention_decode")
MATMUL_COLUMNS = ("m", "n", "k")
ATTENTION_COLUMNS = ("batch", "query", "context", "heads", "kv_heads", "head_dim")


def read_profile(path: Path, spec: HardwareSpec) -> list[Measured]:
    """Return the measurements of a file, one entry per kind and precision.

    Raises:
        ConfigError: missing file or column, or a value that is no positive number, with its line.
        UnsupportedOnDevice: the device has no kernel for a precision.
    """
    if not path.exists():
        raise ConfigError("there is no such file", file=str(path))
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in ("kind", "precision", "seconds") if name not in (reader.fieldnames or [])]
        if missing:
            raise ConfigError(
                f"has no column '{missing[0]}'", file=str(path), allowed=list(reader.fieldnames or [])
            )
        groups: dict[tuple[str, str], list[Array]] = {}
        for line, row in enumerate(reader, start=2):
            kind = (row["kind"] or "").strip()
            if kind not in KINDS:
                raise ConfigError(
                    f"unknown kind '{kind}'", file=str(path), path=f"line {line}", value=kind, allowed=KINDS
                )
            columns = MATMUL_COLUMNS if kind == "matmul" else ATTENTION_COLUMNS
            numbers = [_number(row.get(name), name, path, line) for name in (*columns, "seconds")]
            groups.setdefault((kind, (row["precision"] or "").strip()), []).append(np.array(numbers))
    if not groups:
        raise ConfigError("holds no measurements", file=str(path))
    return [_measured(kind, name, np.stack(rows), spec) for (kind, name), rows in groups.items()]


def _number(text: str | None, name: str, path: Path, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"'{name}' must be a positive number, but is '{text or ''}'", file=str(path), path=f"line {line}"
        )
    return value


def _measured(kind: str, name: str, table: Array, spec: HardwareSpec) -> Measured:
    precision = parse_precision(name)
    label = f"{kind} {name}"
    if kind == "matmul":
        m, n, k, seconds = table.T
        return matmul_rows(label, spec, precision, m, n, k, seconds)
    phase: Phase = "prefill" if kind == "attention_prefill" else "decode"
    return attention_rows(label, spec, precision.kv, phase, AttentionSizes(*table.T[:6]), table.T[6])


def by_profile(parts: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Return the measurements by the kernel profile that they belong to."""
    groups: dict[str, list[Measured]] = {}
    for part in parts:
        groups.setdefault(part.work.profile, []).append(part)
    return groups
