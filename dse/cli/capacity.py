"""``dse capacity``: what to buy for a load and its service levels, judged by simulation."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, si, table
from dse.errors import ConfigError

if TYPE_CHECKING:
    from studies.capacity_schema import CapacityStudy

OBJECTIVES = ("cost", "energy", "carbon", "service")
DEFAULT_LEVELS = "ttft:90:2,tpot:90:0.1"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("capacity")(capacity)


def capacity(
    study: str = typer.Argument(
        ...,
        help="Name of a capacity study, a YAML file of your own, or a model (then with --rate or --trace).",
    ),
    catalogue: str | None = typer.Option(
        None, "--catalogue", help="What can be bought: a name, or a YAML file."
    ),
    trace: Path | None = typer.Option(
        None, "--trace", help="Requests (CSV or JSON lines) instead of the study's distributions."
    ),
    rate: float | None = typer.Option(None, "--rate", help="Requests/s; a trace is scaled to it."),
    duration: float | None = typer.Option(None, "--duration", help="Seconds of a generated load."),
    level: list[str] = typer.Option(
        [], "--level", help="METRIC:PERCENTILE:SECONDS like ttft:p90:2, for all classes; repeatable."
    ),
    precisions: str | None = typer.Option(None, "--precisions", help="Comma-separated choices."),
    objective: str | None = typer.Option(
        None, "--objective", help="cost, energy, carbon; or service (the tightest limits within --budget)."
    ),
    budget: float | None = typer.Option(None, "--budget", help="Dollars per hour at most."),
    max_perplexity: float | None = typer.Option(
        None, "--max-perplexity", help="Largest growth of the perplexity as a share, e.g. 0.01."
    ),
    sensitivity: Path | None = typer.Option(
        None, "--sensitivity", help="JSON of dse sensitivity --metric kl, from which quality is predicted."
    ),
    spot: bool | None = typer.Option(None, "--spot/--on-demand", help="Rent at spot prices where known."),
    separate_pools: bool | None = typer.Option(
        None, "--separate-pools/--one-pool", help="Prefill and decode may have machines of their own."
    ),
    spanning: bool | None = typer.Option(
        None, "--spanning/--one-kind", help="Replicas may span machines of two types."
    ),
    growth: float | None = typer.Option(None, "--growth", help="Growth of the load per year, e.g. 0.5."),
    ask: str | None = typer.Option(
        None, "--ask", help="Comma-separated questions beside the fleet, 'all' or 'none'."
    ),
    seed: int | None = typer.Option(None, "--seed", help="Seed of everything random."),
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Folder for result.json, report.html and the journal."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with the journal in the folder."),
    as_json: bool = options.JSON,
) -> None:
    """Find the cheapest fleet that serves a load at its levels, prove it, and simulate it."""
    from dse.cli.progress import ConsoleProgress
    from studies.capacity_run import run_capacity

    asked = _study_of(study, rate, trace, bool(level))
    asked = _changed(asked, catalogue, trace, rate, duration, level, precisions, objective, budget)
    changes = {
        "max_perplexity_frac": max_perplexity,
        "sensitivity": None if sensitivity is None else str(sensitivity),
        "spot": spot,
        "separate_pools": separate_pools,
        "spanning": spanning,
        "growth_per_year_frac": growth,
        "seed": seed,
        "ask": None if ask is None else _questions(ask),
    }
    known: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    asked = replace(asked, **known)
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
        show(result)
    if not result["passed"]:
        note("the simulation misses a level even in the last turn; see 'levels'")
        raise typer.Exit(3)


def _questions(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def _study_of(name: str, rate: float | None, trace: Path | None, has_levels: bool) -> CapacityStudy:
    """Return the study of a name, or a plain one for a model."""
    from dse.documents import as_file
    from studies.capacity_schema import (
        CapacityStudy,
        ClassSpec,
        LoadSpec,
        capacity_study_names,
        load_capacity_study,
        parse_level,
    )
    from studies.catalogue import model_names

    if as_file(name) is not None or name in capacity_study_names():
        return load_capacity_study(name)
    if rate is None and trace is None:
        raise ConfigError(
            f"no capacity study is called '{name}'; for a model give --rate or --trace",
            value=name,
            allowed=[*capacity_study_names(), *model_names()],
        )
    from dse.capacity.lengths import Lognormal
    from dse.capacity.load import RequestClass

    levels = () if has_levels else tuple(parse_level(text) for text in DEFAULT_LEVELS.split(","))
    usual = ClassSpec(
        RequestClass("all", levels), 1.0, Lognormal(1000.0, 1.0, 8000), Lognormal(200.0, 0.8, 1000)
    )
    load = LoadSpec((usual,), source="lognormal lengths, mean 1000 + 200 tokens")
    return CapacityStudy(f"{name}-capacity", name, "cloud_six", load)


def _changed(
    study: CapacityStudy,
    catalogue: str | None,
    trace: Path | None,
    rate: float | None,
    duration: float | None,
    level: list[str],
    precisions: str | None,
    objective: str | None,
    budget: float | None,
) -> CapacityStudy:
    """Return the study with what the options say."""
    from studies.capacity_schema import parse_level

    for path, value in (("--rate", rate), ("--duration", duration), ("--budget", budget)):
        if value is not None and not value > 0:
            raise ConfigError(f"must be above 0, but is {value:g}", path=path, value=value)
    load = study.load
    if trace is not None:
        load = replace(load, trace=str(trace), source=f"trace {trace.name}")
    if rate is not None:
        load = replace(load, rate_per_s=rate)
    if duration is not None:
        load = replace(load, duration_s=duration)
    study = replace(study, load=load)
    if level:
        study = study.with_levels(tuple(parse_level(text) for text in level))
    if precisions is not None:
        names = tuple(precision.name for precision in options.precisions_of(precisions))
        study = replace(study, precisions=names, mixed=())
    if catalogue is not None:
        study = replace(study, catalogue=catalogue)
    if objective is not None:
        if objective not in OBJECTIVES:
            raise ConfigError("unknown objective", path="--objective", value=objective, allowed=OBJECTIVES)
        study = replace(study, objective=objective)
    study = study if budget is None else replace(study, max_usd_per_h=budget)
    if study.objective == "service" and study.max_usd_per_h is None:
        raise ConfigError("the best service needs a budget", path="--budget")
    return study


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
    from dse.content import write_atomic
    from reports.capacity import write_capacity_report

    write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
    write_capacity_report(result, folder / "report.html")
    note(f"wrote {folder / 'report.html'} and result.json")


def show(result: dict[str, Any]) -> None:
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
