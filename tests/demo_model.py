"""The demo checkpoint for tests: fetched on demand, skipped with a reason where that is impossible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dse.emulate.checkpoint import fetch_demo
from dse.errors import ConfigError


def demo_folder() -> Path:
    """Return the folder of the demo checkpoint; in CI its absence is a failure."""
    try:
        return fetch_demo()
    except ConfigError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
