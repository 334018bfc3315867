"""The page of a capacity plan in a real browser: every chart drawn, nothing loaded, no errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.capacity import write_capacity_report
from studies.capacity_run import run_capacity
from studies.capacity_schema import load_capacity_study
from studies.progress import Silent
from tests.browser.test_report import drawn, driver, severe, show
from tests.capacity_case import write_case

pytestmark = pytest.mark.browser
__all__ = ["driver"]

CHARTS = {
    *("chart-latency", "chart-use", "chart-cost-vs-rate", "chart-cost-vs-level", "chart-cost-vs-context"),
    *("chart-break-even", "chart-price", "chart-growth"),
}


def test_every_chart_is_drawn(driver: Any, tmp_path: Path) -> None:
    study = replace(load_capacity_study(str(write_case(tmp_path))), ask=("all",))
    page = write_capacity_report(run_capacity(study, Silent()), tmp_path / "capacity.html")
    for width, scheme in ((1400, "light"), (480, "dark")):
        show(driver, page, width=width, scheme=scheme)
        found = drawn(driver)
        assert set(found) == CHARTS
        assert all(chart["marks"] >= 1 for chart in found.values()), found
        assert severe(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
