"""``dse report``: a finished study as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from dse.cli.options import JSON
from dse.cli.output import emit_json
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report")(report)


def report(
    result: Path = typer.Argument(..., help="A result.json, or the folder that holds it."),
    output: Path | None = typer.Option(None, "-o", "--out", help="Default: report.html beside the result."),
    as_json: bool = JSON,
) -> None:
    """Rebuild the report of a result, byte for byte, with no model at hand."""
    from studies.result import StudyResult

    path = result / "result.json" if result.is_dir() else result
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", file=str(path)) from error
    target = output or path.with_name("report.html")
    capacity = _capacity(text)
    if capacity is not None:
        from reports.capacity import write_capacity_report

        write_capacity_report(capacity, target)
    else:
        from reports.build import write_report

        write_report(StudyResult.from_json(text, file=str(path)), target)
    if as_json:
        emit_json({"report": str(target)})
    else:
        typer.echo(str(target))


def _capacity(text: str) -> dict[str, Any] | None:
    """Return the document of a capacity plan, None for anything else."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) and document.get("kind") == "capacity" else None
