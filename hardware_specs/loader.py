"""Loads devices, clusters and runtimes by name, or from a YAML file of the user's own.

Names are the file names in ``devices/``, ``clusters/`` and ``runtimes/``; packaged files are read once per
process.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from dse.errors import ConfigError
from hardware_specs.schema import parse_cluster, parse_device, parse_runtime
from hardware_specs.spec import Cluster, HardwareSpec, RuntimeProfile

Folder = Literal["devices", "clusters", "runtimes"]
SUFFIXES = (".yaml", ".yml")

# The parser in C is several times faster; it is missing where PyYAML was built without libyaml.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE):
    """A safe loader that refuses a key given twice, where YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return mapping


def device_names() -> tuple[str, ...]:
    """Return the names of all packaged devices, sorted."""
    return _names("devices")


def cluster_names() -> tuple[str, ...]:
    """Return the names of all packaged clusters, sorted."""
    return _names("clusters")


def runtime_names() -> tuple[str, ...]:
    """Return the names of all packaged runtimes, sorted."""
    return _names("runtimes")


def load_device(name_or_path: str | Path) -> HardwareSpec:
    """Return a device by its name, or from a file whose path ends in .yaml or .yml.

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that does not fit the
            schema, each in one line.
    """
    path = _as_file(name_or_path)
    return _packaged_device(str(name_or_path)) if path is None else parse_device(_read(path), str(path))


def load_cluster(name_or_path: str | Path) -> Cluster:
    """Return a cluster by its name, or from a file; device paths in it are relative to the file.

    Raises:
        ConfigError: as ``load_device``, for the cluster and for its devices.
    """
    path = _as_file(name_or_path)
    if path is None:
        return _packaged_cluster(str(name_or_path))

    def device(reference: str) -> HardwareSpec:
        return load_device(path.parent / reference if _as_file(reference) else reference)

    return parse_cluster(_read(path), str(path), device)


def load_runtime(name_or_path: str | Path) -> RuntimeProfile:
    """Return a runtime profile by its name, or from a file.

    Raises:
        ConfigError: as ``load_device``.
    """
    path = _as_file(name_or_path)
    return _packaged_runtime(str(name_or_path)) if path is None else parse_runtime(_read(path), str(path))


@cache
def _names(folder: Folder) -> tuple[str, ...]:
    entries = resources.files("hardware_specs").joinpath(folder).iterdir()
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))
    )


@cache
def _packaged_device(name: str) -> HardwareSpec:
    return parse_device(*_packaged("devices", "device", name))


@cache
def _packaged_cluster(name: str) -> Cluster:
    content, file = _packaged("clusters", "cluster", name)
    return parse_cluster(content, file, load_device)


@cache
def _packaged_runtime(name: str) -> RuntimeProfile:
    return parse_runtime(*_packaged("runtimes", "runtime", name))


def _packaged(folder: Folder, kind: str, name: str) -> tuple[object, str]:
    """Return the content and the file name of a packaged entry."""
    if name not in _names(folder):
        raise ConfigError(f"unknown {kind} '{name}'", value=name, allowed=_names(folder))
    file = f"{folder}/{name}.yaml"
    text = resources.files("hardware_specs").joinpath(folder).joinpath(f"{name}.yaml").read_text("utf-8")
    return parse_yaml(text, file), file


def _as_file(name_or_path: str | Path) -> Path | None:
    """Return the path if the argument means a file and not a name."""
    path = Path(name_or_path)
    return path if path.suffix.lower() in SUFFIXES else None


def _read(path: Path) -> object:
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
