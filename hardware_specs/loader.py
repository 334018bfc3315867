"""Loads devices, clusters and runtimes by name, or from a YAML file of the user's own.

Names are the file names in ``devices/``, ``clusters/`` and ``runtimes/``; packaged files are read once per
process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dse.documents import as_file, packaged_names, read_file, read_packaged
from hardware_specs.overlay import extended
from hardware_specs.schema import parse_cluster, parse_device, parse_runtime
from hardware_specs.spec import Cluster, HardwareSpec, RuntimeProfile

PACKAGE = "hardware_specs"


def device_names() -> tuple[str, ...]:
    """Return the names of all packaged devices, sorted."""
    return packaged_names(PACKAGE, "devices")


def cluster_names() -> tuple[str, ...]:
    """Return the names of all packaged clusters, sorted."""
    return packaged_names(PACKAGE, "clusters")


def runtime_names() -> tuple[str, ...]:
    """Return the names of all packaged runtimes, sorted."""
    return packaged_names(PACKAGE, "runtimes")


def load_device(name_or_path: str | Path) -> HardwareSpec:
    """Return a device by its name, or from a file whose path ends in .yaml or .yml.

    Raises:
        ConfigError: unknown name (with the nearest one), missing file, or a file that does not fit the
            schema, each in one line.
    """
    path = as_file(name_or_path)
    return _packaged_device(str(name_or_path)) if path is None else parse_device(_content(path), str(path))


def _content(path: Path) -> object:
    """Return what a user's device file holds, with the device that it extends filled in."""

    def base(reference: str) -> object:
        found = as_file(reference)
        if found is None:
            return read_packaged(PACKAGE, "devices", "device", reference)[0]
        return _content(path.parent / found)

    return extended(read_file(path), str(path), base)


def load_cluster(name_or_path: str | Path) -> Cluster:
    """Return a cluster by its name, or from a file; device paths in it are relative to the file.

    Raises:
        ConfigError: as ``load_device``, for the cluster and for its devices.
    """
    path = as_file(name_or_path)
    if path is None:
        return _packaged_cluster(str(name_or_path))

    def device(reference: str) -> HardwareSpec:
        return load_device(path.parent / reference if as_file(reference) else reference)

    return parse_cluster(read_file(path), str(path), device)


def load_runtime(name_or_path: str | Path) -> RuntimeProfile:
    """Return a runtime profile by its name, or from a file.

    Raises:
        ConfigError: as ``load_device``.
    """
    path = as_file(name_or_path)
    return _packaged_runtime(str(name_or_path)) if path is None else parse_runtime(read_file(path), str(path))


@cache
def _packaged_device(name: str) -> HardwareSpec:
    return parse_device(*read_packaged(PACKAGE, "devices", "device", name))


@cache
def _packaged_cluster(name: str) -> Cluster:
    content, file = read_packaged(PACKAGE, "clusters", "cluster", name)
    return parse_cluster(content, file, load_device)


@cache
def _packaged_runtime(name: str) -> RuntimeProfile:
    return parse_runtime(*read_packaged(PACKAGE, "runtimes", "runtime", name))
