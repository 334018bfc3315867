"""``dse bench``: predictions against measured kernels, speed, and refitting the shipped constants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.bench_capacity import capacity
from dse.cli.bench_emulation import emulation
from dse.cli.bench_planner import planner
from dse.cli.bench_quantizers import quantizers
from dse.cli.output import emit_json, note, si, table

if TYPE_CHECKING:
    from dse.calibrate.fidelity import FidelityRow, SignRow

commands = typer.Typer(no_args_is_help=True, help="Predictions against measured kernels; speed; refitting.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    commands.command("emulation")(emulation)
    commands.command("planner")(planner)
    commands.command("capacity")(capacity)
    commands.command("quantizers")(quantizers)
    app.add_typer(commands, name="bench")


@commands.command("fidelity")
def fidelity(
    operator: list[str] = typer.Option(
        [], "--operator", help="gemm, attention_prefill, attention_decode, all_reduce; repeatable."
    ),
    device: list[str] = typer.Option([], "--device", help="Only this device; repeatable."),
    rows: int = typer.Option(2000, "--rows", min=10, help="Rows of each table that are scored."),
    vidur: Path | None = typer.Option(
        None, "--vidur", help="Folder with Vidur's measured CSVs, scored as another library."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Compare predictions with measured kernels, beside a naive roofline (needs the extra ``bench``)."""
    from dse.calibrate.fidelity import fidelity as benchmark
    from dse.calibrate.fidelity import signs
    from dse.calibrate.tables import WHEEL, series_of

    chosen = series_of(operator, device)
    scored = list(benchmark(chosen, rows, None if as_json else note))
    if vidur is not None:
        from dse.calibrate.vidur import vidur_fidelity

        scored += vidur_fidelity(vidur)
    sign = list(signs(chosen))
    if as_json:
        emit_json(
            {
                "source": WHEEL,
                "rows": [row.to_json() for row in scored],
                "signs": [row.to_json() for row in sign],
            }
        )
        return
    _show_scores(f"Predicted against measured kernels ({WHEEL})", scored)
    _show_signs(sign)


def _show_scores(title: str, rows: Iterable[FidelityRow]) -> None:
    columns = ("class", "format", "device", "library", "shapes", "n", "median", "mean", "by time", "rho")
    lines: list[Sequence[str]] = []
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.1%}"
        verdict = {None: "", True: "yes", False: "NO"}[row.passes]
        coverage = "" if row.coverage is None else f"{row.coverage:.0%}"
        lines.append(
            (
                *(row.operator, row.format, row.device, row.library, row.split, str(row.n)),
                *(
                    f"{row.model.median_ape:.1%}",
                    f"{row.model.mean_ape:.1%}",
                    f"{row.model.weighted_ape:.1%}",
                ),
                *(f"{row.model.spearman:.3f}", f"{row.naive.median_ape:.0%}", coverage, bar, verdict),
            )
        )
    table(title, (*columns, "naive", "in 80 %", "bar", "within"), lines, numeric_from=5)


def _show_signs(rows: Iterable[SignRow]) -> None:
    lines = [
        (
            *(row.device, row.format, row.split, str(row.n), f"{row.right:.1%}"),
            *(str(row.n_clear), f"{row.right_clear:.1%}", f"{row.lower_is_faster:.1%}"),
        )
        for row in rows
    ]
    columns = (
        "device",
        "format",
        "shapes",
        "n",
        "sign right",
        "n > 5 %",
        "sign right",
        "fewer bits are faster",
    )
    table("Which of two formats is faster, against bf16", columns, lines, numeric_from=3)


@commands.command("fit")
def fit(
    write: bool = typer.Option(False, "--write", help="Write the constants into the packaged spec files."),
    rows: int = typer.Option(8000, "--rows", min=100, help="Rows of each table that are fitted."),
) -> None:
    """Fit the shipped constants again from the tables (needs the extra ``bench``)."""
    from dse.calibrate import refit, ship

    note("reading the tables of the calibration devices")
    parts = refit.fitted_parts(rows)
    note("fitting devices, classes of devices and links")
    devices = refit.fit_devices(parts)
    classes = {name: refit.fit_family(parts, members) for name, members in refit.FAMILIES.items()}
    own, shared = refit.fit_collectives()
    for name, kernels in {**devices, **classes}.items():
        typer.echo(f"# {name}\n{ship.kernels_text(kernels)}")
    if write:
        for name, kernels in devices.items():
            ship.write_device(name, kernels, own.get(name, ()))
        ship.write_defaults(classes, shared)
        note("written")


PRECISIONS = (
    *("bf16", "int3_g64", "int4_g64", "int4_g128", "int8_row"),
    *("int4_g64/bf16/int8_head", "int8_row/bf16/int8_head", "int8_row/int8_token/bf16"),
)


@commands.command("speed")
def speed(
    model: str = typer.Argument("llama-3.1-70b", help="Model to price; 80 blocks by default."),
    device: str = typer.Option("nvidia_h100_sxm", "--device", help="Device to price it on."),
    as_json: bool = options.JSON,
) -> None:
    """Measure how long pricing takes: one operator, and a whole model in all precisions."""
    from dse.calibrate.speed import measure_speed
    from dse.graph.cache import load_graph
    from hardware_specs.loader import load_device
    from studies.catalogue import resolve_model

    found = measure_speed(load_graph(resolve_model(model)), load_device(device), PRECISIONS)
    if as_json:
        emit_json(found.to_json())
        return
    typer.echo(
        f"{found.model} on {found.device}: {found.n_layers} blocks, {found.n_precisions} precisions, "
        f"{found.n_points} micro-batch sizes"
    )
    typer.echo(f"one operator {si(found.operator_s, 's')}, one workload point {si(found.point_s, 's')}")
    typer.echo(
        f"a point asked for alone {si(found.alone_s, 's')}, the first one of a model {si(found.first_s, 's')}"
    )
    typer.echo(
        f"the table {si(found.table_s, 's')}; one by one {si(found.loop_s, 's')} a point: {found.ratio:.0f} x"
    )
