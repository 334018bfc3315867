"""The folder of a run: what is in it, whether it may be continued, and the marks of an unfinished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dse.content import write_atomic
from dse.errors import ConfigError
from studies.schema import Study


@dataclass(frozen=True)
class RunFolder:
    """``study.json`` (inputs), ``trials.journal`` (Optuna), ``unfinished`` (mark), and later the results."""

    path: Path

    @property
    def journal(self) -> Path:
        """The journal file of the trials."""
        return self.path / "trials.journal"

    @property
    def _mark(self) -> Path:
        return self.path / "unfinished"

    @classmethod
    def open(cls, path: Path, study: Study, *, resume: bool, overwrite: bool) -> RunFolder:
        """Prepare the folder for a run.

        A finished run is simply repeated: its results stay until the new ones replace them.

        Raises:
            ConfigError: an unfinished run lies here and neither ``resume`` nor ``overwrite`` is given, or the
                run to resume is of another study.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise ConfigError("is a file; give a folder", file=str(path))
        unfinished = folder._mark.exists()
        if unfinished and not resume and not overwrite:
            raise ConfigError(
                "holds an unfinished run: --resume goes on with it, --overwrite starts anew", file=str(path)
            )
        if resume and (path / "study.json").exists():
            folder._check_same(study)
        if not (resume and unfinished):
            folder.journal.unlink(missing_ok=True)
        try:
            write_atomic(folder._mark, "")
            write_atomic(path / "study.json", json.dumps(study.to_json(), indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", file=str(path)) from error
        return folder

    def finish(self) -> None:
        """Mark the run as finished."""
        self._mark.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Take back the mark of a run that failed before its first trial: there is nothing to resume."""
        if not self.journal.exists():
            self.finish()

    def _check_same(self, study: Study) -> None:
        """Refuse to continue a run whose inputs differ, naming the first that does."""
        try:
            before = json.loads((self.path / "study.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                "is damaged; --overwrite starts anew", file=str(self.path / "study.json")
            ) from error
        now = json.loads(json.dumps(study.to_json()))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"the run to resume has {before.get(key)!r}, this study {now.get(key)!r}; "
                    "--overwrite starts anew",
                    file=str(self.path),
                    path=key,
                )
