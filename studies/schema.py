"""Study and workload files: the closed YAML schema at the edge, frozen types inside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dse.content import content_hash
from dse.errors import ConfigError
from dse.graph.workload import Workload


@dataclass(frozen=True)
class QualitySpec:
    """How quality is measured.

    Attributes:
        corpus: path of a text file, or None for the embedded corpus.
        tokens: evaluation tokens of a finalist; sensitivity_tokens: of one (unit, precision) or one trial.
        sequence_length: tokens per sequence.
        dtype: "bfloat16" or "float32".
        tolerance_frac: the recommended plan may lose at most this share of perplexity.
    """

    corpus: str | None = None
    tokens: int = 8192
    sensitivity_tokens: int = 1024
    sequence_length: int = 512
    dtype: str = "bfloat16"
    tolerance_frac: float = 0.05


@dataclass(frozen=True)
class SearchSpec:
    """How hard to search: Optuna trials, points of the exact front, plans measured at the end."""

    trials: int = 60
    front_points: int = 10
    finalists: int = 8
    solver_time_s: float = 10.0


@dataclass(frozen=True)
class Study:
    """The inputs of an experiment. Names refer to the packaged files or to the user's own.

    ``precisions`` are texts that ``parse_precision`` reads; ``uniform`` those measured as baselines.
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


M = TypeVar("M", bound=BaseModel)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class _WorkloadFile(_Closed):
    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None
    description: str = ""


class _QualityFile(_Closed):
    corpus: str | None = None
    tokens: int = Field(8192, ge=2)
    sensitivity_tokens: int = Field(1024, ge=2)
    sequence_length: int = Field(512, ge=2)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float32)$")
    tolerance_frac: float = Field(0.05, ge=0)


class _SearchFile(_Closed):
    trials: int = Field(60, ge=0)
    front_points: int = Field(10, ge=2)
    finalists: int = Field(8, ge=1)
    solver_time_s: float = Field(10.0, gt=0)


class _StudyFile(_Closed):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    model: str
    cluster: str
    workload: str | _WorkloadFile
    precisions: list[str] = Field(min_length=1)
    uniform: list[str] = []
    runtime: str = "generic"
    granularity: str = "block"
    metric: str = "kl"
    seed: int = Field(0, ge=0)
    quality: _QualityFile = _QualityFile()
    search: _SearchFile = _SearchFile()


def preset_names() -> tuple[str, ...]:
    """Names of the packaged studies."""
    return _packaged("presets")


def workload_names() -> tuple[str, ...]:
    """Names of the packaged workloads."""
    return _packaged("workloads")


def load_workload(name: str) -> Workload:
    """Read a workload by packaged name or path.

    Raises:
        ConfigError: unknown name, a typo in the file, or a value that is not allowed.
    """
    document, file = _read(name, "workloads", "workload")
    return _workload(_validated(_WorkloadFile, document, file), file)


def load_study(name: str) -> Study:
    """Read a study by the name of a preset or the path of a YAML file.

    Raises:
        ConfigError: unknown name, a typo in the file, or a value that is not allowed.
    """
    document, file = _read(name, "presets", "study")
    parsed = _validated(_StudyFile, document, file)
    workload = (
        load_workload(parsed.workload)
        if isinstance(parsed.workload, str)
        else _workload(parsed.workload, file, prefix="workload.")
    )
    return Study(
        name=parsed.name,
        model=parsed.model,
        cluster=parsed.cluster,
        workload=workload,
        precisions=tuple(parsed.precisions),
        uniform=tuple(parsed.uniform),
        runtime=parsed.runtime,
        granularity=parsed.granularity,
        metric=parsed.metric,
        seed=parsed.seed,
        quality=QualitySpec(**parsed.quality.model_dump()),
        search=SearchSpec(**parsed.search.model_dump()),
    )


def _workload(parsed: _WorkloadFile, file: str, prefix: str = "") -> Workload:
    fields = parsed.model_dump(exclude={"description"})
    try:
        return Workload(**fields)
    except ConfigError as error:
        path = prefix + (error.path or "").removeprefix("workload.")
        raise ConfigError(error.message, file=file, path=path, value=error.value) from error


@cache
def _packaged(folder: str) -> tuple[str, ...]:
    names = (entry.name for entry in resources.files("studies").joinpath(folder).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def _read(name: str, folder: str, kind: str) -> tuple[Any, str]:
    """Return the parsed YAML and the file's name for messages."""
    if name in _packaged(folder):
        text = resources.files("studies").joinpath(folder, f"{name}.yaml").read_text(encoding="utf-8")
        return _parse(text, f"{name}.yaml"), f"{name}.yaml"
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"unknown {kind} '{name}'", value=name, allowed=_packaged(folder))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", file=str(path)) from error
    return _parse(text, str(path)), str(path)


def _parse(text: str, file: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{where}is not valid YAML ({getattr(error, 'problem', error)})", file=file
        ) from error


def _validated(model: type[M], document: Any, file: str) -> M:
    """Validate, or raise the first problem as one line with its dotted path."""
    if not isinstance(document, dict):
        raise ConfigError(f"must be a mapping of keys, but got {type(document).__name__}", file=file)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = error.errors()
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]
        first = max(unknown or problems, key=lambda p: len(p["loc"]))  # the deepest says most
        raise _as_config_error(model, first, file) from error


def _as_config_error(model: type[BaseModel], problem: Any, file: str) -> ConfigError:
    location = [str(part) for part in problem["loc"] if not str(part).startswith("_") and part != "str"]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        return ConfigError("unknown key", file=file, path=path, value=location[-1], allowed=known)
    if problem["type"] == "missing":
        return ConfigError("is missing", file=file, path=path)
    message = problem["msg"].removeprefix("Value error, ")
    return ConfigError(
        f"{message[0].lower()}{message[1:]}, but got {problem['input']!r}", file=file, path=path
    )


def _keys_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Return the allowed keys of the mapping at a path."""
    nested = {"quality": _QualityFile, "search": _SearchFile, "workload": _WorkloadFile}
    for part in location:
        model = nested.get(part, model)
    return list(model.model_fields)
