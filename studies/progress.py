"""How a long run tells where it is; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class StudyProgress(Protocol):
    """Receives the steps of a study."""

    def step(self, name: str, total: int | None = None) -> None:
        """Begin a step; the one before it is complete."""

    def advance(self, done: int, total: int) -> None:
        """Say how far the step is."""


class Silent:
    """Progress for scripts and tests."""

    def step(self, name: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int) -> None:
        """Do nothing."""
