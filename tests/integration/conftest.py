"""The program as a fixture of integration tests."""

from __future__ import annotations

import pytest

from tests.command_line import Outcome, Run, run_program


@pytest.fixture
def dse(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Run the program in this process, with a cache that the session shares, and never ask the hub."""
    monkeypatch.setenv("DSE_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*words: object) -> Outcome:
        return run_program(words, capsys, monkeypatch)

    return run
