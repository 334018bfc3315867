"""The walk of capacity planning: options, fleet, simulation, questions, one result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dse.capacity.asked import Asked
from dse.capacity.assemble import Terms
from dse.capacity.fleet import FleetObjective
from dse.capacity.judge import pool_name
from dse.capacity.load import Load
from dse.capacity.loop import Iteration, plan_and_judge
from dse.capacity.market import Answer, Market
from dse.capacity.options import Absent, Bits, Building, replica_options, uniform_bits
from dse.capacity.planned import Choice, planned_options
from dse.capacity.questions import (
    MOST_SERVICE,
    QUESTIONS,
    best_service,
    checked_questions,
    with_limits_scaled,
)
from dse.capacity.replica import Batching
from dse.capacity.spanning import spanning_options
from dse.content import write_atomic
from dse.errors import ConfigError, NoFeasiblePlan
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit, units_of
from dse.sensitivity.table import SensitivityTable
from hardware_specs.catalogue import Catalogue, load_catalogue
from hardware_specs.loader import load_runtime
from hardware_specs.spec import RuntimeProfile
from studies.capacity_schema import CapacityStudy
from studies.catalogue import resolve_model
from studies.progress import StudyProgress

SCHEMA_VERSION = 1
KIND = "capacity"
RELAXING = 1.1


class Journal:
    """What a run has finished, in one JSON file that is replaced whole; another study's is not continued."""

    def __init__(self, path: Path | None, key: str, *, resume: bool) -> None:
        """Open the journal; ``path`` None keeps nothing.

        Raises:
            ConfigError: the file is damaged, or of another study.
        """
        self.path = path
        self._content: dict[str, Any] = {"key": key, "turns": [], "answers": {}}
        if path is not None and resume and path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError("is damaged; run without --resume", file=str(path)) from error
            if found.get("key") != key:
                raise ConfigError("is of another study or load; run without --resume", file=str(path))
            self._content = found
        elif path is not None:
            path.unlink(missing_ok=True)

    def turn(self, factor: float, derating: dict[str, float]) -> dict[str, Any] | None:
        """Return the turn with this factor on the limits and these deratings, if it was finished."""
        for entry in self._content["turns"]:
            if entry["derating"] == derating and entry["limits_factor"] == factor:
                found: dict[str, Any] = entry
                return found
        return None

    def keep_turn(self, factor: float, turn: Iteration) -> None:
        """Write a turn down."""
        if self.turn(factor, turn.derating) is None:
            self._content["turns"].append({"limits_factor": factor, **turn.to_json()})
            self._write()

    def answer(self, question: str) -> dict[str, Any] | None:
        """Return the answer of a question, if it was finished."""
        found: dict[str, Any] | None = self._content["answers"].get(question)
        return found

    def keep_answer(self, question: str, answer: dict[str, Any]) -> None:
        """Write an answer down."""
        self._content["answers"][question] = answer
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_atomic(self.path, json.dumps(self._content))


