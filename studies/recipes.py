"""Recipes: how a model is quantized, as a YAML of independent blocks, and the frozen type behind it.

Blocks: formats (of weights, activations, cache, with exceptions by role), transform, range fit,
compensation, outlier store, low-rank store, runtime policy. Whatever is left out does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import Field

from dse.content import content_hash
from dse.documents import Closed, as_file, packaged_names, read_file, read_packaged, validate
from dse.errors import ConfigError
from dse.formats.grammar import parse_precision
from dse.formats.precision import Precision
from dse.policy import RuntimePolicy

PACKAGE, FOLDER = "studies", "recipes"
CALIBRATION_TOKENS = 16384


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a model.

    Attributes:
        name, description: for people.
        precision: of all linears; roles: exceptions by the last part of a linear's name ("down_proj").
        weights: fields of the weight recipe (transform, quantizer, fit, order, damping_frac, outliers,
            low_rank, alpha), as ``dse.emulate`` reads them.
        policy: of the runtime; calibration_tokens: that steps look at, where they look at any.
    """

    name: str
    precision: Precision
    description: str = ""
    roles: tuple[tuple[str, Precision], ...] = ()
    weights: dict[str, Any] = field(default_factory=dict)
    policy: RuntimePolicy = field(default_factory=RuntimePolicy)
    calibration_tokens: int = CALIBRATION_TOKENS

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of everything that decides the result."""
        return {
            "name": self.name,
            "precision": self.precision.to_json(),
            "roles": {role: precision.to_json() for role, precision in self.roles},
            "weights": self.weights,
            "runtime": self.policy.to_json(),
            "calibration_tokens": self.calibration_tokens,
        }

    @property
    def hash(self) -> str:
        """Content hash over everything but the name."""
        return content_hash({key: value for key, value in self.to_json().items() if key != "name"})


class _Formats(Closed):
    weights: str = "bf16"
    activations: str = "bf16"
    kv: str = "bf16"


class _Transform(Closed):
    kind: str = "none"
    alpha: float | None = None


class _Compensation(Closed):
    kind: str = "none"
    order: str = "natural"
    damping_frac: float = Field(default=0.01, ge=0)


class _Outliers(Closed):
    kind: str
    share_frac: float
    score: str = "magnitude"
    exact_inputs: bool = False
    format: str = "fp16"


class _RecipeFile(Closed):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    formats: _Formats = _Formats()
    roles: dict[str, _Formats] = Field(default_factory=dict)
    transform: _Transform = _Transform()
    range_fit: str = "minmax"
    compensation: _Compensation = _Compensation()
    outliers: _Outliers | None = None
    low_rank: int = Field(default=0, ge=0)
    runtime: dict[str, Any] = Field(default_factory=dict)
    calibration_tokens: int = Field(default=CALIBRATION_TOKENS, ge=2)


def recipe_names() -> tuple[str, ...]:
    """Names of the packaged recipes."""
    return packaged_names(PACKAGE, FOLDER)


def load_recipe(name: str) -> Recipe:
    """Read a recipe by packaged name or path.

    Raises:
        ConfigError: unknown name, a typo in the file, or a value that is not allowed.
    """
    path = as_file(name)
    content, file = (
        read_packaged(PACKAGE, FOLDER, "recipe", name) if path is None else (read_file(path), str(path))
    )
    parsed = validate(_RecipeFile, content, file)
    try:
        return _recipe(parsed)
    except ConfigError as error:
        raise ConfigError(
            error.message, file=file, path=error.path, value=error.value, allowed=error.allowed
        ) from error


Part = TypeVar("Part")


def _at(path: str, read: Callable[[], Part]) -> Part:
    """Return what ``read`` does, with the place of the part in its errors."""
    try:
        return read()
    except ConfigError as error:
        where = path if error.path is None else f"{path}.{error.path}"
        raise ConfigError(error.message, path=where, value=error.value, allowed=error.allowed) from error


def _recipe(parsed: _RecipeFile) -> Recipe:
    weights: dict[str, Any] = {
        "transform": parsed.transform.kind,
        "quantizer": "rtn" if parsed.compensation.kind == "none" else parsed.compensation.kind,
        "fit": parsed.range_fit,
        "order": parsed.compensation.order,
        "damping_frac": parsed.compensation.damping_frac,
        "outliers": None if parsed.outliers is None else parsed.outliers.model_dump(),
        "low_rank": parsed.low_rank,
    }
    if parsed.transform.alpha is not None:
        weights["alpha"] = parsed.transform.alpha
    return Recipe(
        name=parsed.name,
        description=parsed.description,
        precision=_at("formats", partial(parse_precision, parsed.formats.model_dump())),
        roles=tuple(
            (role, _at(f"roles.{role}", partial(parse_precision, entry.model_dump())))
            for role, entry in parsed.roles.items()
        ),
        weights=weights,
        policy=_at("runtime", partial(RuntimePolicy.from_json, parsed.runtime)),
        calibration_tokens=parsed.calibration_tokens,
    )
