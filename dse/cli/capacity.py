"""``dse capacity``: what to buy for a load and its service levels, judged by simulation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import typer

from dse.cli import options
from dse.cli.capacity_options import FleetOptions, LoadOptions
from dse.cli.capacity_text import show_capacity
from dse.cli.groups import add_command
from dse.cli.output import emit_json, note
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "capacity", capacity)


def capacity(
    load: LoadOptions,
    fleet: FleetOptions,
    study: str = typer.Argument(
        ...,
        help="Name of a capacity study, a YAML file of your own, or a model (then with --rate or --trace).",
    ),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Folder for result.json, report.html and the journal."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with the journal in the folder."),
    as_json: bool = options.JSON,
) -> None:
    """Find the cheapest fleet that serves a load at its levels, prove it, and simulate it."""
    from dse.cli.progress import ConsoleProgress
    from studies.capacity_run import run_capacity

    asked = fleet.changed(load.study(study))
    if resume and out is None:
        raise ConfigError("needs the folder of the run", path="--resume", value="without -o")
    if out is not None:
        _check_folder(out)
    with ConsoleProgress() as progress:
        result = run_capacity(asked, progress, out, resume=resume)
    if out is not None:
        _write(result, out)
    if as_json:
        emit_json(result)
    else:
        show_capacity(result)
    if not result["passed"]:
        note("the simulation misses a level even in the last turn; see 'levels'")
        raise typer.Exit(3)


def _check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written, before anything is computed; leave nothing behind."""
    first = next(path for path in (*reversed(out.parents), out) if not path.is_dir() or path == out)
    try:
        if out.is_dir():
            with tempfile.TemporaryFile(dir=out):
                return
        first.mkdir()
        first.rmdir()
    except OSError as error:
        text = f"cannot be written: {error.strerror}"
        raise ConfigError(text, path="--out", value=str(out)) from error


def _write(result: dict[str, Any], folder: Path) -> None:
    """Write the result and its page; stopped in between, no page of another result is left beside it."""
    from dse.content import write_atomic
    from reports.capacity import write_capacity_report

    report = folder / "report.html"
    report.unlink(missing_ok=True)
    write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
    note(f"wrote {folder / 'result.json'}; its report, which dse report {folder} makes too, follows")
    write_capacity_report(result, report)
    note(f"wrote {report}")
