"""``dse devices``: the spec files — a table, everything about one, several side by side, plots of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from dse.cli.options import JSON
from dse.cli.output import emit_json, note

if TYPE_CHECKING:
    from hardware_specs.spec import HardwareSpec


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("devices")(devices)


def devices(
    names: list[str] | None = typer.Argument(
        None,
        metavar="[NAME]...",
        help="Devices (or YAML files of your own): one is shown, several compared; or one cluster.",
    ),
    sort: str = typer.Option(
        "name",
        "--sort",
        help="name, class, year, peak, best, memory, bandwidth, ridge, tdp, efficiency, price.",
    ),
    device_class: str | None = typer.Option(
        None, "--class", help="Only one class, e.g. datacenter_gpu, edge_gpu, npu, asic."
    ),
    plot: Path | None = typer.Option(
        None, "--plot", help="Write peak against power and the roofs as one HTML file; names are highlighted."
    ),
    as_json: bool = JSON,
) -> None:
    """Show the hardware spec files, every number with its source."""
    from dse.cli.device_comparison import show_comparison
    from dse.cli.device_tables import show_all, show_one
    from dse.cli.device_values import document, ordered, summary
    from hardware_specs.loader import cluster_names, device_names, load_cluster, load_device

    if names and len(names) == 1 and names[0] in cluster_names():
        _cluster(names[0], as_json=as_json)
        return
    chosen = [load_device(name) for name in names or ()]
    if plot is not None:
        _write_plot(plot, chosen, device_class)
        return
    if chosen:
        if as_json:
            _emit([document(spec) for spec in chosen])
        elif len(chosen) == 1:
            show_one(chosen[0])
        else:
            show_comparison(chosen)
        return
    specs = ordered(_of_class([load_device(name) for name in device_names()], device_class), sort)
    if as_json:
        emit_json({"devices": [summary(spec) for spec in specs], "clusters": list(cluster_names())})
        return
    show_all(specs, [] if device_class else [load_cluster(name) for name in cluster_names()])


def _emit(documents: list[dict[str, Any]]) -> None:
    emit_json(documents[0] if len(documents) == 1 else {"devices": documents})


def _cluster(name: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from dse.cli.device_tables import show_cluster
    from hardware_specs.loader import load_cluster

    cluster = load_cluster(name)
    if as_json:
        emit_json(asdict(cluster))
    else:
        show_cluster(cluster)


def _of_class(specs: list[HardwareSpec], device_class: str | None) -> list[HardwareSpec]:
    from dse.errors import ConfigError
    from hardware_specs.spec import DeviceClass

    classes = get_args(DeviceClass)
    if device_class is not None and device_class not in classes:
        raise ConfigError(f"unknown class '{device_class}'", value=device_class, allowed=classes)
    return [spec for spec in specs if device_class in (None, spec.device_class)]


def _write_plot(path: Path, chosen: list[HardwareSpec], device_class: str | None) -> None:
    """Write the page of all devices (of a class); a user's own files are added to the packaged ones."""
    from hardware_specs.loader import device_names, load_device
    from reports.devices import write_devices_page

    known = {name: load_device(name) for name in device_names()}
    known |= {spec.name: spec for spec in chosen}
    specs = _of_class(list(known.values()), device_class)
    specs += [spec for spec in chosen if spec not in specs]
    write_devices_page(specs, path, highlighted=tuple(spec.name for spec in chosen))
    note(f"wrote {path}")
