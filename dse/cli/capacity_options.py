"""Groups of options of ``dse capacity``: the load, and what may be bought for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dse.cli import options
from dse.errors import ConfigError

if TYPE_CHECKING:
    from studies.capacity_schema import CapacityStudy, LoadSpec

OBJECTIVES = ("cost", "energy", "carbon", "service")
DEFAULT_LEVELS = "ttft:90:2,tpot:90:0.1"


@dataclass(frozen=True)
class LoadOptions:
    """What is asked of the fleet."""

    trace: Path | None = typer.Option(
        None, "--trace", help="Requests (CSV or JSON lines) instead of the study's distributions."
    )
    rate: float | None = typer.Option(None, "--rate", help="Requests/s; a trace is scaled to it.")
    duration: float | None = typer.Option(None, "--duration", help="Seconds of a generated load.")
    level: list[str] = typer.Option(
        [], "--level", help="METRIC:PERCENTILE:SECONDS like ttft:p90:2, for all classes; repeatable."
    )

    def study(self, name: str) -> CapacityStudy:
        """Return the study of a name, or a plain one for a model, under this load.

        Raises:
            ConfigError: no such study, or a value that is not allowed.
        """
        from studies.capacity_schema import parse_level

        for path, value in (("--rate", self.rate), ("--duration", self.duration)):
            _check_positive(path, value)
        study = self._named(name)
        study = replace(study, load=self._changed(study.load))
        return study.with_levels(tuple(parse_level(text) for text in self.level)) if self.level else study

    def _named(self, name: str) -> CapacityStudy:
        from dse.documents import as_file
        from studies.capacity_schema import capacity_study_names, load_capacity_study
        from studies.catalogue import model_names

        if as_file(name) is not None or name in capacity_study_names():
            return load_capacity_study(name)
        if self.rate is not None or self.trace is not None:
            return _plain_study(name)
        if name in model_names():
            raise ConfigError(f"'{name}' is a model, which needs a load: give --rate or --trace")
        raise ConfigError(
            f"no capacity study and no study file is called '{name}' (a model needs --rate or --trace)",
            value=name,
            allowed=capacity_study_names(),
        )

    def _changed(self, load: LoadSpec) -> LoadSpec:
        if self.trace is not None:
            load = replace(load, trace=str(self.trace), source=f"trace {self.trace.name}")
        if self.rate is not None:
            load = replace(load, rate_per_s=self.rate)
        return load if self.duration is None else replace(load, duration_s=self.duration)


@dataclass(frozen=True)
class FleetOptions:
    """What may be bought, what for, and what is asked beside."""

    catalogue: str | None = typer.Option(
        None, "--catalogue", help="What can be bought: a name, or a YAML file."
    )
    precisions: str | None = typer.Option(None, "--precisions", help="Comma-separated choices.")
    objective: str | None = typer.Option(
        None, "--objective", help="cost, energy, carbon; or service (the tightest limits within --budget)."
    )
    budget: float | None = typer.Option(None, "--budget", help="Dollars per hour at most.")
    max_perplexity: float | None = typer.Option(
        None, "--max-perplexity", help="Largest growth of the perplexity as a share, e.g. 0.01."
    )
    sensitivity: Path | None = typer.Option(
        None, "--sensitivity", help="JSON of dse sensitivity --metric kl, from which quality is predicted."
    )
    spot: bool | None = typer.Option(None, "--spot/--on-demand", help="Rent at spot prices where known.")
    separate_pools: bool | None = typer.Option(
        None, "--separate-pools/--one-pool", help="Prefill and decode may have machines of their own."
    )
    spanning: bool | None = typer.Option(
        None, "--spanning/--one-kind", help="Replicas may span machines of two types."
    )
    growth: float | None = typer.Option(None, "--growth", help="Growth of the load per year, e.g. 0.5.")
    ask: str | None = typer.Option(
        None, "--ask", help="Comma-separated questions beside the fleet, 'all' or 'none'."
    )
    seed: int | None = typer.Option(None, "--seed", help="Seed of everything random.")

    def changed(self, study: CapacityStudy) -> CapacityStudy:
        """Return the study with what the options say.

        Raises:
            ConfigError: a value that is not allowed, or the best service without a budget.
        """
        _check_positive("--budget", self.budget)
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise ConfigError(
                "unknown objective", path="--objective", value=self.objective, allowed=OBJECTIVES
            )
        if self.precisions is not None:
            names = tuple(precision.name for precision in options.precisions_of(self.precisions))
            study = replace(study, precisions=names, mixed=())
        changes: dict[str, Any] = {
            "catalogue": self.catalogue,
            "objective": self.objective,
            "max_usd_per_h": self.budget,
            "max_perplexity_frac": self.max_perplexity,
            "sensitivity": None if self.sensitivity is None else str(self.sensitivity),
            "spot": self.spot,
            "separate_pools": self.separate_pools,
            "spanning": self.spanning,
            "growth_per_year_frac": self.growth,
            "seed": self.seed,
            "ask": None if self.ask is None else _questions(self.ask),
        }
        study = replace(study, **{key: value for key, value in changes.items() if value is not None})
        if study.objective == "service" and study.max_usd_per_h is None:
            raise ConfigError("the best service needs a budget", path="--budget")
        return study


def _plain_study(model: str) -> CapacityStudy:
    """Return a study of a model with usual lengths and levels."""
    from dse.capacity.lengths import Lognormal
    from dse.capacity.load import RequestClass
    from studies.capacity_schema import CapacityStudy, ClassSpec, LoadSpec, parse_level

    levels = tuple(parse_level(text) for text in DEFAULT_LEVELS.split(","))
    usual = ClassSpec(
        RequestClass("all", levels), 1.0, Lognormal(1000.0, 1.0, 8000), Lognormal(200.0, 0.8, 1000)
    )
    load = LoadSpec((usual,), source="lognormal lengths, mean 1000 + 200 tokens")
    return CapacityStudy(f"{model}-capacity", model, "cloud_six", load)


def _questions(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ConfigError(f"must be above 0, but is {value:g}", path=option, value=value)