def run_capacity(
    study: CapacityStudy, progress: StudyProgress, folder: Path | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """Plan the fleet, judge it by simulation, answer the questions, and return the result document.

    Args:
        study: the inputs.
        progress: told the steps.
        folder: for the journal; None keeps nothing.
        resume: go on with the journal that lies there.

    Raises:
        ConfigError: a name or value is not allowed.
        NoFeasiblePlan: no fleet will do; the text says which level breaks first or what is short.
    """
    began = time.monotonic()
    questions = checked_questions(study.ask)
    load = study.load.load(study.seed)
    catalogue, runtime = load_catalogue(study.catalogue), load_runtime(study.runtime)
    graph = load_graph(resolve_model(study.model))
    longest = load.max_context
    if graph.max_context is not None and longest > graph.max_context:
        raise ConfigError(
            f"the longest request has {longest} tokens, but {graph.model} ends at {graph.max_context}",
            path="load",
        )
    journal = Journal(None if folder is None else folder / "journal.json", study.key(load), resume=resume)
    market, absent = _market(study, graph, catalogue, runtime, load, progress)
    factor = 1.0
    if study.objective == "service":
        progress.step("finding the best service within the budget")
        factor = _affordable(market)
    while True:
        turns = plan_and_judge(
            market.with_load(with_limits_scaled(load, factor)),
            seed=study.seed,
            step=progress.step,
            advance=progress.advance,
            remembered=partial(journal.turn, factor),
            keep=partial(journal.keep_turn, factor),
        )
        if turns[-1].passed or study.objective != "service" or factor > MOST_SERVICE:
            break
        factor *= RELAXING
    market = market.with_load(with_limits_scaled(load, factor))
    planned_s = time.monotonic() - began
    final = turns[-1]
    tightened = market.under(replace(market.terms, derating=final.derating))
    asked = Asked(
        tightened,
        final.answer,
        growth_per_year_frac=study.growth_per_year_frac,
        max_context_tokens=longest,
    )
    answers: dict[str, Any] = {}
    for name in questions:
        found = journal.answer(name)
        if found is None:
            progress.step(f"asking: {name}")
            found = QUESTIONS[name](asked)
            journal.keep_answer(name, found)
        answers[name] = found
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "study": study.to_json(),
        "model": {"name": graph.model, "parameters": graph.parameters, "n_layers": graph.n_layers},
        "catalogue": catalogue_json(catalogue),
        "load": load.to_json(),
        "planned_rate_per_s": market.buckets.rate_per_s,
        "fleet": fleet_json(final.answer, study.objective),
        "limits_factor": factor,
        "passed": final.passed,
        "analytic": final.answer.attained(),
        "simulated": final.outcome,
        "turns": [
            {
                "usd_per_h": turn.answer.fleet.usd_per_h,
                "nodes": turn.answer.nodes(),
                "derating": turn.derating,
                "passed": turn.passed,
                "levels": turn.outcome["levels"],
            }
            for turn in turns
        ],
        "questions": answers,
        "absent": [asdict(entry) for entry in absent],
        "n_options": len(market.options),
        "times": {"plan_s": round(planned_s, 3), "total_s": round(time.monotonic() - began, 3)},
    }


def _affordable(market: Market) -> float:
    """Return the smallest factor on all limits that the budget affords.

    Raises:
        NoFeasiblePlan: not even limits 16 times as long.
    """
    factor = best_service(market.shortlist(market.under(replace(market.terms, max_usd_per_h=None)).solve()))
    if factor is None:
        raise NoFeasiblePlan(
            f"{market.terms.max_usd_per_h:g} USD/h do not serve the load "
            f"even at limits {MOST_SERVICE:g} times as long"
        )
    return factor


def _market(
    study: CapacityStudy,
    graph: OperatorGraph,
    catalogue: Catalogue,
    runtime: RuntimeProfile,
    load: Load,
    progress: StudyProgress,
) -> tuple[Market, list[Absent]]:
    units = units_of(graph, study.granularity, runtime.ties)
    building = Building(
        graph,
        units,
        catalogue,
        runtime,
        load.max_context,
        Batching(study.max_sequences, study.batch_tokens),
        study.max_perplexity_frac,
    )
    progress.step("building replicas on every machine")
    sensitivity = None if study.sensitivity is None else read_sensitivity(Path(study.sensitivity), units)
    precisions = [parse_precision(text) for text in study.precisions]
    bits = uniform_bits(units, precisions, sensitivity)
    options, absent = replica_options(building, bits, progress.advance)
    for entry in study.mixed:
        progress.step(f"planning mixes of {entry.low} and {entry.high}")
        low, high = parse_precision(entry.low), parse_precision(entry.high)
        more, missing = planned_options(
            building, low, high, entry.budget_frac, load, sensitivity, progress.advance
        )
        options, absent = options + more, absent + missing
    if study.spanning:
        progress.step("planning pipelines over two types of machines")
        choices = [Choice((precision,)) for precision in precisions]
        for entry in study.mixed:
            pair = (parse_precision(entry.low), parse_precision(entry.high))
            choices.append(Choice(pair, entry.budget_frac))
        more, missing = spanning_options(building, choices, load, sensitivity, progress.advance)
        options, absent = options + more, absent + missing
    if not options:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in absent[:3])
        raise NoFeasiblePlan(f"{study.model} fits no machine of {catalogue.name}: {reasons}")
    progress.step(f"pricing {len(options)} replicas for the load")
    terms = Terms(study.spot, study.max_usd_per_h, separate_pools=study.separate_pools)
    objective: FleetObjective = (
        "energy" if study.objective == "energy" else "carbon" if study.objective == "carbon" else "cost"
    )
    return Market.of(catalogue, options, load, terms=terms, objective=objective), absent


