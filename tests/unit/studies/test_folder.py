"""Run folders: an unfinished run is neither overwritten nor continued by mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dse.errors import ConfigError
from dse.graph.workload import Workload
from studies.folder import RunFolder
from studies.schema import Study

STUDY = Study("s", "gpt2", "edge_pair", Workload(1, 8, 2), ("bf16",))


def start(path: Path, study: Study = STUDY, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    return RunFolder.open(path, study, resume=resume, overwrite=overwrite)


def test_unfinished_run_needs_a_decision(tmp_path: Path) -> None:
    folder = start(tmp_path / "run")
    folder.journal.write_text("trial\n")
    with pytest.raises(ConfigError, match="unfinished run: --resume goes on"):
        start(tmp_path / "run")
    assert folder.journal.read_text() == "trial\n"


def test_resume_keeps_the_journal_and_overwrite_drops_it(tmp_path: Path) -> None:
    folder = start(tmp_path / "run")
    folder.journal.write_text("trial\n")
    assert start(tmp_path / "run", resume=True).journal.exists()
    assert not start(tmp_path / "run", overwrite=True).journal.exists()


def test_finished_run_may_be_repeated(tmp_path: Path) -> None:
    folder = start(tmp_path / "run")
    folder.journal.write_text("trial\n")
    folder.finish()
    assert not start(tmp_path / "run").journal.exists()


def test_another_study_is_not_resumed(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model: the run to resume has 'gpt2', this study 'gpt3'"):
        start(tmp_path / "run", replace(STUDY, model="gpt3"), resume=True)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        start(tmp_path / "run")
