"""``dse calibrate``: a device's kernel constants from a user's measurements, as a spec overlay."""

from __future__ import annotations

from pathlib import Path

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("calibrate")(calibrate)


def calibrate(
    device: str = typer.Argument(..., help="Device name, or a YAML file of your own."),
    profile: Path = typer.Option(
        ...,
        "--profile",
        help="CSV with kind, precision, seconds and m, n, k (or batch, query, context, heads, kv_heads, "
        "head_dim for attention).",
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Overlay to write [DEVICE_calibrated.yaml]."
    ),
    source: str = typer.Option("", "--source", help="Where the measurements come from, for the file."),
    as_json: bool = options.JSON,
) -> None:
    """Fit kernel constants to measurements; a few of them update the present constants, many replace them."""
    from dse.calibrate.calibrate import calibrate as fit
    from dse.calibrate.calibrate import overlay_text
    from dse.calibrate.profile_csv import by_profile, read_profile
    from hardware_specs.loader import load_device

    spec = load_device(device)
    groups = by_profile(read_profile(profile, spec))
    said = source or f"dse calibrate: measurements of {profile.name}"
    found = [fit(spec, name, parts, said) for name, parts in groups.items()]
    name = f"{spec.name}_calibrated"
    target = output or Path(f"{name}.yaml")
    target.write_text(overlay_text(spec, name, found, said), encoding="utf-8")
    load_device(target)
    if as_json:
        emit_json({"device": spec.name, "file": str(target), "kernels": [entry.to_json() for entry in found]})
        return
    lines = [
        (
            *(entry.profile.name, str(entry.n_rows), str(entry.n_shapes)),
            *(f"{entry.before:.1%}", f"{entry.after:.1%}"),
            ""
            if entry.profile.interval is None
            else _span(entry.profile.interval.low, entry.profile.interval.high),
            ", ".join(entry.undetermined) or "none",
        )
        for entry in found
    ]
    columns = ("kernel", "rows", "shapes", "before", "held out", "80 % of times", "stay near the prior")
    table(f"{spec.name}: median error, each row left out of its fit", columns, lines)
    note(f"wrote {target}: use it as a device, e.g. dse cost MODEL --device {target}")


def _span(low: float, high: float) -> str:
    return f"{low:.2f}-{high:.2f} x"
