"""Groups of options of ``dse plan``: what is planned, what for, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.graph.workload import Workload
    from dse.partition.pareto import Axis
    from dse.partition.problem import Goal, Objective
    from studies.schema import Study


@dataclass(frozen=True)
class StudyOptions:
    """What is planned, and how its quality is judged."""

    cluster: str = options.CLUSTER
    workload: str = options.WORKLOAD
    runtime: str = options.RUNTIME
    granularity: str = options.GRANULARITY
    precisions: str = options.PRECISIONS
    metric: str = typer.Option(
        "auto",
        "--metric",
        help="Penalty: kl (measured), variance, variance_stochastic, noise (needs no weights); auto takes "
        "variance where the model has weights at hand (with --max-perplexity-increase kl where it is cached, "
        "else fisher) and noise where it has not.",
    )
    as_good_as: str = typer.Option(
        "int4_g64_asym", "--as-good-as", help="Lose no more quality than the uniform plan of this precision."
    )
    grid: float | None = options.GRID
    tokens: int = typer.Option(1024, "--tokens", help="Calibration tokens of a measured metric.")
    check_tokens: int = typer.Option(
        2048, "--check-tokens", help="Tokens of the emulations of --max-perplexity-increase."
    )
    sequence_length: int = options.SEQUENCE
    corpus: str | None = options.CORPUS
    seed: int = options.SEED

    def study(self, model: str, times: options.LayerTimeOptions) -> Study:
        """Return the study of a model, its layers timed by the cost models or as measured.

        Raises:
            ConfigError: a name or value that is not allowed.
        """
        from dse.formats.grammar import parse_precision
        from studies.schema import QualitySpec, Study, load_workload

        for tokens in (self.tokens, self.check_tokens):
            options.check_sizes(tokens=tokens, sequence_length=self.sequence_length)
        return Study(
            name="plan",
            model=model,
            cluster=self.cluster,
            workload=load_workload(self.workload),
            precisions=tuple(precision.name for precision in options.precisions_of(self.precisions)),
            uniform=(parse_precision(self.as_good_as).name,),
            runtime=self.runtime,
            granularity=self.granularity,
            metric=self.metric,
            seed=self.seed,
            quality=QualitySpec(
                corpus=self.corpus,
                tokens=self.check_tokens,
                sensitivity_tokens=self.tokens,
                sequence_length=self.sequence_length,
            ),
            grid_g_per_kwh=self.grid,
            layer_times=None if times.layer_times is None else str(times.layer_times),
            layer_time_model=times.method(),
            layer_time_tokens=times.layer_time_tokens,
        )


@dataclass(frozen=True)
class GoalOptions:
    """What to minimise and what to keep within bounds."""

    objective: str = typer.Option(
        "time", "--objective", help="What to minimise: time, ttft, tpot, energy, cost; or throughput (most)."
    )
    max_time: float | None = typer.Option(None, "--max-time", min=0, help="Seconds of the whole batch.")
    max_ttft: float | None = typer.Option(None, "--max-ttft", min=0, help="Seconds to all first tokens.")
    max_tpot: float | None = typer.Option(None, "--max-tpot", min=0, help="Seconds between two tokens.")
    min_throughput: float | None = typer.Option(
        None, "--min-throughput", min=0, help="Generated tokens/s in steady state."
    )
    max_energy: float | None = typer.Option(None, "--max-energy", min=0, help="Joules per generated token.")
    max_cost: float | None = typer.Option(None, "--max-cost", min=0, help="USD per million tokens.")
    max_devices: int | None = typer.Option(None, "--max-devices", min=1, help="Devices a plan may use.")

    def goal(self, workload: Workload) -> Goal:
        """Return the goal for the batch of a workload.

        Raises:
            ConfigError: unknown objective.
        """
        from dse.partition.problem import Goal

        n_tokens = workload.batch * workload.output_tokens
        return Goal(
            objective=_objective(self.objective),
            max_time_s=self.max_time,
            max_ttft_s=self.max_ttft,
            max_tpot_s=self.max_tpot,
            max_period_s=n_tokens / self.min_throughput if self.min_throughput else None,
            max_energy_j_per_token=self.max_energy,
            max_cost_usd_per_mtok=self.max_cost,
            max_devices=self.max_devices,
        )


@dataclass(frozen=True)
class SolverOptions:
    """How much quality may be lost, how long may be solved, how much memory there is."""

    max_penalty: float | None = typer.Option(None, "--max-penalty", min=0, help="Bound in the metric's unit.")
    theta: float = typer.Option(
        0.0, "--theta", min=0, help="What one unit of penalty is worth, in the objective's unit."
    )
    time_limit: float = typer.Option(60.0, "--time-limit", min=0.1, help="Seconds for the solver.")
    max_memory: list[str] = typer.Option(
        [], "--max-memory", help="Memory of every device, or DEVICE=..., e.g. 10GB; repeatable."
    )

    def memory_limits(self) -> dict[str, float]:
        """Read ``10GB`` (every device) and ``NAME=8GiB`` (a device type or machine) into bytes.

        Raises:
            ConfigError: no such form.
        """
        from hardware_specs.units import to_si

        found: dict[str, float] = {}
        for text in self.max_memory:
            name, _, size = text.rpartition("=")
            number = size.rstrip("GMKTiBb ")
            found[name] = to_si(number, size[len(number) :].strip(), "bytes", path="--max-memory")
        return found


@dataclass(frozen=True)
class BesideOptions:
    """What is asked for beside the plan, or instead of it."""

    max_perplexity_increase: str | None = typer.Option(
        None,
        "--max-perplexity-increase",
        help="E.g. 2%: calibrated on emulated plans, checked by emulation and repaired; needs weights.",
    )
    what_if: list[str] = typer.Option(
        [],
        "--what-if",
        help="Plan again after a change: lose (each device in turn), lose:DEVICE, add:DEVICE_TYPE, "
        "price:DEVICE_TYPE=USD_PER_HOUR; repeatable.",
    )
    baselines: bool = typer.Option(
        False, "--baselines", help="Also show the published planners on the same tables."
    )
    front: str | None = typer.Option(
        None,
        "--front",
        help="Instead of one plan the front over these axes, e.g. quality,tpot,energy,cost.",
    )
    front_points: int = typer.Option(25, "--front-points", min=2, help="About how many points to solve.")

    def axes(self) -> tuple[Axis, ...] | None:
        """Return the axes of a front, None where a plan is asked for.

        Raises:
            ConfigError: unknown, or fewer than two.
        """
        from dse.partition.pareto import AXES

        if self.front is None:
            return None
        found: list[Axis] = []
        for name in (part.strip() for part in self.front.split(",")):
            known = [axis for axis in AXES if axis == name]
            if not known:
                raise ConfigError("unknown axis", path="--front", value=name, allowed=list(AXES))
            found += [axis for axis in known if axis not in found]
        if len(found) < 2:
            few = "a front needs two axes at least"
            raise ConfigError(few, path="--front", value=self.front, allowed=list(AXES))
        return tuple(found)

    def max_increase_frac(self) -> float | None:
        """Return the perplexity's allowed growth, given as ``2%`` or ``0.02``.

        Raises:
            ConfigError: neither, or not above 0.
        """
        text = self.max_perplexity_increase
        if text is None:
            return None
        body = text.strip()
        try:
            value = float(body.removesuffix("%")) / (100 if body.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if not 0 < value < 100:
            raise ConfigError(
                "a share such as 2% or 0.02 is needed", path="--max-perplexity-increase", value=text
            )
        return value

    def refuse(self) -> None:
        """Refuse what a whole layout cannot answer.

        Raises:
            ConfigError: any of it is asked for.
        """
        for name, given in (
            ("--what-if", self.what_if),
            ("--baselines", self.baselines),
            ("--front", self.front),
            ("--max-perplexity-increase", self.max_perplexity_increase),
        ):
            if given:
                raise ConfigError("goes with a single pipeline of single devices only", path=name)


def _objective(name: str) -> Objective:
    """Check the name of an objective."""
    from dse.partition.problem import BOUND_FIELDS

    for known in BOUND_FIELDS:
        if known == name:
            return known
    raise ConfigError("unknown objective", path="--objective", value=name, allowed=list(BOUND_FIELDS))
