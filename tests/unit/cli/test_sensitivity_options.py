"""What ``dse sensitivity`` refuses before it measures, in a process that has imported nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
from dse.cli.sensitivity import MetricOptions
from dse.errors import ConfigError
try:
    MetricOptions({metric!r}, False, None, None).check("linear", 210)
except ConfigError as error:
    print(error)
else:
    print("accepted")
"""


@pytest.mark.parametrize("metric", ["kl", "jsd", "fisher", "trace_error", "random"])
def test_metrics_are_known_in_a_fresh_process(metric: str) -> None:
    assert _said_of(metric) == "accepted"


def test_an_unknown_metric_is_told_the_nearest() -> None:
    said = _said_of("fischer")
    assert "fisher" in said
    assert "\n" not in said


def _said_of(metric: str) -> str:
    command = [sys.executable, "-c", CHECK.format(metric=metric)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
