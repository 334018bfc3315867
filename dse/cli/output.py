"""Where output goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def emit_json(document: Any) -> None:
    """Write one JSON document to stdout and nothing else."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False))


def fail(message: str, exit_code: int) -> int:
    """Write one error line to stderr and return the exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return exit_code


def note(message: str) -> None:
    """Write one line of progress or advice to stderr."""
    typer.echo(message, err=True)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int = 1
) -> None:
    """Print a table to stdout; columns from ``numeric_from`` on are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 200
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="right" if index >= numeric_from else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console(width=width, highlight=False, markup=False).print(drawn)


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int = 1
) -> None:
    """Print a long table of short cells to stdout, many times faster than ``table``; nothing is folded."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if index >= numeric_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + 2 * len(widths) - 2)
    typer.echo("\n".join([title, "", line(columns), rule, *map(line, rows), ""]))


def si(value: float | None, unit: str, digits: int = 3) -> str:
    """Return a number with an SI prefix, e.g. ``12.3 ms``; None is written as "unknown"."""
    if value is None:
        return "unknown"
    if value == 0:
        return f"0 {unit}"
    for factor, prefix in (
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
    ):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"


def fold_layers(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return (name with ``*`` for the layer, how many, first row) of rows that are equal but for the layer.

    Args:
        rows: each has a ``name``; the others of ``keys`` must be equal for two rows to be folded.
        keys: what makes rows equal.
    """
    folded: dict[tuple[Any, ...], tuple[str, int, dict[str, Any]]] = {}
    for row in rows:
        name = re.sub(r"\.\d+\.", ".*.", row["name"], count=1)
        key = (name, *(row[k] for k in keys))
        _, count, first = folded.get(key, (name, 0, row))
        folded[key] = (name, count + 1, first)
    return list(folded.values())
