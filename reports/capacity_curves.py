"""Blocks of a capacity report that answer what people ask next."""

from __future__ import annotations

from typing import Any

from reports.blocks import Block, Cell, Chart, Column, Note, Row, Table, Variant, hover
from reports.figures import figure
from reports.theme import series_colour
from reports.units import fmt_percent, fmt_usd

AXES = {
    "cost-vs-rate": ("rate_per_s", "requests per second"),
    "cost-vs-level": ("factor", "all limits, relative to the study's"),
    "cost-vs-context": ("factor", "length of prompts, relative to the load's"),
}


def _machines(point: dict[str, Any]) -> str:
    return ", ".join(f"{n}× {name}" for name, n in point.get("nodes", {}).items()) or "none"


def cost_curve(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """Dollars per hour and their bound, with the machines of every point."""
    import plotly.graph_objects as go

    del result
    key, axis = AXES[question]
    solved = [point for point in answer["points"] if "usd_per_h" in point]
    traces = [
        go.Scatter(
            x=[point[key] for point in solved],
            y=[point["usd_per_h"] for point in solved],
            mode="lines+markers",
            name="cheapest fleet",
            line={"color": series_colour(0), "width": 2},
            hovertext=[
                hover(f"{fmt_usd(p['usd_per_h'])}/h", f"at {p[key]:.4g}", _machines(p)) for p in solved
            ],
            hoverinfo="text",
        ),
        go.Scatter(
            x=[point[key] for point in solved],
            y=[point["bound"] for point in solved],
            mode="lines",
            name="no fleet below",
            line={"color": series_colour(1), "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        ),
    ]
    log = {"type": "log"} if question == "cost-vs-level" else {}
    drawing = figure(
        traces,
        height_px=340,
        xaxis={"title": {"text": axis}, **log},
        yaxis={"title": {"text": "USD per hour"}, "rangemode": "tozero"},
    )
    chart = Chart(
        f"chart-{question}",
        "Dollars per hour",
        f"Line of the cost of the cheapest fleet against {axis}.",
        (Variant("cost", drawing),),
        caption="Solved among the options most worth their price for the main answer; not simulated.",
    )
    rows = []
    for before, point in zip([None, *answer["points"]], answer["points"], strict=False):
        changed = before is not None and before.get("nodes") != point.get("nodes")
        cost = point.get("usd_per_h")
        rows.append(
            Row(
                (
                    Cell(f"{point.get(key, point['factor']):.4g}", point.get(key, point["factor"])),
                    Cell(
                        "not possible" if cost is None else fmt_usd(cost),
                        cost,
                        detail=point.get("reason", ""),
                    ),
                    Cell(_machines(point), tone="strong" if changed else ""),
                )
            )
        )
    columns = (Column(axis[0].upper() + axis[1:], numeric=True), Column("Cost", "$/h", numeric=True))
    table = Table("The machines at every point", (*columns, Column("Machines")), tuple(rows))
    return (chart, table)


def break_even_map(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """The cheapest machine for every length, with its cost per thousand requests."""
    import plotly.graph_objects as go

    del question
    names = [node["name"] for node in result["catalogue"]["nodes"]]
    prompts, outputs = answer["prompts"], answer["outputs"]
    cells = {(cell["prompt_tokens"], cell["output_tokens"]): cell for cell in answer["cells"]}
    z: list[list[int | None]] = []
    text: list[list[str]] = []
    hovers: list[list[str]] = []
    for output in outputs:
        row: list[int | None] = []
        words: list[str] = []
        tips: list[str] = []
        for prompt in prompts:
            cell = cells.get((prompt, output))
            winner = None if cell is None else cell["winner"]
            row.append(None if winner is None else names.index(winner))
            words.append(
                "" if winner is None or cell is None else f"{winner}<br>${cell['usd_per_1000'][winner]:.3g}"
            )
            costs = {} if cell is None else cell["usd_per_1000"]
            ranked = sorted(costs.items(), key=lambda entry: entry[1])
            tips.append(
                hover(
                    f"{prompt:.0f} + {output:.0f} tokens",
                    *(f"{name}: ${cost:.3g} per 1000 requests" for name, cost in ranked),
                    *(() if ranked else ("no machine keeps the levels",)),
                )
            )
        z.append(row)
        text.append(words)
        hovers.append(tips)
    top = max(1, len(names) - 1)
    scale = []
    for index in range(len(names)):
        scale += [
            [index / len(names), series_colour(index)],
            [(index + 1) / len(names), series_colour(index)],
        ]
    drawing = figure(
        [
            go.Heatmap(
                x=[f"{p:.0f}" for p in prompts],
                y=[f"{n:.0f}" for n in outputs],
                z=z,
                text=text,
                texttemplate="%{text}",
                textfont={"color": "#ffffff"},
                hovertext=hovers,
                hoverinfo="text",
                colorscale=scale,
                zmin=-0.5,
                zmax=top + 0.5,
                showscale=False,
                xgap=2,
                ygap=2,
            )
        ],
        height_px=360,
        xaxis={"title": {"text": "prompt tokens"}, "type": "category"},
        yaxis={"title": {"text": "output tokens"}, "type": "category"},
    )
    chart = Chart(
        "chart-break-even",
        "Cheapest machine for requests of one length",
        "Map of prompt and output length; each cell names the machine with the lowest cost per request.",
        (Variant("winner", drawing),),
        caption="Dollars per thousand requests at the fullest operating point that keeps the levels of the "
        "first class; empty where none does. Whole machines are assumed to be filled.",
    )
    return (chart,)


def quantization_table(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """The 16-bit fleet beside the others, at the same service."""
    del question, result
    if not answer["available"]:
        return (Note(answer["reason"], "warn"),)
    rows = tuple(
        Row(
            (
                Cell(what),
                Cell(fmt_usd(point.get("usd_per_h")), point.get("usd_per_h")),
                Cell(_machines(point), detail=point.get("reason", "")),
            )
        )
        for what, point in answer["fleets"].items()
    )
    saved = answer["saved_frac"]
    words = (
        "No 16-bit fleet keeps the levels."
        if saved is None
        else f"At equal service {fmt_percent(saved)} less."
    )
    columns = (Column("Precisions"), Column("Cost", "$/h", numeric=True), Column("Machines"))
    return (Note(words), Table("Cheapest fleets by precision", columns, rows))


def losses(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """What is left after one machine is gone, and what spares cost."""
    del question
    rows = tuple(
        Row(
            (
                Cell(row["lost"]),
                Cell(str(row["of"]), row["of"]),
                Cell(
                    fmt_percent(row["carried_factor"], 0),
                    row["carried_factor"],
                    bar_frac=min(1.0, row["carried_factor"]),
                ),
            )
        )
        for row in answer["losses"]
    )
    spare = answer["one_more_of_each"]
    now = result["fleet"]["usd_per_h"]
    columns = (
        Column("One machine lost"),
        Column("Of", numeric=True),
        Column("Load carried at the levels", tag="predicted", numeric=True),
    )
    note = Note(
        f"One machine more of each type makes {fmt_usd(spare['usd_per_h'])} an hour instead of "
        f"{fmt_usd(now)}, and no single loss is felt."
    )
    survivor = answer["survivor"]
    if "usd_per_h" in survivor:
        text = (
            f"The cheapest fleet that keeps all levels after the loss of any one machine: "
            f"{_machines(survivor)} for {fmt_usd(survivor['usd_per_h'])} an hour; none is below "
            f"{fmt_usd(survivor['bound'])} (gap {fmt_percent(survivor['gap_frac'])})."
        )
    else:
        text = f"No fleet keeps all levels after the loss of any one machine: {survivor['reason']}."
    return (Table("When one machine fails", columns, rows), Note(text), note)


def price_table(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """The cost at other prices of each machine, and whether the machines change."""
    import plotly.graph_objects as go

    del question
    now = result["fleet"]["usd_per_h"]
    factors = sorted({row["factor"] for row in answer["rows"]})
    names = list(dict.fromkeys(row["node"] for row in answer["rows"]))
    cost = {(row["node"], row["factor"]): row for row in answer["rows"]}
    traces = [
        go.Scatter(
            x=[*[f for f in factors if f < 1], 1.0, *[f for f in factors if f > 1]],
            y=[
                *[cost[name, f].get("usd_per_h") for f in factors if f < 1],
                now,
                *[cost[name, f].get("usd_per_h") for f in factors if f > 1],
            ],
            mode="lines+markers",
            name=name,
            line={"color": series_colour(index), "width": 2},
        )
        for index, name in enumerate(names)
    ]
    drawing = figure(
        traces,
        height_px=340,
        xaxis={"title": {"text": "price of one machine, relative to the catalogue's"}, "type": "log"},
        yaxis={"title": {"text": "cost of the cheapest fleet [USD/h]"}, "rangemode": "tozero"},
    )
    chart = Chart(
        "chart-price",
        "Cost at other prices",
        "Lines of the cost of the cheapest fleet against the price of each machine.",
        (Variant("price", drawing),),
    )
    points = tuple(
        f"{row['node']} at {row['factor']:g} times its price: {_machines(row)}, "
        f"{fmt_usd(row.get('usd_per_h'))}/h"
        for row in answer["rows"]
        if row["changed"]
    )
    return (chart, Note("The machines change at:" if points else "The machines stay.", points=points))


def two_years_chart(question: str, answer: dict[str, Any], result: dict[str, Any]) -> tuple[Block, ...]:
    """The cost of each quarter, and the two totals."""
    import plotly.graph_objects as go

    del question, result
    quarters = [row for row in answer["quarters"] if "usd_per_h" in row]
    drawing = figure(
        [
            go.Bar(
                x=[f"Q{row['quarter']}" for row in quarters],
                y=[row["usd_per_h"] for row in quarters],
                marker={"color": series_colour(0)},
                hovertext=[hover(f"{fmt_usd(row['usd_per_h'])}/h", _machines(row)) for row in quarters],
                hoverinfo="text",
            )
        ],
        height_px=320,
        yaxis={"title": {"text": "USD per hour"}, "rangemode": "tozero"},
    )
    growth = answer["growth_per_year_frac"]
    chart = Chart(
        "chart-growth",
        f"Cheapest fleet of each quarter at {growth:+.0%} load a year",
        "Bars of dollars per hour for eight quarters.",
        (Variant("cost", drawing),),
    )
    if answer["usd_growing"] is None:
        return (chart, Note("Some quarter's load cannot be served with the machines on offer.", "warn"))
    text = (
        f"Two years cost {answer['usd_growing']:,.0f} USD with a fleet for each quarter, and "
        f"{answer['usd_all_at_once']:,.0f} USD with the last quarter's fleet from the beginning."
    )
    return (chart, Note(text))


def other_answers(asked: dict[str, Any]) -> tuple[Block, ...]:
    """What takes a sentence: how much more load fits, spot prices, the least energy, what budgets buy."""
    points: list[str] = [row["text"] for row in asked.get("headroom", {}).get("rows", ())]
    pools = asked.get("pools", {})
    if pools:
        text = pools.get("text") or f"separate pools: not possible ({pools['reason']})"
        points.append(text[0].upper() + text[1:])
        points += [
            f"{entry['n_replicas']}× {entry['name']}" for entry in pools.get("apart", {}).get("pools", ())
        ]
    for name, what in (("spot", "At spot prices"), ("energy", "For the least energy")):
        answer = asked.get(name)
        if answer is None:
            continue
        point = answer.get("energy", answer)
        if answer.get("available") is False or "usd_per_h" not in point:
            points.append(f"{what}: not possible ({answer.get('reason', point.get('reason', 'unknown'))})")
            continue
        watts = f" and {point['energy_w']:,.0f} W" if name == "energy" else ""
        left_out = f"; unknown, so left out: {', '.join(answer['unknown'])}" if answer["unknown"] else ""
        points.append(f"{what}: {_machines(point)} for {fmt_usd(point['usd_per_h'])}/h{watts}{left_out}")
    for row in asked.get("service", {}).get("rows", ()):
        buys = "no fleet" if row["factor"] is None else f"limits {row['factor']:.2f} times the study's"
        points.append(f"{fmt_usd(row['max_usd_per_h'])}/h buys {buys}")
    return (Note("", points=tuple(points)),) if points else ()
