"""The catalogue of architectures, and how a model's name on the command line is resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from dse.documents import Closed, packaged_names, parse_yaml, read_packaged, validate
from dse.errors import ConfigError
from dse.graph.source import ModelSource, load_source

FOLDER = ("studies", "models")


class _Strict(Closed):
    """A closed mapping that takes a value for what it is: no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ParameterCount(_Strict):
    """The published number of parameters, shared matrices once, and where it is published.

    ``plus_minus`` is the rounding of the published number, 0 where it is exact.
    """

    value: int = Field(gt=0)
    source: str = Field(min_length=1)
    plus_minus: int = Field(default=0, ge=0)


class CatalogueEntry(_Strict):
    """One file of ``studies/models``.

    Attributes:
        family: name of the model family, for display.
        config: Hugging Face configuration, ``model_type`` included.
        parameters: published count, which a test compares with the built module.
        note: where the configuration comes from.
        checkpoint: name of weights that can be fetched for it, None for an architecture only.
    """

    family: str = Field(min_length=1)
    config: dict[str, Any]
    parameters: ParameterCount
    note: str = Field(min_length=1)
    checkpoint: str | None = None


def model_names() -> tuple[str, ...]:
    """Return the names of all architectures in the catalogue, sorted."""
    return packaged_names(*FOLDER)


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return one entry of the catalogue.

    Raises:
        ConfigError: no such name, or a file with missing, unknown or malformed keys.
    """
    return validate(CatalogueEntry, *read_packaged(*FOLDER, "model", name))


def parse_entry(text: str, *, file: str) -> CatalogueEntry:
    """Read the text of a catalogue file.

    Raises:
        ConfigError: not YAML, or missing, unknown or malformed keys; the text gives the dotted path.
    """
    return validate(CatalogueEntry, parse_yaml(text, file), file)


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
