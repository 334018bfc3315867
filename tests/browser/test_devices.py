"""The page of devices in a real browser: every view drawn, nothing loaded, no errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hardware_specs.loader import device_names, load_device
from reports.devices import write_devices_page
from tests.browser.test_report import drawn, driver, severe, show

pytestmark = pytest.mark.browser
__all__ = ["driver"]

CHARTS = ("chart-power", "chart-roofs", "chart-memory-devices")


def test_every_chart_is_drawn(driver: Any, tmp_path: Path) -> None:
    page = write_devices_page([load_device(name) for name in device_names()], tmp_path / "devices.html")
    for width, scheme in ((1400, "light"), (480, "dark")):
        show(driver, page, width=width, scheme=scheme)
        found = drawn(driver)
        assert set(found) == set(CHARTS)
        assert all(chart["marks"] > 5 for chart in found.values())
        assert severe(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
