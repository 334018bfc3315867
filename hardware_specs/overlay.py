"""Overlays: a device file that extends another one and replaces parts of it, such as calibrated kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dse.errors import ConfigError

EXTENDS = "extends"


def extended(content: object, file: str, base: Callable[[str], Any]) -> object:
    """Return the content of a device file with what it extends filled in; others are returned as they are.

    Args:
        content: what the YAML file holds.
        file: its name, for messages.
        base: reads the content of a device by the name or path after ``extends``.

    Mappings are merged key by key, and links (which are lists) by their name; anything else is replaced.
    A kernel profile is replaced as a whole, because its constants belong to one fit.
    """
    if not isinstance(content, Mapping) or EXTENDS not in content:
        return content
    reference = content[EXTENDS]
    if not isinstance(reference, str):
        raise ConfigError("must be a device name or a file", file=file, path=EXTENDS, value=str(reference))
    own = {key: value for key, value in content.items() if key != EXTENDS}
    return _merged(base(reference), own, depth=0)


def _merged(old: Any, new: Any, depth: int, key: str = "") -> Any:
    if (
        isinstance(old, Mapping)
        and isinstance(new, Mapping)
        and (depth == 0 or key in {"kernels", "sources"})
    ):
        return {
            **old,
            **{name: _merged(old.get(name), value, depth + 1, name) for name, value in new.items()},
        }
    if key == "links" and isinstance(old, list) and isinstance(new, list):
        named = {entry["name"]: entry for entry in new}
        return [{**entry, **named.get(entry["name"], {})} for entry in old]
    return new
