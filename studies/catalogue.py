"""The catalogue of architectures, and how a model's name on the command line is resolved."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dse.errors import ConfigError
from dse.graph.source import ModelSource, load_source


class ParameterCount(BaseModel):
    """The published number of parameters, shared matrices once, and where it is published."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    value: int = Field(gt=0)
    source: str = Field(min_length=1)


class CatalogueEntry(BaseModel):
    """One file of ``studies/models``.

    Attributes:
        family: name of the model family, for display.
        config: Hugging Face configuration, ``model_type`` included.
        parameters: published count, which a test compares with the built module.
        note: where the configuration comes from.
        checkpoint: name of weights that can be fetched for it, None for an architecture only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    family: str = Field(min_length=1)
    config: dict[str, Any]
    parameters: ParameterCount
    note: str = Field(min_length=1)
    checkpoint: str | None = None


def model_names() -> tuple[str, ...]:
    """Return the names of all architectures in the catalogue, sorted."""
    folder = resources.files("studies") / "models"
    return tuple(sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")))


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return one entry of the catalogue.

    Raises:
        ConfigError: no such name, or a file with missing, unknown or malformed keys.
    """
    names = model_names()
    if name not in names:
        raise ConfigError(f"unknown model '{name}'", value=name, allowed=names)
    text = (resources.files("studies") / "models" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_entry(text, file=f"models/{name}.yaml")


def parse_entry(text: str, *, file: str) -> CatalogueEntry:
    """Read the text of a catalogue file.

    Raises:
        ConfigError: not YAML, or missing, unknown or malformed keys; the text gives the dotted path.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML ({' '.join(str(error).split())})", file=file) from error
    try:
        return CatalogueEntry.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = CatalogueEntry.model_fields if len(first["loc"]) == 1 else ParameterCount.model_fields
            raise ConfigError(
                "unknown key", file=file, path=path, value=first["loc"][-1], allowed=fields
            ) from error
        raise ConfigError(first["msg"], file=file, path=path, value=first.get("input")) from error


def resolve_model(name: str) -> ModelSource:
    """Return the model that a name stands for: catalogue entry, local folder, ``.gguf`` file or hub id.

    Raises:
        ConfigError: nothing of that name; the text suggests the nearest catalogue name.
    """
    if name in model_names():
        entry = catalogue_entry(name)
        note = "architecture only: no weights, so it can be priced but not run"
        return ModelSource(name, entry.config, note=note, checkpoint=entry.checkpoint)
    path = Path(name).expanduser()
    if path.is_dir() or path.suffix.lower() == ".gguf":
        return load_source(path)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "~", "/")) and not name.endswith("/")
    if is_hub_id:
        return load_source(name)
    raise ConfigError(
        f"unknown model '{name}': not in the catalogue, and no folder, .gguf file or hub id (org/name)",
        value=name,
        allowed=model_names(),
    )
