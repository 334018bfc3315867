"""``dse plan``: exact bits, partition and micro-batches, with the proof."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from dse.cli import options, plan_tables
from dse.cli.groups import add_command
from dse.cli.output import emit_json, note
from dse.cli.plan_layout import WholeLayout, layout_document, show_layout
from dse.cli.plan_options import BesideOptions, GoalOptions, SolverOptions, StudyOptions
from dse.cli.plan_text import WHAT, plan_document, show_plan
from dse.errors import NoFeasiblePlan

if TYPE_CHECKING:
    from dse.partition.layout.pipeline import LayoutOptions
    from dse.partition.pareto import Axis
    from dse.partition.problem import Goal
    from studies.schema import Study


class Answer(NamedTuple):
    """What is asked for as a JSON document, and how it is shown to people."""

    document: dict[str, Any]
    show: Callable[[], None]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "plan", plan)


def plan(
    inputs: StudyOptions,
    times: options.LayerTimeOptions,
    aim: GoalOptions,
    solver: SolverOptions,
    whole: WholeLayout,
    beside: BesideOptions,
    model: str = options.MODEL,
    out: Path | None = typer.Option(
        None, "-o", "--out", help="Write the plan (or front) to this JSON file; a front also as .html."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Find the fastest plan that loses no more quality than a uniform one, and prove it.

    Any other objective and any bounds on latency, energy, money and devices may be asked for instead.
    """
    study = inputs.study(model, times)
    goal = aim.goal(study.workload)
    axes, max_increase_frac = beside.axes(), beside.max_increase_frac()
    layout = whole.options(study.workload)
    if layout is not None:
        beside.refuse()
        answer = _layout(study, goal, solver, layout)
    elif axes is not None:
        page = out if out is not None and out.suffix == ".html" else None
        answer = _front(study, goal, solver, axes, beside.front_points, page)
        out = None if page else out
    else:
        answer = _single(study, goal, solver, beside, max_increase_frac)
    if out is not None:
        _write(out, answer.document)
    if as_json:
        emit_json(answer.document)
    else:
        answer.show()


def _layout(study: Study, goal: Goal, solver: SolverOptions, layout: LayoutOptions) -> Answer:
    """Plan with tensor parallelism, chunks, replicas or pools."""
    from dse.cli.progress import ConsoleProgress
    from studies.planning import best_layout

    with ConsoleProgress() as progress:
        planned = best_layout(
            study,
            progress,
            layout,
            max_penalty=solver.max_penalty,
            theta_s=solver.theta,
            time_limit_s=solver.time_limit,
            goal=goal,
            memory_limits=solver.memory_limits(),
        )
    return Answer(
        layout_document(planned, study.workload),
        lambda: show_layout(planned, study.workload, WHAT[goal.objective]),
    )


def _front(
    study: Study,
    goal: Goal,
    solver: SolverOptions,
    axes: tuple[Axis, ...],
    n_points: int,
    page: Path | None,
) -> Answer:
    """Solve a front, and draw it where a page is asked for."""
    from dse.cli.progress import ConsoleProgress
    from studies.comparison import front_of
    from studies.planning import setting_of, uniform_penalty

    with ConsoleProgress() as progress:
        setting = setting_of(study, progress, solver.memory_limits())
        max_penalty = solver.max_penalty
        if max_penalty is None and "quality" not in axes:
            max_penalty = uniform_penalty(setting)
        progress.step("solving the front")
        rows = front_of(
            setting,
            replace(goal, max_penalty=max_penalty),
            axes,
            n_points=n_points,
            time_limit_s=solver.time_limit,
            progress=progress.advance,
        )
        if not rows:
            raise NoFeasiblePlan(setting.arranger.why_infeasible(max_penalty, goal))
    unit = setting.sensitivity.unit
    if page is not None:
        from reports.fronts import write_front_page

        title = f"{study.model} on {setting.prepared.cluster.name}"
        write_front_page(rows, axes, page, title=title, quality_unit=unit)
        note(f"wrote {page}")
    return Answer(
        {"model": study.model, "axes": list(axes), "front": [asdict(row) for row in rows]},
        lambda: plan_tables.show_front(rows, axes, unit),
    )


def _single(
    study: Study, goal: Goal, solver: SolverOptions, beside: BesideOptions, max_increase_frac: float | None
) -> Answer:
    """Plan one pipeline of single devices, with what is asked for beside it."""
    from dse.cli.progress import ConsoleProgress
    from studies.accuracy import plan_within_perplexity
    from studies.comparison import baselines as published
    from studies.planning import fastest_plan
    from studies.what_if import what_if

    limits, verified = solver.memory_limits(), None
    with ConsoleProgress() as progress:
        if max_increase_frac is None:
            found = fastest_plan(
                study,
                progress,
                max_penalty=solver.max_penalty,
                theta_s=solver.theta,
                time_limit_s=solver.time_limit,
                goal=goal,
                memory_limits=limits,
            )
        else:
            verified = plan_within_perplexity(
                study,
                progress,
                max_increase_frac,
                goal=goal,
                time_limit_s=solver.time_limit,
                memory_limits=limits,
            )
            found = verified.planned
        changes = what_if(found, beside.what_if)
        rivals = published(found) if beside.baselines else []
    document = plan_document(found)
    parts: list[Callable[[], None]] = [lambda: show_plan(found)]
    if verified is not None:
        document["perplexity"] = plan_tables.checks_document(verified)
        parts.append(lambda: plan_tables.show_checks(verified))
    if beside.what_if:
        document["what_if"] = [plan_tables.change_document(change) for change in changes]
        parts.append(lambda: plan_tables.show_changes(changes, found.candidate.solution))
    if beside.baselines:
        document["baselines"] = [asdict(row) for row in rivals]
        parts.append(lambda: plan_tables.show_baselines(rivals, found))

    def show() -> None:
        for part in parts:
            part()

    return Answer(document, show)


def _write(out: Path, document: dict[str, Any]) -> None:
    from dse.content import write_atomic

    write_atomic(out, json.dumps(document, indent=1) + "\n")
    note(f"wrote {out}")
