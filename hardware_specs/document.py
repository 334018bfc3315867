"""The shape of spec files: closed pydantic models, and one clear line for whatever does not fit them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dse.errors import ConfigError
from hardware_specs.spec import DeviceClass, LinkKind, Support

Confidence = Literal["high", "medium", "low"]


class Closed(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(Closed):
    """A number with its unit, inside an entry that has one source for all its numbers."""

    value: Any
    unit: str


class Leaf(Quantity):
    """A number with its unit and where it comes from: free text, or the id of an entry of ``sources``."""

    source: str
    note: str = ""
    confidence: Confidence = "high"


class PathDocument(Closed):
    """What the device does with one compute kind."""

    support: Support
    rate: Leaf | None = None
    compute_as: str | None = None
    reason: str = ""


class WeightOnlyDocument(Closed):
    """Widths of integer weights that kernels expand on the fly."""

    bits: tuple[int, ...]
    source: str
    reason: str = ""


class TierDocument(Closed):
    """One memory."""

    name: str
    kind: str
    main: bool = False
    capacity: Leaf
    bandwidth: Leaf | None = None
    energy: Leaf | None = None


class LinkDocument(Closed):
    """One link; bandwidth is per direction and per device."""

    name: str
    kind: LinkKind
    bandwidth: Leaf
    latency: Leaf
    energy: Leaf | None = None
    max_devices: Leaf | None = None


class PowerDocument(Closed):
    """Board power."""

    tdp: Leaf | None = None
    static: Leaf | None = None
    static_note: str = ""
    main_memory: Leaf | None = None
    per_flop: dict[str, Leaf] = Field(default_factory=dict)


class KernelDocument(Closed):
    """Constants of one kernel profile, all of one fit."""

    flop_efficiency: Any
    byte_efficiency: Any
    floor: Quantity
    exponent: Any
    source: str
    provenance: Literal["calibrated", "analytic"] = "calibrated"
    context_log: Quantity | None = None
    wave: Quantity | None = None


class DeviceDocument(Closed):
    """A file of ``devices/``."""

    name: str
    vendor: str
    device_class: DeviceClass = Field(alias="class")
    description: str
    year: int | None = Field(default=None, strict=True)
    sources: dict[str, str] = Field(default_factory=dict)
    process: Leaf | None = None
    cores: Leaf | None = None
    clock: Leaf | None = None
    compute: dict[str, PathDocument]
    weight_only: WeightOnlyDocument
    memory: tuple[TierDocument, ...] = Field(min_length=1)
    reserve: Leaf | None = None
    links: tuple[LinkDocument, ...] = ()
    power: PowerDocument
    kernels: dict[str, KernelDocument] = Field(default_factory=dict)
    price: Leaf | None = None


class NodeDocument(Closed):
    """One machine of a cluster: ``count`` devices of one type."""

    name: str
    device: str
    count: int = Field(default=1, ge=1, strict=True)
    intra_link: LinkDocument | None = None


class ClusterDocument(Closed):
    """A file of ``clusters/``."""

    name: str
    description: str
    source: str
    sources: dict[str, str] = Field(default_factory=dict)
    nodes: tuple[NodeDocument, ...] = Field(min_length=1)
    inter_link: LinkDocument | None = None


class RuntimeDocument(Closed):
    """A file of ``runtimes/``; an absent list of formats allows all."""

    name: str
    description: str
    source: str
    ties: tuple[tuple[str, ...], ...] = ()
    weight_formats: tuple[str, ...] | None = None
    activation_formats: tuple[str, ...] | None = None
    kv_formats: tuple[str, ...] | None = None
    kv_is_global: bool = False
    mixed_within_layer: bool = True


DocumentType = TypeVar("DocumentType", bound=Closed)


def validate(model: type[DocumentType], content: object, file: str) -> DocumentType:
    """Return the document of a parsed YAML file.

    Raises:
        ConfigError: one line ``file: dotted.path: what is wrong`` for the first thing that does not fit.
            Unknown keys come first, since a typo also leaves the right key missing.
    """
    if content is None:
        raise ConfigError("the file is empty", file=file)
    if not isinstance(content, Mapping):
        raise ConfigError(f"must hold a mapping of keys, but is {_said(content)}", file=file)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    raise _explain(model, dict(problem), file)


def _explain(model: type[Closed], problem: dict[str, Any], file: str) -> ConfigError:
    """Return the one line for one problem that pydantic found."""
    loc: tuple[int | str, ...] = problem["loc"]
    parent, last = loc[:-1], str(loc[-1]) if loc else ""
    path, above = dotted(loc), dotted(parent) or None
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = keys_at(model, parent)
        return ConfigError(f"unknown key '{last}'", file=file, path=above, value=last, allowed=known)
    if kind == "missing":
        if last == "source":
            text = "has no source: every number says where it comes from (a text, or an id of 'sources')"
            return ConfigError(text, file=file, path=above)
        return ConfigError(f"the key '{last}' is missing", file=file, path=above)
    if kind == "literal_error":
        allowed = [text.strip(" '") for text in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return ConfigError(f"'{given}' is not allowed", file=file, path=path, value=given, allowed=allowed)
    if kind in {"model_type", "model_attributes_type"}:
        keys = ", ".join(keys_at(model, loc))
        return ConfigError(f"must be a mapping {{{keys}}}, but is {_said(given)}", file=file, path=path)
    if kind == "too_short":
        return ConfigError("needs at least one entry", file=file, path=path)
    wanted = problem["msg"].replace("Input should be ", "must be ")
    return ConfigError(f"{wanted}, but is {_said(given)}", file=file, path=path)


def dotted(loc: tuple[int | str, ...]) -> str:
    """Return a location inside a document as a dotted path, e.g. ``memory.0.capacity``."""
    return ".".join(str(part) for part in loc)


def keys_at(model: type[Closed], loc: tuple[int | str, ...]) -> list[str]:
    """Return the known keys of the mapping at a location of a document."""
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, Closed):
            fields = {field.alias or name: field.annotation for name, field in here.model_fields.items()}
            here = _inner(fields.get(str(part)))
        else:
            here = _inner(get_args(here)[-1] if get_origin(here) is dict else get_args(here)[0])
    if isinstance(here, type) and issubclass(here, Closed):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _inner(annotation: Any) -> Any:
    """Return the part of an optional annotation that is not None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _said(value: object) -> str:
    """Return a value as a message shows it, long ones shortened."""
    text = "empty" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
