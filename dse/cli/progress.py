"""Progress on stderr: bars in a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class ConsoleProgress:
    """Implements ``studies.progress.StudyProgress`` for people."""

    def __init__(self) -> None:
        self._interactive = sys.stderr.isatty()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not self._interactive,
        )
        self._started = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, name: str, total: int | None = None) -> None:
        """Begin a step; the one before it is complete."""
        if not self._interactive:
            elapsed = time.monotonic() - self._started
            sys.stderr.write(f"[{elapsed:6.1f} s] {name}\n")
            sys.stderr.flush()
            return
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1)
        self._task = self._bars.add_task(name, total=total)

    def advance(self, done: int, total: int) -> None:
        """Say how far the step is."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
