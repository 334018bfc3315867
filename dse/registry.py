"""A named collection that refuses duplicates and suggests the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dse.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to entries of one kind; conformance tests run over its names."""

    def __init__(self, kind: str) -> None:
        """Create an empty registry; ``kind`` names its entries in messages, e.g. 'sensitivity metric'."""
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        Raises:
            ValueError: the name is taken (a programming error, so not a ConfigError).
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry, or raise ConfigError with the nearest name."""
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} '{name}'", value=name, allowed=self._entries)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._entries))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)
