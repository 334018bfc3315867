"""How ``dse devices`` prints: the list, everything about one device or one cluster."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import typer

from dse.cli.device_text import UNKNOWN, known_si, per_watt, plain, size
from dse.cli.output import plain_table, si, table
from hardware_specs.derived import (
    bandwidth_bytes_per_s,
    best_rate,
    capacity_bytes,
    efficiency_flop_per_s_per_w,
    ridge_flop_per_byte,
)
from hardware_specs.sanity import check, findings, rate_16_bit
from hardware_specs.spec import Cluster, HardwareSpec, Link, MemoryTier

NARROW = 120
COLUMNS = (
    "device",
    "class",
    "16-bit",
    "best",
    "memory",
    "bandwidth",
    "TDP",
    "ridge",
    "per watt",
    "$/h",
    "year",
    "",
)
NARROW_COLUMNS = (0, 2, 4, 5, 6)


def show_all(specs: Sequence[HardwareSpec], clusters: Sequence[Cluster]) -> None:
    """Print one line per device and per cluster; a narrow terminal gets fewer columns."""
    narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < NARROW
    shown = NARROW_COLUMNS if narrow else tuple(range(len(COLUMNS)))
    rows = [_list_row(spec) for spec in specs]
    plain_table(
        f"{len(specs)} devices: dense peaks, - where nothing is published",
        [COLUMNS[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        numeric_from=1 if narrow else 2,
    )
    if clusters:
        plain_table(
            "Clusters",
            ("cluster", "devices", "what"),
            [(c.name, _members(c), c.description) for c in clusters],
            numeric_from=3,
        )


def _list_row(spec: HardwareSpec) -> tuple[str, ...]:
    best = best_rate(spec)
    return (
        spec.name,
        spec.device_class,
        known_si(rate_16_bit(spec), "FLOP/s"),
        UNKNOWN if best is None else f"{si(best[1], 'OP/s')} {best[0]}",
        size(capacity_bytes(spec)),
        known_si(bandwidth_bytes_per_s(spec), "B/s"),
        known_si(spec.power.tdp_w, "W"),
        plain(ridge_flop_per_byte(spec), "FLOP/B"),
        per_watt(efficiency_flop_per_s_per_w(spec)),
        UNKNOWN if spec.price_usd_per_h is None else f"{spec.price_usd_per_h:.2f}",
        UNKNOWN if spec.year is None else str(spec.year),
        "" if spec.availability == "shipping" else spec.availability,
    )


def show_cluster(cluster: Cluster) -> None:
    """Print everything about a cluster, every number with its source."""
    price = "unknown" if cluster.price_usd_per_h is None else f"{cluster.price_usd_per_h:.2f} $/h"
    typer.echo(f"{cluster.name}: {cluster.description}")
    typer.echo(f"  {len(cluster.devices)} devices, {price}; {cluster.source}")
    table(
        "Nodes",
        ("node", "devices", "memory each", "16-bit each", "joined by", "bandwidth", "host memory"),
        [
            (
                node.name,
                f"{node.n_devices}x {node.device}",
                size(cluster.capacity_bytes(f"{node.name}/0")),
                known_si(rate_16_bit(cluster.specs[node.device]), "FLOP/s"),
                UNKNOWN if node.intra_link is None else node.intra_link.name,
                UNKNOWN if node.intra_link is None else si(node.intra_link.bandwidth_bytes_per_s, "B/s"),
                ", ".join(f"{size(tier.capacity_bytes)} {tier.kind}" for tier in node.host_memory) or UNKNOWN,
            )
            for node in cluster.nodes
        ],
        numeric_from=7,
    )
    if cluster.inter_link is not None:
        table(
            "Link between nodes, per device and direction",
            ("link", "kind", "bandwidth", "to one peer", "start", "joins", "up to"),
            [_link(cluster.inter_link)],
            numeric_from=7,
        )
    table(
        "Numbers and sources",
        ("path", "value", "unit", "confidence", "source", "note"),
        [(s.path, f"{s.value:.6g}", s.unit, s.confidence, s.source, s.note) for s in cluster.sources],
        numeric_from=6,
    )


def _members(cluster: Cluster) -> str:
    return " + ".join(f"{node.n_devices}x {node.device}" for node in cluster.nodes)


def show_one(spec: HardwareSpec) -> None:
    """Print everything about a device, every number with its source."""
    _head(spec)
    table(
        "Compute kinds",
        ("kind", "support", "dense rate", "note"),
        [
            (
                path.kind,
                path.support,
                known_si(path.dense_flop_per_s, "FLOP/s") if path.support == "native" else "",
                f"runs as {path.compute_as}" if path.compute_as else path.reason,
            )
            for path in spec.compute
        ],
        numeric_from=4,
    )
    if spec.incomplete_reason is None:
        _pairs(spec)
    table(
        "Memory, fast to slow",
        ("tier", "kind", "holds", "where", "capacity", "bandwidth"),
        [_tier(tier) for tier in spec.memory],
        numeric_from=4,
    )
    if spec.links:
        table(
            "Links, per device and direction",
            ("link", "kind", "bandwidth", "to one peer", "start", "joins", "up to"),
            [_link(link) for link in spec.links],
            numeric_from=7,
        )
    if spec.incomplete_reason is None:
        _kernels(spec)
    table(
        "Numbers and sources",
        ("path", "value", "unit", "confidence", "source", "note"),
        [(s.path, f"{s.value:.6g}", s.unit, s.confidence, s.source, s.note) for s in spec.sources],
        numeric_from=6,
    )


def _head(spec: HardwareSpec) -> None:
    power = spec.power
    facts = [spec.vendor, spec.device_class, spec.availability]
    facts += [str(spec.year)] if spec.year else []
    facts += [f"{spec.process_nm:g} nm"] if spec.process_nm else []
    facts += [f"{spec.n_cores} cores"] if spec.n_cores else []
    facts += [si(spec.clock_hz, "Hz")] if spec.clock_hz else []
    typer.echo(f"{spec.name}: {spec.description}")
    typer.echo(f"  {', '.join(facts)}")
    watts = [f"TDP {known_si(power.tdp_w, 'W')}", f"static {known_si(power.static_w, 'W')}"]
    watts += [f"typical {known_si(power.typical_w, 'W')}"] if power.typical_w else []
    typer.echo(f"  {', '.join(watts)}{f' ({power.static_note})' if power.static_note else ''}")
    if spec.price_usd_per_h is not None:
        typer.echo(f"  {spec.price_usd_per_h:.2f} $/h ({spec.price_date or 'undated'})")
    if spec.sparsity is not None:
        typer.echo(f"  sparsity: {spec.sparsity.statement}")
    if spec.incomplete_reason:
        typer.echo(f"  {spec.incomplete_reason}")
    for what, why in spec.missing.items():
        typer.echo(f"  missing {what}: {why}")
    for found in findings(spec):
        if found.rule in spec.exceptions:
            typer.echo(f"  unusual: {found.text} ({spec.exceptions[found.rule]})")
    for found in check(spec):
        typer.echo(f"  ODD, a slip? {found.rule}: {found.text}")


def _pairs(spec: HardwareSpec) -> None:
    from dse.evaluate.operand_pairs import operand_pairs

    table(
        "Products of weights x activations",
        ("weights", "activations", "support", "runs as", "dense rate", "kernel", "why not"),
        [
            (
                row.weights,
                row.activations,
                row.support,
                row.compute or "",
                "" if row.rate_flop_per_s is None else si(row.rate_flop_per_s, "FLOP/s"),
                row.kernel,
                row.reason,
            )
            for row in operand_pairs(spec)
        ],
        numeric_from=7,
    )


def _kernels(spec: HardwareSpec) -> None:
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


def _tier(tier: MemoryTier) -> tuple[str, ...]:
    holds = [word for word, yes in (("weights", tier.weights), ("KV", tier.kv)) if yes]
    where = tier.scope if tier.via is None else f"{tier.scope}, over {tier.via}"
    return (
        f"{tier.name} (main)" if tier.main else tier.name,
        tier.kind,
        ", ".join(holds) or "cache",
        where,
        size(tier.capacity_bytes),
        known_si(tier.bandwidth_bytes_per_s, "B/s"),
    )


def _link(link: Link) -> tuple[str, ...]:
    topology = link.topology
    joins = UNKNOWN if topology is None else topology.kind.replace("_", " ")
    if topology is not None and topology.dims:
        joins += f" {'x'.join(map(str, topology.dims))}"
    if topology is not None and topology.note:
        joins += f" ({topology.note})"
    return (
        link.name,
        link.kind,
        si(link.bandwidth_bytes_per_s, "B/s"),
        si(link.peer_bandwidth_bytes_per_s, "B/s"),
        si(link.latency_s, "s"),
        joins,
        UNKNOWN if link.max_devices is None else f"{link.max_devices} devices",
    )