def read_sensitivity(path: Path, units: Sequence[Unit]) -> SensitivityTable:
    """Return the table of a file that ``dse sensitivity --json`` wrote, for these units.

    Raises:
        ConfigError: it cannot be read, is no such table, or is of other units.
    """
    try:
        table = SensitivityTable.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = error.strerror if isinstance(error, OSError) else f"is not a sensitivity table ({error})"
        raise ConfigError(f"{text}", file=str(path)) from error
    if table.units != tuple(unit.name for unit in units):
        raise ConfigError(
            f"has {len(table.units)} units from {table.units[0]} on, but the study has {len(units)} "
            f"from {units[0].name} on",
            file=str(path),
        )
    return table


def catalogue_json(catalogue: Catalogue) -> dict[str, Any]:
    """Return what the catalogue offers, with prices, dates and what is unknown."""
    return {
        "name": catalogue.name,
        "description": catalogue.description,
        "carbon_g_per_kwh": catalogue.carbon_g_per_kwh,
        "electricity_usd_per_kwh": catalogue.electricity_usd_per_kwh,
        "nodes": [
            {
                "name": offer.name,
                "device": offer.spec.name,
                "n_devices": offer.n_devices,
                "usd_per_h": catalogue.usd_per_h(offer),
                "spot_usd_per_h": offer.spot_usd_per_h,
                "owned": offer.purchase is not None,
                "price_date": offer.price_date,
                "n_available": offer.n_available,
                "static_w": offer.static_w,
                "peak_w": offer.peak_w,
                "unknown": list(offer.gaps()),
            }
            for offer in catalogue.nodes
        ],
        "sources": [asdict(entry) for entry in catalogue.sources],
    }


def fleet_json(answer: Answer, objective: str) -> dict[str, Any]:
    """Return the fleet: machines, groups of replicas with their plans, what goes where, and the proof."""
    fleet, assembled = answer.fleet, answer.assembled
    problem = assembled.problem
    groups = []
    for index, (group, n) in enumerate(zip(assembled.groups, fleet.n_replicas, strict=True)):
        if not n:
            continue
        option, point = group.option, group.point
        carried = {
            problem.demands[route.demand].name: frac
            for route, frac in zip(problem.routes, fleet.routed_frac, strict=True)
            if frac > 1e-4 and any(use.option == index for use in route.uses)
        }
        plan = option.replica.plan
        groups.append(
            {
                "name": pool_name(group),
                "parts": [
                    {
                        "node": assembled.catalogue.nodes[offer].name,
                        "device": assembled.catalogue.nodes[offer].spec.name,
                        "n_devices": n_devices,
                    }
                    for offer, n_devices in option.devices
                ],
                "n_replicas": n,
                "n_devices": sum(n_devices for _, n_devices in option.devices),
                "layout": option.layout,
                "precision": option.bits.name,
                "quality": asdict(option.bits.quality),
                "batch": point.batch,
                "tpot_s": point.tpot_s,
                "kv_frac": point.kv_frac,
                "kv_tokens": option.replica.kv_tokens,
                "carries": carried,
                "stages": [] if plan is None else [stage.to_json() for stage in plan.stages],
                "assignment": _counts(option.bits),
            }
        )
    return {
        "objective": objective,
        "status": fleet.status,
        "value": fleet.value,
        "bound": fleet.bound,
        "gap_frac": fleet.gap_frac,
        "solver_time_s": fleet.time_s,
        "usd_per_h": fleet.usd_per_h,
        "energy_w": fleet.energy_w,
        "carbon_g_per_h": fleet.carbon_g_per_h,
        "nodes": answer.nodes(),
        "groups": groups,
    }


def _counts(bits: Bits) -> dict[str, int]:
    names = [precision.name for _, precision in bits.assignment.items]
    return {name: names.count(name) for name in dict.fromkeys(names)}
