"""``dse run``: the main job, from a study file or the name of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.output import emit_json, note, si, table
from dse.errors import DseError

if TYPE_CHECKING:
    from studies.result import Point, StudyResult
    from studies.schema import Study


@dataclass(frozen=True)
class RunOptions:
    """Where a study is run and its results lie."""

    out: Path | None = typer.Option(None, "-o", "--out", help="Folder for the results; default runs/NAME.")
    resume: bool = typer.Option(False, "--resume", help="Go on with an interrupted run of the same study.")
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew where an unfinished run lies.")
    device: str | None = options.DEVICE
    as_json: bool = options.JSON


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "run", run)


def run(
    how: RunOptions,
    study: str = typer.Argument(..., help="A preset such as 'demo', or a YAML file of your own."),
) -> None:
    """Search precisions and partition, measure the finalists, write result.json and report.html."""
    from studies.schema import load_study

    execute(load_study(study), how)


def execute(study: Study, how: RunOptions) -> None:
    """Run a study, write its folder and show the front."""
    from dse.cli.progress import ConsoleProgress
    from studies.folder import RunFolder

    out = how.out or Path("runs") / study.name
    folder = RunFolder.open(out, study, resume=how.resume, overwrite=how.overwrite)
    report = folder.path / "report.html"
    with ConsoleProgress() as progress:
        from studies.runner import run_study

        try:
            result = run_study(study, folder, progress, how.device)
        except DseError:
            folder.abandon()
            raise
        report.unlink(missing_ok=True)  # stopped from here on, no page of another result stays
        path = result.write(folder.path)
        progress.step(f"writing the report (as dse report {folder.path} does)")
        from reports.build import write_report

        write_report(result, report)
        folder.finish()
    if how.as_json:
        emit_json({"result": str(path), "report": str(report), "chosen": result.chosen})
        return
    show_front(result)
    note("")
    typer.echo(f"report: {report}")


def show_front(result: StudyResult) -> None:
    """Print the Pareto front, predicted and measured side by side, and what to make of it."""
    quality = ("bits", "ppl measured", "KL measured", "KL predicted")
    columns = ("plan", *quality, "TTFT", "TPOT", "energy/token", "memory")
    measured = [point for point in result.front if point.measured is not None]
    table(
        f"{result.study['name']}: {len(measured)} measured plans of the front "
        f"(full precision: perplexity {result.reference['perplexity']:.2f})",
        columns,
        [_row(point, chosen=point.name == result.chosen) for point in measured],
    )
    table("Uniform plans", columns, [_row(point, chosen=False) for point in result.baselines])
    points = [*measured, *result.baselines]
    for device in sorted({name for point in points for name in point.predicted.energy_excludes_static}):
        typer.echo(f"† without the static power of {device}, which nobody published")
    for point in points:
        if point.predicted.missing_bytes:
            typer.echo(f"! {point.name} exceeds the memory by {si(point.predicted.missing_bytes, 'B')}")
    for row in result.comparisons:
        typer.echo(_comparison(row))
    typer.echo(f"recommended (*): {result.chosen}, {result.chosen_reason}")
    if result.model.get("note"):
        typer.echo(f"note: {result.model['note']}")


def _row(point: Point, *, chosen: bool) -> tuple[str, ...]:
    predicted, measured = point.predicted, point.measured
    return (
        f"{'* ' if chosen else ''}{point.name}",
        f"{predicted.linear_effective_bits:.2f}",
        "-" if measured is None else f"{measured.perplexity:.2f}",
        "-" if measured is None else f"{measured.kl_nats:.4f}",
        f"{predicted.kl_nats:.4f}",
        si(predicted.ttft_s, "s"),
        si(predicted.tpot_s, "s"),
        si(predicted.energy_j_per_token, "J") + ("†" if predicted.energy_excludes_static else ""),
        si(predicted.memory_total_bytes, "B") + ("!" if predicted.missing_bytes else ""),
    )


def _comparison(row: dict[str, object]) -> str:
    """One line on whether a mixed plan beat a uniform one."""
    uniform = f"{row['uniform']} ({row['uniform_bits']:.2f} bits, ppl {row['uniform_perplexity']:.2f})"
    if row["mixed"] is None:
        return f"{uniform}: no measured mixed plan has as few bits"
    mixed = f"{row['mixed']} ({row['mixed_bits']:.2f} bits, ppl {row['mixed_perplexity']:.2f})"
    verb = "is beaten by" if row["wins"] else "is NOT beaten; nearest is"
    return f"{uniform} {verb} {mixed}"
