"""The program, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from dse.cli.main import main

Outcome = tuple[int, str, str]
"""(exit code, stdout, stderr)"""
Run = Callable[..., Outcome]


def run_program(
    words: tuple[object, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Run ``dse`` with some words."""
    monkeypatch.setattr(sys, "argv", ["dse", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
