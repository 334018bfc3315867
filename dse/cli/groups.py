"""Groups of options: a command takes a dataclass, the user sees its fields as options of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer


def add_command(app: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Add a command to the program, every parameter that is a dataclass spread into its fields.

    The defaults of those fields are typer's options, like those of a command's own parameters; only the
    program makes such groups. A field that two groups share is one option, given to both.
    """
    groups: dict[str, type[Any]] = {}
    spread: dict[str, inspect.Parameter] = {}
    parameters = inspect.signature(command, eval_str=True).parameters
    for parameter in parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            spread |= _fields_of(kind)
        else:
            spread[parameter.name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def run(**given: Any) -> None:
        made = {
            group: kind(**{key: given[key] for key in _fields_of(kind)}) for group, kind in groups.items()
        }
        command(**made, **{key: given[key] for key in parameters if key not in groups})

    run.__doc__ = command.__doc__
    run.__annotations__ = {key: parameter.annotation for key, parameter in spread.items()}
    run.__signature__ = inspect.Signature(list(spread.values()))  # type: ignore[attr-defined]
    app.command(name)(run)


def _fields_of(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the fields of a group as parameters of a command."""
    hints = get_type_hints(kind)
    return {
        field.name: inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    }
