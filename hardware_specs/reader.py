"""Reads the numbers of one spec file into SI units and keeps where each of them came from."""

from __future__ import annotations

from collections.abc import Mapping

from dse.errors import ConfigError
from hardware_specs.document import Leaf, Quantity
from hardware_specs.spec import Sourced
from hardware_specs.units import Dimension, parse_number, to_si


class Reader:
    """Converts the numbers of one file and keeps where each came from."""

    def __init__(self, file: str, sources: Mapping[str, str]) -> None:
        self.file = file
        self._texts = dict(sources)
        self.sourced: list[Sourced] = []

    def source(self, text: str, path: str) -> str:
        """Return the text of a source; a word without spaces, dots or slashes is an id of ``sources``."""
        if not text.strip():
            raise ConfigError("the source is empty", file=self.file, path=path)
        if any(mark in text for mark in " ./:"):
            return text
        if text not in self._texts:
            raise ConfigError(
                f"unknown source id '{text}'", file=self.file, path=path, value=text, allowed=self._texts
            )
        return self._texts[text]

    def si(self, leaf: Leaf, path: str, dimension: Dimension, *, zero: bool = False) -> float:
        """Return a number in SI units and record it with its source."""
        number = to_si(leaf.value, leaf.unit, dimension, zero=zero, file=self.file, path=path)
        value = parse_number(leaf.value, file=self.file, path=path)
        source = self.source(leaf.source, f"{path}.source")
        self.sourced.append(Sourced(path, value, leaf.unit, source, leaf.confidence, leaf.note))
        return number

    def maybe(
        self, leaf: Leaf | None, path: str, dimension: Dimension, *, zero: bool = False
    ) -> float | None:
        """Return ``si`` of a number that may be absent."""
        return None if leaf is None else self.si(leaf, path, dimension, zero=zero)

    def count(self, leaf: Leaf | None, path: str) -> int | None:
        """Return a whole number that may be absent."""
        number = self.maybe(leaf, path, "count")
        if number is not None and number != int(number):
            raise ConfigError(f"must be a whole number, but is {number:g}", file=self.file, path=path)
        return None if number is None else int(number)

    def seconds(self, quantity: Quantity, path: str) -> float:
        """Return a time that shares the source of its entry; 0 is allowed."""
        return to_si(quantity.value, quantity.unit, "second", zero=True, file=self.file, path=path)

    def derived(self, path: str, value: float, unit: str, source: str, note: str = "") -> None:
        """Record a number that was derived at load time."""
        self.sourced.append(Sourced(path, value, unit, source, "low", note))

    def known_key(self, key: str, path: str, allowed: tuple[str, ...]) -> None:
        """Refuse a key of a mapping whose keys are names."""
        if key not in allowed:
            raise ConfigError(
                f"unknown key '{key}'", file=self.file, path=path, value=key, allowed=list(allowed)
            )
