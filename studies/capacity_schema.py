"""Files that say what to plan capacity for: a model, a load with service levels, and a catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from dse.capacity.arrivals import ClassLoad, RateProfile, generate, scale_to_rate
from dse.capacity.lengths import Distribution, Fixed, Histogram, Independent, Lognormal
from dse.capacity.load import Load, RequestClass, ServiceLevel
from dse.capacity.traces import read_trace
from dse.content import content_hash
from dse.documents import Closed, as_file, packaged_names, read_file, read_packaged, validate
from dse.errors import ConfigError

PACKAGE, FOLDER = "studies", "capacity"
DEFAULT_PRECISIONS = ("bf16", "fp8_e4m3/fp8_e4m3_token/bf16", "int8_row", "int4_g128")


@dataclass(frozen=True)
class Mixed:
    """A mix of two precisions per layer; the budget is where its penalty lies between the uniform plans."""

    low: str
    high: str
    budget_frac: float = 0.5


@dataclass(frozen=True)
class ClassSpec:
    """A request class with its share of the rate and its lengths."""

    request_class: RequestClass
    share: float
    prompt: Distribution
    output: Distribution


@dataclass(frozen=True)
class LoadSpec:
    """A load by distributions, or by a trace; ``rate_per_s`` None keeps a trace's own rate."""

    classes: tuple[ClassSpec, ...]
    rate_per_s: float | None = None
    duration_s: float = 600.0
    burstiness_cv: float = 1.0
    daily: tuple[float, ...] = (1.0,)
    trace: str | None = None
    source: str = ""

    def load(self, seed: int) -> Load:
        """Return the requests.

        Raises:
            ConfigError: the trace cannot be read, or no rate is given.
        """
        if self.trace is not None:
            load = read_trace(Path(self.trace), [entry.request_class for entry in self.classes])
            return load if self.rate_per_s is None else scale_to_rate(load, self.rate_per_s)
        if self.rate_per_s is None:
            raise ConfigError("a load without a trace needs a rate", path="load.rate_per_s")
        total = sum(entry.share for entry in self.classes)
        profile = RateProfile(self.daily)
        classes = [
            ClassLoad(
                entry.request_class,
                self.rate_per_s * entry.share / total,
                Independent(entry.prompt, entry.output),
                self.burstiness_cv,
                profile,
            )
            for entry in self.classes
        ]
        return generate(classes, self.duration_s, seed, "generated")


@dataclass(frozen=True)
class CapacityStudy:
    """The inputs of a capacity plan. Names refer to packaged files or to the user's own."""

    name: str
    model: str
    catalogue: str
    load: LoadSpec
    description: str = ""
    runtime: str = "vllm"
    precisions: tuple[str, ...] = DEFAULT_PRECISIONS
    mixed: tuple[Mixed, ...] = ()
    granularity: str = "block"
    objective: str = "cost"
    max_usd_per_h: float | None = None
    max_perplexity_frac: float | None = None
    sensitivity: str | None = None
    spot: bool = False
    separate_pools: bool = False
    spanning: bool = False
    growth_per_year_frac: float = 0.5
    max_sequences: int = 256
    batch_tokens: int = 2048
    ask: tuple[str, ...] = ()
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the inputs in words; lengths are in the load's summary."""
        return {
            "name": self.name,
            "description": self.description,
            "model": self.model,
            "catalogue": self.catalogue,
            "runtime": self.runtime,
            "precisions": list(self.precisions),
            "mixed": [[entry.low, entry.high, entry.budget_frac] for entry in self.mixed],
            "granularity": self.granularity,
            "objective": self.objective,
            "max_usd_per_h": self.max_usd_per_h,
            "max_perplexity_frac": self.max_perplexity_frac,
            "sensitivity": self.sensitivity,
            "spot": self.spot,
            "separate_pools": self.separate_pools,
            "spanning": self.spanning,
            "growth_per_year_frac": self.growth_per_year_frac,
            "max_sequences": self.max_sequences,
            "batch_tokens": self.batch_tokens,
            "load_source": self.load.source,
            "rate_per_s": self.load.rate_per_s,
            "trace": self.load.trace,
            "seed": self.seed,
        }

    def key(self, load: Load) -> str:
        """Content hash of the inputs and the requests, by which a run is resumed."""
        return content_hash([self.to_json(), load.hash])

    def with_levels(self, levels: tuple[ServiceLevel, ...]) -> CapacityStudy:
        """Return the study with other levels for all classes."""
        classes = tuple(
            replace(entry, request_class=replace(entry.request_class, levels=levels))
            for entry in self.load.classes
        )
        return replace(self, load=replace(self.load, classes=classes))


class _LevelFile(Closed):
    metric: str
    percentile: float
    limit_s: float


class _HistogramFile(Closed):
    edges: tuple[int, ...]
    weights: tuple[float, ...]


class _LognormalFile(Closed):
    mean: float
    cv: float
    most: int


class _LengthFile(Closed):
    fixed: int | None = None
    histogram: _HistogramFile | None = None
    lognormal: _LognormalFile | None = None


class _ClassFile(Closed):
    name: str
    share: float = Field(default=1.0, gt=0)
    prompt: _LengthFile | None = None
    output: _LengthFile | None = None
    levels: tuple[_LevelFile, ...] = ()
    goodput_frac: float | None = None


class _LoadFile(Closed):
    source: str = ""
    trace: str | None = None
    rate_per_s: float | None = Field(default=None, gt=0)
    duration_s: float = Field(default=600.0, gt=0)
    burstiness_cv: float = Field(default=1.0, gt=0)
    daily: tuple[float, ...] = (1.0,)
    classes: tuple[_ClassFile, ...] = Field(min_length=1)


