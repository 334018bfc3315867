"""A capacity result in words: the fleet, the proof, the levels and the answers."""

from __future__ import annotations

from typing import Any

import typer

from dse.cli.output import si, table


def show_capacity(result: dict[str, Any]) -> None:
    """Print the fleet, the proof, the levels and the answers."""
    fleet, simulated = result["fleet"], result["simulated"]
    machines = ", ".join(f"{n}x {name}" for name, n in fleet["nodes"].items())
    typer.echo(
        f"{result['model']['name']}, {result['load']['n_requests']} requests at "
        f"{result['load']['rate_per_s']:.3g}/s (planned for {result['planned_rate_per_s']:.3g}/s): {machines}"
    )
    typer.echo(
        f"{fleet['usd_per_h']:.2f} USD/h ({fleet['status']}); no fleet below {fleet['bound']:.2f} "
        f"{_unit(fleet['objective'])} can do it (gap {fleet['gap_frac']:.2%}, among {result['n_options']} "
        "kinds of replicas)"
    )
    if result["limits_factor"] != 1.0:
        typer.echo(f"all limits are {result['limits_factor']:.2f} times the study's")
    rows = [
        (
            group["name"],
            str(group["n_replicas"]),
            str(group["n_devices"]),
            f"{group['batch']:.0f}",
            si(group["tpot_s"], "s"),
            f"{group['kv_frac']:.0%}",
        )
        for group in fleet["groups"]
    ]
    table("Replicas", ("replica", "count", "devices", "batch", "TPOT", "cache"), rows)
    analytic = list(result["analytic"].values())
    levels = [
        (
            f"{entry['request_class']} p{entry['percentile']:g} {entry['metric']}",
            f"{entry['limit_s']:g} s",
            si(entry["achieved_s"], "s"),
            f"{analytic[index]:.1%}",
            f"{entry['attained_frac']:.1%}",
            "yes" if entry["passed"] else "NO",
        )
        for index, entry in enumerate(simulated["levels"])
    ]
    table("Service levels", ("level", "limit", "simulated", "analytic", "kept by", "passed"), levels)
    tokens_per_h = simulated["throughput_tokens_per_s"] * 3600
    typer.echo(
        f"simulated: {simulated['throughput_tokens_per_s']:.0f} tokens/s, "
        f"{fleet['usd_per_h'] / tokens_per_h * 1e6:.2f} USD per million tokens, "
        f"{si(simulated['energy_j_per_token'], 'J')} a token, {len(result['turns'])} turns, "
        f"{result['times']['total_s']:.0f} s"
    )
    for name, answer in result["questions"].items():
        for line in answer_lines(name, answer):
            typer.echo(line)


def _unit(objective: str) -> str:
    return {"energy": "W", "carbon": "g CO2e/h"}.get(objective, "USD/h")


def answer_lines(name: str, answer: dict[str, Any]) -> list[str]:
    """Return an answer in lines of text."""
    if answer.get("available") is False:
        return [f"{name}: {answer['reason']}"]
    if "points" in answer:
        cells = [f"x{p['factor']:g} {_cost(p)}" for p in answer["points"]]
        return [f"{name}: " + ", ".join(cells)]
    if name == "service":
        buys = [
            f"{row['max_usd_per_h']:.2f} USD/h buys "
            + ("nothing" if row["factor"] is None else f"limits x{row['factor']:.2f}")
            for row in answer["rows"]
        ]
        return [f"{name}: " + ", ".join(buys)]
    if name == "break-even":
        wins: dict[str, int] = {}
        for cell in answer["cells"]:
            winner = cell["winner"] or "nothing"
            wins[winner] = wins.get(winner, 0) + 1
        return [f"{name}: " + ", ".join(f"{who} wins {n} lengths" for who, n in wins.items())]
    if name == "quantization":
        fleets = ", ".join(f"{what} {_cost(point)}" for what, point in answer["fleets"].items())
        saved = answer["saved_frac"]
        return [f"{name}: {fleets}" + ("" if saved is None else f"; saves {saved:.0%}")]
    if name == "pools":
        return [f"{name}: {answer['text']}"]
    if name == "headroom":
        return [f"{name}: " + "; ".join(row["text"] for row in answer["rows"])]
    if name == "lose-node":
        lines = [
            f"{name}: without one {row['lost']} {row['carried_factor']:.0%} of the load is carried"
            for row in answer["losses"]
        ]
        return [*lines, f"{name}: {survivor_words(answer['survivor'])}"]
    if name == "two-years":
        growing, once = answer["usd_growing"], answer["usd_all_at_once"]
        if growing is None:
            return [f"{name}: some quarter's load cannot be served"]
        return [
            f"{name}: {growing:,.0f} USD growing by quarters, {once:,.0f} USD with the last fleet at once"
        ]
    if name == "price":
        changed = [f"{r['node']} x{r['factor']:g} ({_cost(r)})" for r in answer["rows"] if r["changed"]]
        return [f"{name}: the machines change at " + (", ".join(changed) or "none of the prices tried")]
    if name == "energy":
        point = answer["energy"]
        return [f"{name}: {_watts(point)} at the least, {_cost(point)}"]
    return [f"{name}: {_cost(answer)}"]


def survivor_words(point: dict[str, Any]) -> str:
    """Return the cheapest fleet that survives the loss of any one machine, in words."""
    if "usd_per_h" not in point:
        return f"no fleet survives the loss of any one machine ({point['reason']})"
    machines = ", ".join(f"{n}x {name}" for name, n in point["nodes"].items())
    return (
        f"the cheapest fleet that survives any one loss is {machines} for {_cost(point)} "
        f"(none below {point['bound']:.2f}, gap {point['gap_frac']:.2%})"
    )


def _cost(point: dict[str, Any]) -> str:
    return f"{point['usd_per_h']:.2f} USD/h" if "usd_per_h" in point else "not possible"


def _watts(point: dict[str, Any]) -> str:
    return si(point.get("energy_w"), "W")
