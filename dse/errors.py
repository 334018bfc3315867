"""The error tree: every failure that a user can cause or meet has one type, one line and one exit code.

::

    DseError
    ├── ConfigError(ValueError)            bad input                          exit 2
    │   ├── UnitError                      unknown or mismatched unit
    │   └── UnsupportedOnDevice            a device has no path for a format
    ├── NoFeasiblePlan                     no choice satisfies the constraints exit 3
    │   └── DoesNotFitMemory               more or larger devices would help
    └── Interrupted                        stopped by the user; --resume goes on  exit 130
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DseError(Exception):
    """Base of all expected failures; the command line prints its text as one line.

    Attributes:
        exit_code: what the process returns when the error reaches the command line.
    """

    exit_code = 1


class ConfigError(DseError, ValueError):
    """Bad input. The text names file, dotted path, value, what is allowed and the nearest match."""

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        path: str | None = None,
        value: object = None,
        allowed: Iterable[str] | None = None,
    ) -> None:
        self.message = message
        self.file = file
        self.path = path
        self.value = value
        self.allowed = None if allowed is None else sorted(allowed)
        where = ": ".join(part for part in (file, path) if part)
        text = f"{where}: {message}" if where else message
        if self.allowed:
            text += nearest_hint(str(value), self.allowed)
        super().__init__(text)


class UnitError(ConfigError):
    """A unit that is not known, or one of the wrong dimension."""


class UnsupportedOnDevice(ConfigError):
    """A device has no published rate, or no path at all, for a compute kind or number format."""

    def __init__(self, device: str, wanted: str, *, known: Iterable[str], reason: str = "") -> None:
        self.device = device
        self.wanted = wanted
        self.reason = reason or f"no {wanted} rate is known"
        super().__init__(f"{device}: {self.reason}", path=None, value=wanted, allowed=known)


class NoFeasiblePlan(DseError):
    """Nothing satisfies the constraints; the text says which one binds and the smallest relaxation."""

    exit_code = 3


class DoesNotFitMemory(NoFeasiblePlan):
    """The model does not fit the devices, by the stated number of bytes."""


class Interrupted(DseError):
    """The user stopped the run; finished work is kept and --resume continues."""

    exit_code = 130


def nearest_hint(value: str, allowed: list[str]) -> str:
    """Return ' (did you mean ...; allowed: ...)' for a value that is not among the allowed ones."""
    close = difflib.get_close_matches(value.lower(), [name.lower() for name in allowed], n=1, cutoff=0.5)
    original = {name.lower(): name for name in allowed}
    guess = f"did you mean '{original[close[0]]}'? " if close else ""
    shown = ", ".join(allowed[:12]) + (f", ... ({len(allowed)} in all)" if len(allowed) > 12 else "")
    return f" ({guess}allowed: {shown})"