class _MixedFile(Closed):
    low: str
    high: str
    budget_frac: float = Field(default=0.5, ge=0, le=1)


class _StudyFile(Closed):
    name: str
    description: str = ""
    model: str
    catalogue: str
    runtime: str = "vllm"
    precisions: tuple[str, ...] = DEFAULT_PRECISIONS
    mixed: tuple[_MixedFile, ...] = ()
    granularity: str = "block"
    objective: str = Field(default="cost", pattern="^(cost|energy|carbon|service)$")
    max_usd_per_h: float | None = Field(default=None, gt=0)
    max_perplexity_frac: float | None = Field(default=None, ge=0)
    sensitivity: str | None = None
    spot: bool = False
    separate_pools: bool = False
    spanning: bool = False
    growth_per_year_frac: float = Field(default=0.5, gt=-1)
    max_sequences: int = Field(default=256, ge=1)
    batch_tokens: int = Field(default=2048, ge=1)
    load: _LoadFile
    ask: tuple[str, ...] = ()
    seed: int = 0


def capacity_study_names() -> tuple[str, ...]:
    """Return the names of the packaged capacity studies, sorted."""
    return packaged_names(PACKAGE, FOLDER)


def load_capacity_study(name_or_path: str) -> CapacityStudy:
    """Return a study by its name, or from a YAML file; paths of traces in it are relative to the file.

    Raises:
        ConfigError: unknown name, or a file that does not fit the schema, in one line.
    """
    path = as_file(name_or_path)
    if path is None:
        content, file = read_packaged(PACKAGE, FOLDER, "capacity study", name_or_path)
        return parse_capacity_study(content, file, Path())
    return parse_capacity_study(read_file(path), str(path), path.parent)


def parse_capacity_study(content: object, file: str, folder: Path) -> CapacityStudy:
    """Return the study of a parsed YAML document.

    Raises:
        ConfigError: an unknown key or a value that is not allowed; the line names file and path.
    """
    document = validate(_StudyFile, content, file)
    given = document.load
    classes = tuple(
        _class(entry, f"load.classes.{index}", file, traced=given.trace is not None)
        for index, entry in enumerate(given.classes)
    )
    if document.objective == "service" and document.max_usd_per_h is None:
        raise ConfigError("the best service needs a budget", file=file, path="max_usd_per_h")
    trace = None if given.trace is None else str(folder / given.trace)
    load = LoadSpec(
        classes,
        given.rate_per_s,
        given.duration_s,
        given.burstiness_cv,
        given.daily,
        trace,
        given.source,
    )
    read = {
        "load": load,
        "catalogue": _relative(document.catalogue, folder),
        "mixed": tuple(Mixed(entry.low, entry.high, entry.budget_frac) for entry in document.mixed),
        "sensitivity": None if document.sensitivity is None else str(folder / document.sensitivity),
    }
    return CapacityStudy(**(dict(document) | read))


def _relative(name: str, folder: Path) -> str:
    return name if as_file(name) is None else str(folder / name)


def _class(entry: _ClassFile, path: str, file: str, *, traced: bool) -> ClassSpec:
    try:
        levels = tuple(_level(level.metric, level.percentile, level.limit_s) for level in entry.levels)
        request_class = RequestClass(entry.name, levels, entry.goodput_frac)
        prompt, output = (
            _distribution(given, f"{path}.{what}", file, traced=traced)
            for what, given in (("prompt", entry.prompt), ("output", entry.output))
        )
    except ConfigError as error:
        where = (
            error.path if error.path is not None and error.path.startswith(path) else f"{path}.{error.path}"
        )
        raise ConfigError(
            error.message, file=file, path=where, value=error.value, allowed=error.allowed
        ) from error
    return ClassSpec(request_class, entry.share, prompt, output)


def _level(metric: str, percentile: float, limit_s: float) -> ServiceLevel:
    from dse.capacity.load import METRICS

    for known in METRICS:
        if known == metric:
            return ServiceLevel(known, percentile, limit_s)
    raise ConfigError("unknown service level", path="levels.metric", value=metric, allowed=METRICS)


def _distribution(given: _LengthFile | None, path: str, file: str, *, traced: bool) -> Distribution:
    if given is None:
        if traced:
            return Fixed(1)  # the trace has the lengths
        raise ConfigError("is missing: a load without a trace needs lengths", file=file, path=path)
    kinds = [kind for kind in (given.fixed, given.histogram, given.lognormal) if kind is not None]
    if len(kinds) != 1:
        raise ConfigError("needs exactly one of fixed, histogram, lognormal", file=file, path=path)
    if given.histogram is not None:
        return Histogram(given.histogram.edges, given.histogram.weights)
    if given.lognormal is not None:
        return Lognormal(given.lognormal.mean, given.lognormal.cv, given.lognormal.most)
    assert given.fixed is not None
    return Fixed(given.fixed)


def parse_level(text: str) -> ServiceLevel:
    """Return the level of a text like ``ttft:p90:2s`` (also ``ttft:90:2``).

    Raises:
        ConfigError: not three parts, an unknown metric, or no numbers.
    """
    parts = text.lower().split(":")
    try:
        metric, percentile, limit = parts
        return _level(metric, float(percentile.removeprefix("p")), float(limit.removesuffix("s")))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise ConfigError(
                error.message, path="--level", value=error.value, allowed=error.allowed
            ) from error
        raise ConfigError(
            f"must be METRIC:PERCENTILE:SECONDS like ttft:p90:2, but is '{text}'", path="--level", value=text
        ) from error
