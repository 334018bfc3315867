"""A load: requests with arrival times and lengths, in classes that have service levels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dse.content import content_hash
from dse.errors import ConfigError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Metric = Literal["ttft", "tpot", "e2e"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class ServiceLevel:
    """A limit that a percentile of the requests must keep.

    Attributes:
        metric: "ttft" (arrival to first token), "tpot" (mean time between a request's further tokens;
            requests of one token have none) or "e2e" (arrival to last token).
        percentile: in (0, 100]; 95 means that at most 5 % of the requests may be slower.
        limit_s: the limit.
    """

    metric: Metric
    percentile: float
    limit_s: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(
                "unknown service level", path="levels.metric", value=self.metric, allowed=METRICS
            )
        if not 0 < self.percentile <= 100:
            raise ConfigError(
                f"must be above 0 and at most 100, but got {self.percentile!r}",
                path="levels.percentile",
                value=self.percentile,
            )
        if not 0 < self.limit_s < np.inf:
            raise ConfigError(
                f"must be above 0 and finite, but got {self.limit_s!r}",
                path="levels.limit_s",
                value=self.limit_s,
            )

    @property
    def name(self) -> str:
        """Text for tables, e.g. ``p95 ttft <= 2 s``."""
        return f"p{self.percentile:g} {self.metric} <= {self.limit_s:g} s"


@dataclass(frozen=True)
class RequestClass:
    """Requests that share service levels.

    ``goodput_frac`` is the least share of requests that must keep all limits of the class at once, None for
    no such demand.
    """

    name: str
    levels: tuple[ServiceLevel, ...] = ()
    goodput_frac: float | None = None

    def __post_init__(self) -> None:
        if self.goodput_frac is not None and not 0 < self.goodput_frac <= 1:
            raise ConfigError(
                f"must be above 0 and at most 1, but got {self.goodput_frac!r}",
                path="goodput_frac",
                value=self.goodput_frac,
            )

    def limit_s(self, metric: Metric) -> float | None:
        """Return the tightest limit on a metric, at whichever percentile, None where there is none."""
        return min((level.limit_s for level in self.levels if level.metric == metric), default=None)


@dataclass(frozen=True, eq=False)
class Load:
    """Requests in the order of their arrival. The arrays are read-only.

    Attributes:
        name: for display.
        arrival_s: (N,) not decreasing, from 0.
        prompt_tokens, output_tokens: (N,) at least 1; the first output token comes out of the prefill.
        class_index: (N,) into ``classes``.
        duration_s: length of the observation, at least the last arrival.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Counts
    output_tokens: Counts
    class_index: NDArray[np.intp]
    classes: tuple[RequestClass, ...]
    duration_s: float

    def __post_init__(self) -> None:
        fields: tuple[tuple[str, type[np.generic]], ...] = (
            ("arrival_s", np.float64),
            ("prompt_tokens", np.int64),
            ("output_tokens", np.int64),
            ("class_index", np.intp),
        )
        for name, kind in fields:
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check()

    def _check(self) -> None:
        n = len(self.arrival_s)
        if n == 0:
            raise ConfigError("holds no requests", path="load", value=self.name)
        if any(len(a) != n for a in (self.prompt_tokens, self.output_tokens, self.class_index)):
            raise ConfigError("arrays of unlike lengths", path="load", value=self.name)
        if not np.isfinite(self.arrival_s).all() or self.arrival_s[0] < 0:
            raise ConfigError("arrival times must be finite and at least 0", path="load.arrival_s")
        backwards = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if len(backwards):
            row = int(backwards[0]) + 1
            raise ConfigError(f"request {row} arrives before request {row - 1}", path="load.arrival_s")
        for name in ("prompt_tokens", "output_tokens"):
            short = np.flatnonzero(getattr(self, name) < 1)
            if len(short):
                row = int(short[0])
                raise ConfigError(
                    f"must be at least 1, but request {row} has {getattr(self, name)[row]}",
                    path=f"load.{name}",
                )
        if not self.classes:
            raise ConfigError("needs at least one request class", path="load.classes")
        if len({entry.name for entry in self.classes}) < len(self.classes):
            raise ConfigError("two request classes have one name", path="load.classes")
        if self.class_index.min() < 0 or self.class_index.max() >= len(self.classes):
            raise ConfigError("a request belongs to no class", path="load.class_index")
        if not self.arrival_s[-1] <= self.duration_s < np.inf:
            raise ConfigError(
                f"must be finite and at least the last arrival, but got {self.duration_s!r}",
                path="load.duration_s",
                value=self.duration_s,
            )

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Requests per second of the observation (its mean; n over the last arrival where that is all)."""
        return len(self) / self.duration_s if self.duration_s > 0 else float(len(self))

    @property
    def max_context(self) -> int:
        """The longest prompt and output together, in tokens."""
        return int((self.prompt_tokens + self.output_tokens).max())

    @cached_property
    def hash(self) -> str:
        """Content hash over everything but the name."""
        arrays = (self.arrival_s, self.prompt_tokens, self.output_tokens, self.class_index.astype(np.int64))
        checks = [zlib.crc32(array.tobytes()) for array in arrays]
        return content_hash([checks, len(self), self.duration_s, [asdict(entry) for entry in self.classes]])

    def take(self, chosen: ArrayLike, name: str | None = None) -> Load:
        """Return the load of some of the requests (a mask or ascending indices), at their times."""
        index = np.asarray(chosen)
        return replace(
            self,
            name=name or self.name,
            arrival_s=self.arrival_s[index],
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            class_index=self.class_index[index],
        )

    def with_classes(self, classes: Sequence[RequestClass]) -> Load:
        """Return the same requests with other service levels; as many classes as before, in their order."""
        if len(classes) != len(self.classes):
            raise ConfigError(
                f"needs {len(self.classes)} classes, but got {len(classes)}", path="load.classes"
            )
        return replace(self, classes=tuple(classes))

    def to_json(self) -> dict[str, Any]:
        """Return a summary, not the requests."""
        lengths = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        return {
            "name": self.name,
            "hash": self.hash,
            "n_requests": len(self),
            "duration_s": self.duration_s,
            "rate_per_s": self.rate_per_s,
            **{
                name: {"mean": float(values.mean()), **_quantiles(values), "max": int(values.max())}
                for name, values in lengths.items()
            },
            "classes": [
                {**asdict(entry), "n_requests": int((self.class_index == index).sum())}
                for index, entry in enumerate(self.classes)
            ],
        }


def _quantiles(values: Counts) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99)}


def child_generator(seed: int, label: str) -> np.random.Generator:
    """Return the generator of one purpose: the same for the same seed and label, in every process."""
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def mixed(loads: Sequence[Load], name: str) -> Load:
    """Return all requests of several loads in one, in the order of arrival; classes of one name are joined.

    Raises:
        ConfigError: classes of one name differ, or there is nothing to mix.
    """
    if not loads:
        raise ConfigError("needs at least one load", path="load")
    classes: dict[str, RequestClass] = {}
    for load in loads:
        for entry in load.classes:
            if classes.setdefault(entry.name, entry) != entry:
                raise ConfigError(f"class '{entry.name}' has two sets of levels", path="load.classes")
    place = {known: index for index, known in enumerate(classes)}
    index_of = [np.array([place[entry.name] for entry in load.classes])[load.class_index] for load in loads]
    arrival_s = np.concatenate([load.arrival_s for load in loads])
    order = np.argsort(arrival_s, kind="stable")
    return Load(
        name,
        arrival_s[order],
        np.concatenate([load.prompt_tokens for load in loads])[order],
        np.concatenate([load.output_tokens for load in loads])[order],
        np.concatenate(index_of)[order],
        tuple(classes.values()),
        max(load.duration_s for load in loads),
    )
