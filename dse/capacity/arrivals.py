"""Making loads: arrival processes at a rate that may follow the day and grow, and traces scaled to a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dse.capacity.lengths import LengthPairs
from dse.capacity.load import Floats, Load, RequestClass, child_generator, mixed
from dse.errors import ConfigError

HOUR_S = 3600.0
YEAR_S = 365.0 * 24 * HOUR_S
Scaling = Literal["compress", "resample"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


@dataclass(frozen=True)
class RateProfile:
    """How the rate changes with time, as a factor on a base rate.

    Attributes:
        hourly: factors of the hours of a day (any number of equal parts of 24 hours), repeated daily, over
            their mean, so that the base rate is the daily mean.
        growth_per_year_frac: 0.5 is half as much again after a year, compounding continuously.
    """

    hourly: tuple[float, ...] = (1.0,)
    growth_per_year_frac: float = 0.0

    def __post_init__(self) -> None:
        if not self.hourly or not all(0 <= f < math.inf for f in self.hourly) or sum(self.hourly) <= 0:
            raise ConfigError("must be at least 0 and not all 0", path="daily", value=self.hourly)
        if not -1 < self.growth_per_year_frac < math.inf:
            raise ConfigError(
                f"must be above -1, but got {self.growth_per_year_frac!r}",
                path="growth_per_year_frac",
                value=self.growth_per_year_frac,
            )

    def cumulative(self, duration_s: float) -> tuple[Floats, Floats]:
        """Return (K,) times and (K,) the integral of the factor up to them, in seconds.

        The factor is constant in each part of the day; growth is taken at the part's centre.
        """
        part_s = 24 * HOUR_S / len(self.hourly)
        edges = np.append(np.arange(0.0, duration_s, part_s), duration_s)
        factors = np.array(self.hourly) * (len(self.hourly) / sum(self.hourly))
        of_part = factors[np.arange(len(edges) - 1) % len(factors)]
        centre_s = (edges[1:] + edges[:-1]) / 2
        rate = of_part * (1.0 + self.growth_per_year_frac) ** (centre_s / YEAR_S)
        return edges, np.concatenate([[0.0], np.cumsum(rate * np.diff(edges))])


@dataclass(frozen=True)
class ClassLoad:
    """One class of a generated load.

    Attributes:
        rate_per_s: base rate.
        burstiness_cv: coefficient of variation of the (gamma distributed) times between arrivals: 1 is a
            Poisson process, above 1 is bursty, below 1 is regular.
    """

    request_class: RequestClass
    rate_per_s: float
    lengths: LengthPairs
    burstiness_cv: float = 1.0
    profile: RateProfile = RateProfile()

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "burstiness_cv"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"must be above 0, but got {value!r}", path=name, value=value)


def generate(classes: list[ClassLoad], duration_s: float, seed: int, name: str = "generated") -> Load:
    """Return a load of independent classes; each draws from a generator of its own.

    A renewal process of mean 1 is mapped through the inverse of the cumulative rate, which is exact for a
    Poisson process of varying rate (time rescaling).

    Raises:
        ConfigError: the duration is not above 0, or no request falls into it.
    """
    if not 0 < duration_s < math.inf:
        raise ConfigError(f"must be above 0, but got {duration_s!r}", path="duration_s", value=duration_s)
    loads = [load for entry in classes if (load := _of_class(entry, duration_s, seed)) is not None]
    if not loads:
        raise ConfigError("no request falls into the duration", path="duration_s", value=duration_s)
    return mixed(loads, name)


def _of_class(entry: ClassLoad, duration_s: float, seed: int) -> Load | None:
    label = entry.request_class.name
    edges, cumulative = entry.profile.cumulative(duration_s)
    work = entry.rate_per_s * cumulative
    ticks = _renewals(child_generator(seed, f"arrivals {label}"), float(work[-1]), entry.burstiness_cv)
    if not len(ticks):
        return None
    prompt, output = entry.lengths.draw(child_generator(seed, f"lengths {label}"), len(ticks))
    arrival_s = np.interp(ticks, work, edges)
    indices = np.zeros(len(ticks), dtype=np.intp)
    return Load(label, arrival_s, prompt, output, indices, (entry.request_class,), duration_s)


def _renewals(rng: np.random.Generator, end: float, cv: float) -> Floats:
    """Return the events before ``end`` of a renewal process with gamma times of mean 1."""
    shape = 1.0 / cv**2
    n = math.ceil(end + 6.0 * max(1.0, cv) * math.sqrt(end) + 16)
    events = np.cumsum(rng.gamma(shape, 1.0 / shape, n))
    while events[-1] < end:
        more = events[-1] + np.cumsum(rng.gamma(shape, 1.0 / shape, n))
        events = np.concatenate([events, more])
    return events[events < end]


def scale_to_rate(load: Load, rate_per_s: float, method: Scaling = "compress", seed: int = 0) -> Load:
    """Return a load of the same lengths at another mean rate.

    Args:
        load: usually a trace.
        rate_per_s: wanted mean rate.
        method: "compress" divides all times by one factor, so that order and relative burstiness stay and the
            trace becomes shorter (or longer); "resample" keeps the duration: requests are thinned at random,
            and rates above the trace's own are whole copies, each rotated by a random time, on top of a
            thinned one.
        seed: of "resample".

    Raises:
        ConfigError: the rate is not above 0, all requests arrive at once, or none is left.
    """
    if not 0 < rate_per_s < math.inf:
        raise ConfigError(f"must be above 0, but got {rate_per_s!r}", path="rate_per_s", value=rate_per_s)
    if load.duration_s <= 0:
        raise ConfigError("all requests arrive at once, so there is no rate to scale", path="rate_per_s")
    ratio = rate_per_s / load.rate_per_s
    name = f"{load.name} at {rate_per_s:g}/s"
    if method == "compress":
        return Load(
            name,
            load.arrival_s / ratio,
            load.prompt_tokens,
            load.output_tokens,
            load.class_index,
            load.classes,
            load.duration_s / ratio,
        )
    if method != "resample":
        raise ConfigError("unknown scaling", path="scale", value=method, allowed=SCALINGS)
    rng = child_generator(seed, "resample")
    copies = [load if i == 0 else _rotated(load, rng) for i in range(int(ratio))]
    kept = rng.random(len(load)) < ratio - int(ratio)
    if kept.any():
        copies.append((_rotated(load, rng) if copies else load).take(kept))
    if not copies:
        raise ConfigError("no request is left at this rate", path="rate_per_s", value=rate_per_s)
    return mixed(copies, name)


def _rotated(load: Load, rng: np.random.Generator) -> Load:
    """Return the load begun at a random time, its beginning put behind its end."""
    arrival_s = (load.arrival_s + rng.uniform(0.0, load.duration_s)) % load.duration_s
    order = np.argsort(arrival_s, kind="stable")
    return Load(
        load.name,
        arrival_s[order],
        load.prompt_tokens[order],
        load.output_tokens[order],
        load.class_index[order],
        load.classes,
        load.duration_s,
    )
