"""``dse devices``: the spec files, every number with its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dse.cli.options import JSON
from dse.cli.output import emit_json, si, table

if TYPE_CHECKING:
    from hardware_specs.spec import HardwareSpec


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("devices")(devices)


def devices(
    name: str | None = typer.Argument(
        None, help="A device, or a YAML file of your own; without it all are listed."
    ),
    as_json: bool = JSON,
) -> None:
    """Show the hardware spec files, every number with its source."""
    from hardware_specs.loader import cluster_names, device_names, load_cluster, load_device

    if name is not None:
        spec = load_device(name)
        if as_json:
            emit_json(_document(spec))
        else:
            _show(spec)
        return
    specs = [load_device(entry) for entry in device_names()]
    if as_json:
        emit_json({"devices": [_summary(spec) for spec in specs], "clusters": list(cluster_names())})
        return
    rows = [
        (
            spec.name,
            spec.device_class,
            si(_peak(spec), "FLOP/s"),
            si(spec.main_memory.capacity_bytes, "B"),
            si(spec.main_memory.bandwidth_bytes_per_s, "B/s"),
            si(spec.power.tdp_w, "W"),
            "unknown" if spec.price_usd_per_h is None else f"{spec.price_usd_per_h:.2f}",
        )
        for spec in specs
    ]
    table(
        "Devices (dense 16-bit peak)",
        ("device", "class", "peak", "memory", "bandwidth", "TDP", "$/h"),
        rows,
        numeric_from=2,
    )
    clusters = [load_cluster(entry) for entry in cluster_names()]
    table(
        "Clusters",
        ("cluster", "devices", "what"),
        [
            (c.name, " + ".join(f"{n.n_devices}x {n.device}" for n in c.nodes), c.description)
            for c in clusters
        ],
        numeric_from=3,
    )


def _peak(spec: HardwareSpec) -> float | None:
    """The native 16-bit rate, where one is published."""
    rates = [
        path.dense_flop_per_s
        for path in spec.compute
        if path.kind in {"bf16", "fp16"} and path.support == "native" and path.dense_flop_per_s is not None
    ]
    return max(rates, default=None)


def _summary(spec: HardwareSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "class": spec.device_class,
        "peak_16bit_flop_per_s": _peak(spec),
        "memory_bytes": spec.main_memory.capacity_bytes,
        "memory_bandwidth_bytes_per_s": spec.main_memory.bandwidth_bytes_per_s,
        "tdp_w": spec.power.tdp_w,
        "price_usd_per_h": spec.price_usd_per_h,
    }


def _document(spec: HardwareSpec) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(spec)


def _show(spec: HardwareSpec) -> None:
    table(
        f"{spec.name}: {spec.description}",
        ("what", "support", "dense rate", "note"),
        [
            (
                path.kind,
                path.support,
                si(path.dense_flop_per_s, "FLOP/s") if path.support == "native" else "",
                f"runs as {path.compute_as}" if path.compute_as else path.reason,
            )
            for path in spec.compute
        ],
        numeric_from=4,
    )
    table(
        "Kernel profiles",
        ("kernel", "of peak", "of bandwidth", "floor", "exponent", "provenance", "source"),
        [
            (
                k.name,
                f"{k.flop_eff_frac:.2f}",
                f"{k.byte_eff_frac:.2f}",
                si(k.floor_s, "s"),
                f"{k.exponent:g}",
                k.provenance,
                k.source,
            )
            for k in spec.kernels
        ],
        numeric_from=7,
    )
    table(
        "Numbers and sources",
        ("path", "value", "unit", "confidence", "source", "note"),
        [(s.path, f"{s.value:.6g}", s.unit, s.confidence, s.source, s.note) for s in spec.sources],
        numeric_from=6,
    )
