"""Blocks of a capacity report about the fleet itself: machines, replicas, levels, times, use, sources."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from reports.blocks import Block, Cell, Chart, Column, Details, Note, Row, Table, Tile, Tiles, Variant, hover
from reports.figures import figure
from reports.theme import series_colour
from reports.units import fmt_percent, fmt_si, fmt_usd, plural

METRIC_WORDS = {"ttft": "first token", "tpot": "each further token", "e2e": "whole answer"}
SHOWN = 3
UNITS = {"energy": "watts", "carbon": "grams of CO2e an hour"}


def fleet_blocks(result: dict[str, Any]) -> tuple[Block, ...]:
    """Tiles with the answer and its proof, machines, replicas and levels."""
    fleet, simulated = result["fleet"], result["simulated"]
    per_mtok = fleet["usd_per_h"] / 3600 / simulated["throughput_tokens_per_s"] * 1e6
    what = f"{fleet['bound']:,.0f}" if fleet["objective"] in UNITS else fmt_usd(fleet["bound"])
    tiles = Tiles(
        (
            Tile(
                "Cost",
                f"{fmt_usd(fleet['usd_per_h'])}/h",
                f"{fleet['status']} among the options",
                "predicted",
            ),
            Tile(
                "No fleet can do it below",
                f"{what} {UNITS.get(fleet['objective'], '')}".strip(),
                f"proven; gap {fmt_percent(fleet['gap_frac'])}, {result['n_options']} kinds of replicas",
            ),
            Tile("Per million tokens", fmt_usd(per_mtok), "generated, simulated load", "predicted"),
            Tile("Energy per token", fmt_si(simulated["energy_j_per_token"], "J"), _static_note(simulated)),
            Tile("Carbon", f"{fleet['carbon_g_per_h'] / 1000:,.2f} kg/h", "CO2e, where idle power is known"),
        )
    )
    verdict: Block
    if result["passed"]:
        turns = len(result["turns"])
        verdict = Note(
            f"The simulated fleet keeps every level after {plural(turns, 'turn')} of solving and simulation.",
            "good",
        )
    else:
        verdict = Note("The simulated fleet misses a level even in the last turn.", "warn")
    return (tiles, verdict, _machines(result), _replicas(result), _levels(result))


def _static_note(simulated: dict[str, Any]) -> str:
    unknown = simulated["energy_excludes_static"]
    return "static power left out where unknown" if unknown else "static power included"


def _machines(result: dict[str, Any]) -> Table:
    offers = {node["name"]: node for node in result["catalogue"]["nodes"]}
    rows = []
    for name, count in result["fleet"]["nodes"].items():
        offer = offers[name]
        price = offer["usd_per_h"]
        rows.append(
            Row(
                (
                    Cell(name, detail=f"{offer['n_devices']}× {offer['device']}"),
                    Cell(str(count), count),
                    Cell("any number" if offer["n_available"] is None else str(offer["n_available"])),
                    Cell(fmt_usd(price), price, detail=offer["price_date"]),
                    Cell(fmt_usd(price * count), price * count),
                )
            )
        )
    columns = (
        Column("Machine"),
        Column("Count", numeric=True),
        Column("Available", numeric=True),
        Column("Price", "$/h", numeric=True),
        Column("Together", "$/h", numeric=True),
    )
    return Table("What to buy or rent", columns, tuple(rows))


def _replicas(result: dict[str, Any]) -> Table:
    rows = []
    for group in result["fleet"]["groups"]:
        most = sorted(group["carries"].items(), key=lambda entry: -entry[1])
        carried = ", ".join(f"{fmt_percent(frac, 0)} of {name}" for name, frac in most[:SHOWN])
        carried += f" and of {plural(len(most) - SHOWN, 'other')}" if len(most) > SHOWN else ""
        bits = ", ".join(f"{n}× {name}" for name, n in group["assignment"].items())
        quality = group["quality"]
        known = quality["perplexity_frac"]
        rows.append(
            Row(
                (
                    Cell(
                        " + ".join(part["node"] for part in group["parts"]),
                        detail=" + ".join(
                            f"{part['n_devices']}× {part['device']}" for part in group["parts"]
                        ),
                    ),
                    Cell(str(group["n_replicas"]), group["n_replicas"]),
                    Cell(group["layout"]),
                    Cell(
                        bits, detail=f"quality {'unknown' if known is None else f'+{known:.2%} perplexity'}"
                    ),
                    Cell(f"{group['batch']:.0f}", group["batch"]),
                    Cell(fmt_si(group["tpot_s"], "s"), group["tpot_s"]),
                    Cell(fmt_percent(group["kv_frac"], 0), group["kv_frac"], bar_frac=group["kv_frac"]),
                    Cell(carried or "spare"),
                )
            )
        )
    columns = (
        Column("Machine"),
        Column("Replicas", numeric=True),
        Column("Layout"),
        Column("Layers and their precision"),
        Column("Batch", tag="predicted", numeric=True),
        Column("TPOT", tag="predicted", numeric=True),
        Column("Cache", tag="predicted", numeric=True),
        Column("Carries"),
    )
    return Table("Replicas, at the operating points of the analytic model", columns, tuple(rows))


def _levels(result: dict[str, Any]) -> Table:
    analytic = list(result["analytic"].values())
    rows = []
    for index, entry in enumerate(result["simulated"]["levels"]):
        passed = entry["passed"]
        rows.append(
            Row(
                (
                    Cell(entry["request_class"], detail=METRIC_WORDS[entry["metric"]]),
                    Cell(f"{entry['metric']} p{entry['percentile']:g}"),
                    Cell(fmt_si(entry["limit_s"], "s"), entry["limit_s"]),
                    Cell(fmt_si(entry["achieved_s"], "s"), entry["achieved_s"]),
                    Cell(fmt_percent(analytic[index]), analytic[index]),
                    Cell(fmt_percent(entry["attained_frac"]), entry["attained_frac"]),
                    Cell("kept" if passed else "missed", tone="good" if passed else "bad"),
                )
            )
        )
    columns = (
        Column("Class"),
        Column("Level"),
        Column("Limit", numeric=True),
        Column("Simulated", tag="predicted", numeric=True),
        Column("Kept by, analytic", tag="predicted", numeric=True),
        Column("Kept by, simulated", tag="predicted", numeric=True),
        Column("Verdict"),
    )
    return Table("Service levels: the closed forms beside the simulation", columns, tuple(rows))


def latency_blocks(result: dict[str, Any]) -> tuple[Block, ...]:
    """Percentiles of every metric over the time of arrival, with the limits."""
    import plotly.graph_objects as go

    series = result["simulated"]["over_time"]
    edges = series["edges_s"]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    variants = []
    for metric, words in METRIC_WORDS.items():
        traces = []
        for index, q in enumerate((50, 95)):
            values = series[f"{metric}_p{q}_s"]
            traces.append(
                go.Scatter(
                    x=middle,
                    y=values,
                    mode="lines",
                    name=f"p{q}",
                    line={"color": series_colour(index), "width": 2},
                    hovertext=[
                        hover(f"p{q} {metric}", fmt_si(v, "s"), f"at {fmt_si(t, 's')}")
                        for t, v in zip(middle, values, strict=True)
                    ],
                    hoverinfo="text",
                )
            )
        traces += [
            go.Scatter(
                x=[edges[0], edges[-1]],
                y=[entry["limit_s"], entry["limit_s"]],
                mode="lines",
                name=f"limit of p{entry['percentile']:g} ({entry['request_class']})",
                line={"color": "#e0533d", "dash": "dash", "width": 1.5},
            )
            for entry in result["simulated"]["levels"]
            if entry["metric"] == metric
        ]
        drawing = figure(
            traces,
            height_px=340,
            xaxis={"title": {"text": "time of arrival [s]"}},
            yaxis={"title": {"text": f"{words} [s]"}, "rangemode": "tozero"},
        )
        variants.append(Variant(f"{metric}: {words}", drawing))
    return (
        Chart(
            "chart-latency",
            "Percentiles over the simulated time",
            "Lines of the median and the 95th percentile of each latency over the time of arrival.",
            tuple(variants),
            picker="Latency",
        ),
    )


def utilisation_blocks(result: dict[str, Any]) -> tuple[Block, ...]:
    """Busy share and cache of the pools over time, and a table of the replicas."""
    import plotly.graph_objects as go

    replicas = result["simulated"]["replicas"]
    edges = result["simulated"]["over_time"]["edges_s"]
    middle = [(a + b) / 2 for a, b in pairwise(edges)]
    pools = list(dict.fromkeys(entry["pool"] for entry in replicas))
    variants = []
    for key, words in (("utilisation_frac", "busy"), ("cache_used_frac", "cache in use")):
        traces = []
        for index, pool in enumerate(pools):
            members = [entry[key] for entry in replicas if entry["pool"] == pool and entry[key] is not None]
            if members:
                mean = [100 * sum(values) / len(values) for values in zip(*members, strict=True)]
                traces.append(
                    go.Scatter(
                        x=middle,
                        y=mean,
                        mode="lines",
                        name=pool,
                        line={"color": series_colour(index), "width": 2},
                    )
                )
        drawing = figure(
            traces,
            height_px=340,
            xaxis={"title": {"text": "time [s]"}},
            yaxis={"title": {"text": f"{words} [%]"}, "range": [0, 103]},
        )
        variants.append(Variant(words, drawing))
    rows = [
        Row(
            (
                Cell(entry["name"]),
                Cell(
                    fmt_percent(entry["busy_frac"]), entry["busy_frac"], bar_frac=min(1, entry["busy_frac"])
                ),
                Cell(fmt_percent(entry["peak_cache_frac"]), entry["peak_cache_frac"]),
                Cell(f"{entry['n_iterations']:,}", entry["n_iterations"]),
            )
        )
        for entry in replicas
    ]
    columns = (
        Column("Replica"),
        Column("Busy", tag="predicted", numeric=True),
        Column("Fullest cache", tag="predicted", numeric=True),
        Column("Iterations", numeric=True),
    )
    simulated = result["simulated"]
    return (
        Chart(
            "chart-use",
            "Use of the pools",
            "Lines of the mean busy share and of the mean share of the cache in use, one per pool.",
            tuple(variants),
            picker="Quantity",
        ),
        Details(
            f"Every replica; {simulated['n_preemptions']} preemptions, {simulated['n_rejected']} rejected",
            (Table("Replicas in the simulation", columns, tuple(rows)),),
        ),
    )


def source_blocks(result: dict[str, Any]) -> tuple[Block, ...]:
    """Where prices come from, what is unknown, and which options are absent."""
    offers = result["catalogue"]["nodes"]
    rows = tuple(
        Row(
            (
                Cell(entry["path"]),
                Cell(f"{entry['value']:,.6g} {entry['unit']}", entry["value"]),
                Cell(entry["confidence"]),
                Cell(entry["source"]),
            )
        )
        for entry in result["catalogue"]["sources"]
    )
    columns = (Column("Number"), Column("Value", numeric=True), Column("Confidence"), Column("Source"))
    unknown = tuple(f"{offer['name']}: {', '.join(offer['unknown'])}" for offer in offers if offer["unknown"])
    absent = tuple(f"{entry['name']}: {entry['reason']}" for entry in result["absent"])
    load = result["study"]["load_source"]
    blocks: list[Block] = [Note(f"Load: {(load or result['load']['name']).rstrip('.')}.")]
    blocks.append(Table(f"Numbers of the catalogue {result['catalogue']['name']}", columns, rows))
    if unknown:
        blocks.append(Details("What is unknown of the machines", (Note("", points=unknown),)))
    if absent:
        blocks.append(Details(f"{plural(len(absent), 'option')} absent", (Note("", points=absent),)))
    return tuple(blocks)
