"""Study and workload files: the closed YAML schema at the edge, frozen types inside."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

from dse.content import content_hash
from dse.documents import Closed, as_file, packaged_names, read_file, read_packaged, validate
from dse.errors import ConfigError
from dse.evaluate.layer_times import Method
from dse.graph.workload import Workload

PACKAGE = "studies"


@dataclass(frozen=True)
class QualitySpec:
    """How quality is measured.

    Attributes:
        corpus: path of a text file, ``hf:`` and the name of a data set, or None for the embedded corpus.
        tokens: of a finalist; trial_tokens: of one trial; sensitivity_tokens: of one (unit, precision).
        sequence_length: tokens per sequence; bos: whether each begins with that token.
        dtype: "bfloat16" or "float32".
        tolerance_frac: the recommended plan may lose at most this share of perplexity.
    """

    corpus: str | None = None
    tokens: int = 8192
    sensitivity_tokens: int = 1024
    trial_tokens: int = 1024
    sequence_length: int = 512
    bos: bool = False
    dtype: str = "bfloat16"
    tolerance_frac: float = 0.05


@dataclass(frozen=True)
class SearchSpec:
    """How hard to search: Optuna trials, points of the exact front, plans measured at the end."""

    trials: int = 60
    front_points: int = 10
    finalists: int = 8


@dataclass(frozen=True)
class Study:
    """The inputs of an experiment. Names refer to the packaged files or to the user's own.

    ``precisions`` are texts that ``parse_precision`` reads; ``uniform`` those measured as baselines.
    ``grid_g_per_kwh`` are grams of CO2e per kWh of the grid, the cluster's own where None. ``layer_times``
    is a file of measured layer times that replace the cost models', taken as they are ("table") or through
    LLM-PQ's ``layer_time_model`` "regression".
    """

    name: str
    model: str
    cluster: str
    workload: Workload
    precisions: tuple[str, ...]
    uniform: tuple[str, ...] = ()
    runtime: str = "generic"
    granularity: str = "block"
    metric: str = "kl"
    seed: int = 0
    quality: QualitySpec = field(default_factory=QualitySpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    grid_g_per_kwh: float | None = None
    layer_times: str | None = None
    layer_time_model: Method = "table"
    layer_time_tokens: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all resolved inputs."""
        document = asdict(self)
        document["precisions"] = list(self.precisions)
        document["uniform"] = list(self.uniform)
        return document

    @property
    def hash(self) -> str:
        """Content hash: a journal of another study is never continued by mistake."""
        return content_hash(self.to_json())


class _WorkloadFile(Closed):
    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None
    description: str = ""


class _QualityFile(Closed):
    corpus: str | None = None
    tokens: int = Field(default=8192, ge=2)
    sensitivity_tokens: int = Field(default=1024, ge=2)
    trial_tokens: int = Field(default=1024, ge=2)
    sequence_length: int = Field(default=512, ge=2)
    bos: bool = False
    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    tolerance_frac: float = Field(default=0.05, ge=0)


class _SearchFile(Closed):
    trials: int = Field(default=60, ge=0)
    front_points: int = Field(default=10, ge=2)
    finalists: int = Field(default=8, ge=1)


class _StudyFile(Closed):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    model: str
    cluster: str
    workload: str | dict[str, Any]
    precisions: list[str] = Field(min_length=1)
    uniform: list[str] = Field(default_factory=list)
    runtime: str = "generic"
    granularity: str = "block"
    metric: str = "kl"
    seed: int = Field(default=0, ge=0)
    quality: _QualityFile = _QualityFile()
    search: _SearchFile = _SearchFile()
    grid_g_per_kwh: float | None = Field(default=None, ge=0)
    layer_times: str | None = None
    layer_time_model: Method = "table"
    layer_time_tokens: float | None = Field(default=None, gt=0)


def preset_names() -> tuple[str, ...]:
    """Names of the packaged studies."""
    return packaged_names(PACKAGE, "presets")


def workload_names() -> tuple[str, ...]:
    """Names of the packaged workloads."""
    return packaged_names(PACKAGE, "workloads")


def load_workload(name: str) -> Workload:
    """Read a workload by packaged name or path.

    Raises:
        ConfigError: unknown name, a typo in the file, or a value that is not allowed.
    """
    content, file = _content(name, "workloads", "workload")
    return _workload(validate(_WorkloadFile, content, file), file)


def load_study(name: str) -> Study:
    """Read a study by the name of a preset or the path of a YAML file.

    Raises:
        ConfigError: unknown name, a typo in the file, or a value that is not allowed.
    """
    content, file = _content(name, "presets", "study")
    parsed = validate(_StudyFile, content, file)
    return Study(
        name=parsed.name,
        model=parsed.model,
        cluster=parsed.cluster,
        workload=_workload_of(parsed.workload, file),
        precisions=tuple(parsed.precisions),
        uniform=tuple(parsed.uniform),
        runtime=parsed.runtime,
        granularity=parsed.granularity,
        metric=parsed.metric,
        seed=parsed.seed,
        quality=QualitySpec(**parsed.quality.model_dump()),
        search=SearchSpec(**parsed.search.model_dump()),
        grid_g_per_kwh=parsed.grid_g_per_kwh,
        layer_times=parsed.layer_times,
        layer_time_model=parsed.layer_time_model,
        layer_time_tokens=parsed.layer_time_tokens,
    )


def _workload_of(entry: str | dict[str, Any], file: str) -> Workload:
    """Return the workload that a study names or states in place."""
    if isinstance(entry, str):
        return load_workload(entry)
    return _workload(validate(_WorkloadFile, entry, f"{file}: workload"), file, prefix="workload.")


def _workload(parsed: _WorkloadFile, file: str, prefix: str = "") -> Workload:
    fields = parsed.model_dump(exclude={"description"})
    try:
        return Workload(**fields)
    except ConfigError as error:
        path = prefix + (error.path or "").removeprefix("workload.")
        raise ConfigError(error.message, file=file, path=path, value=error.value) from error


def _content(name: str, folder: str, kind: str) -> tuple[object, str]:
    """Return the parsed YAML of a packaged name or a file, and the file's name for messages."""
    path = as_file(name)
    return read_packaged(PACKAGE, folder, kind, name) if path is None else (read_file(path), str(path))
