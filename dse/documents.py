"""YAML documents at the edge: packaged or the user's, closed schemas, one clear line for each mistake."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dse.errors import ConfigError

SUFFIXES = (".yaml", ".yml")

# The parser in C is several times faster; it is missing where PyYAML was built without libyaml.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


MAX_DEPTH = 100

_STR, _SEQ, _MAP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"


class _Loader(_SAFE):
    """A safe loader that refuses a key given twice, where YAML silently keeps the last one.

    It builds plain scalars, lists and mappings itself, which takes a third of the time; whatever is rarer
    (merge keys, other tags) goes the way of the safe loader.
    """

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        return None if node is None else self._build(node, 0)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self._refuse_repeated(node)  # before merge keys add theirs, which may be overridden
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def _build(self, node: yaml.Node, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise yaml.constructor.ConstructorError(None, None, "nested too deeply", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == _STR else self.construct_object(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self._build(child, depth + 1) for child in node.value]
        plain = isinstance(node, yaml.MappingNode) and node.tag == _MAP
        if plain and all(isinstance(key, yaml.ScalarNode) and key.tag == _STR for key, _ in node.value):
            mapping = {key.value: self._build(child, depth + 1) for key, child in node.value}
            if len(mapping) < len(node.value):
                self._refuse_repeated(node)
            return mapping
        return self.construct_object(node, deep=True)

    @staticmethod
    def _refuse_repeated(node: yaml.Node) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(str(key.value))


class Closed(BaseModel):
    """A mapping whose keys are all known."""

    # Nested models are part of the schema of the one that holds them: only what is validated is built.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@cache
def packaged_names(package: str, folder: str) -> tuple[str, ...]:
    """Return the names of the YAML files in a folder of an installed package, sorted."""
    entries = resources.files(package).joinpath(folder).iterdir()
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
    )


def read_packaged(package: str, folder: str, kind: str, name: str) -> tuple[object, str]:
    """Return the content of a packaged file and its name for messages.

    Raises:
        ConfigError: no such name; ``kind`` says what it is, e.g. "device".
    """
    names = packaged_names(package, folder)
    if name not in names:
        raise ConfigError(f"unknown {kind} '{name}'", value=name, allowed=names)
    file = f"{folder}/{name}.yaml"
    text = resources.files(package).joinpath(folder).joinpath(f"{name}.yaml").read_text("utf-8")
    return parse_yaml(text, file), file


def as_file(name_or_path: str | Path) -> Path | None:
    """Return the path if the argument means a file and not a name."""
    path = Path(name_or_path)
    return path if path.suffix.lower() in SUFFIXES else None


def read_file(path: Path) -> object:
    """Return the content of a YAML file of the user's.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no such file", file=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> object:
    """Return the content of a YAML text.

    Raises:
        ConfigError: not YAML; the line says where.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (derives from a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else None
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"not valid YAML: {problem}", file=file, path=where) from error


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
