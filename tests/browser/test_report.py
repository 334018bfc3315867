"""The report in a real browser: everything drawn, nothing loaded, nothing on the error console."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.build import write_report
from studies.result import StudyResult
from tests.factories_result import make_result

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-3d-apis",
    "--hide-scrollbars",
)
CHARTS = (
    "chart-pareto",
    "chart-bits-overview",
    "chart-bits-plan",
    "chart-sensitivity",
    "chart-roofline",
    "chart-memory",
    "chart-timeline",
    "chart-fidelity",
    "chart-progress",
)


def missing(message: str) -> None:
    """Skip on a machine without a browser; in CI that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing("the browser test needs Chromium and chromedriver on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_result(), tmp_path_factory.mktemp("report") / "report.html")


def show(driver: Any, path: Path, *, width: int = 1400, scheme: str = "light") -> None:
    """Open a page at a width and colour scheme, and wait until the last chart is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    prefer(driver, scheme)
    driver.get(path.as_uri())
    WebDriverWait(driver, 60).until(
        lambda page: page.execute_script("return document.documentElement.dataset.ready") == "true"
    )


def prefer(driver: Any, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def screenshot(driver: Any, path: Path) -> int:
    """Write the whole page as PNG and return the file's size in bytes."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    width = driver.execute_script("return window.innerWidth")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))
    return path.stat().st_size


def severe(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def drawn(driver: Any) -> dict[str, dict[str, float]]:
    """Size and number of drawn marks of every chart, by id."""
    return driver.execute_script(
        """
        const found = {};
        document.querySelectorAll(".js-plotly-plot").forEach(function (plot) {
          const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
          found[plot.id] = {
            width: box.width, height: box.height, traces: plot.data.length,
            marks: plot.querySelectorAll(".trace, .scatterlayer path, .hm image, .heatmaplayer image").length,
          };
        });
        return found;
        """
    )


def overlapping_text(driver: Any) -> list[str]:
    """Pairs of axis labels, legend entries or annotations of one chart whose boxes cross."""
    return driver.execute_script(
        """
        const pairs = [];
        document.querySelectorAll(".js-plotly-plot").forEach(function (plot) {
          const selector = ".xtick text, .ytick text, .y2tick text, .xtitle, .ytitle, .legendtext,"
            + " .annotation";
          const items = Array.from(plot.querySelectorAll(selector));
          const boxes = items.map(function (item) { return item.getBoundingClientRect(); });
          boxes.forEach(function (a, i) {
            boxes.slice(i + 1).forEach(function (b, j) {
              const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
              const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
              if (wide > 1 && tall > 3) {
                pairs.push(plot.id + ": " + items[i].textContent + " / " + items[i + 1 + j].textContent);
              }
            });
          });
        });
        return pairs;
        """
    )


def cut_off_text(driver: Any) -> list[str]:
    """Chart texts that stick out of their drawing."""
    return driver.execute_script(
        """
        const cut = [];
        document.querySelectorAll(".js-plotly-plot").forEach(function (plot) {
          const frame = plot.querySelector("svg.main-svg").getBoundingClientRect();
          plot.querySelectorAll("svg.main-svg text").forEach(function (item) {
            const box = item.getBoundingClientRect();
            if (!box.width || !box.height) return;
            if (box.left < frame.left - 1 || box.right > frame.right + 1
                || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) {
              cut.push(plot.id + ": " + item.textContent);
            }
          });
        });
        return cut;
        """
    )


def choose(driver: Any, menu: str, label: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element(By.ID, menu)).select_by_visible_text(label)


@pytest.mark.parametrize(
    ("width", "scheme"), [(1400, "light"), (800, "light"), (1400, "dark"), (390, "dark")]
)
def test_every_chart_is_drawn(driver: Any, report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    show(driver, report, width=width, scheme=scheme)
    charts = drawn(driver)
    assert sorted(charts) == sorted(CHARTS)
    for name, chart in charts.items():
        assert chart["width"] > 300, name
        assert chart["height"] > 150, name
        assert chart["traces"] > 0, name
        assert chart["marks"] > 0, name
    assert severe(driver) == []
    assert screenshot(driver, tmp_path / f"report-{width}-{scheme}.png") > 100_000
    page_width = driver.execute_script("return document.documentElement.scrollWidth")
    assert page_width == width  # nothing sticks out sideways
    assert overlapping_text(driver) == []
    assert cut_off_text(driver) == []


def test_the_overlap_check_sees_an_overlap(driver: Any, report: Path) -> None:
    """The oracle itself: crowded ticks and a long title must be found."""
    show(driver, report)
    driver.execute_script(
        "Plotly.relayout('chart-memory', {'xaxis.dtick': 2e7, 'xaxis.tickangle': 0,"
        " 'xaxis.title.text': 'wide '.repeat(80)})"
    )
    assert any(pair.startswith("chart-memory") for pair in overlapping_text(driver))
    assert any(text.startswith("chart-memory: wide") for text in cut_off_text(driver))


def test_nothing_is_loaded_from_anywhere(driver: Any, report: Path) -> None:
    show(driver, report)
    loaded = driver.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
        ".filter(name => !name.startsWith('data:') && !name.startsWith('blob:'))"
    )
    assert loaded == []
    assert driver.execute_script("return document.querySelectorAll('.js-plotly-plot canvas').length") == 0


def test_axis_menus_change_the_scatter(driver: Any, report: Path) -> None:
    show(driver, report)
    axes = "const p = document.getElementById('chart-pareto'); return "
    before = driver.execute_script(f"{axes} [p.layout.xaxis.title.text, p.data[1].x[0]]")
    choose(driver, "chart-pareto-x", "Time per output token (predicted)")
    choose(driver, "chart-pareto-y", "KL to full precision (predicted)")
    after = driver.execute_script(f"{axes} [p.layout.xaxis.title.text, p.data[1].x[0]]")
    assert before[0] == "Effective bits per parameter [bits]"
    assert after[0] == "Time per output token [s] — predicted"
    assert before[1] != after[1]
    assert driver.execute_script(f"{axes} p.layout.yaxis.type") == "log"
    shown = driver.execute_script(f"{axes} p.querySelectorAll('.scatterlayer .points path').length")
    assert shown == 16  # every plan has a prediction, and the ring
    assert overlapping_text(driver) == []
    assert severe(driver) == []


def test_every_view_of_a_chart_draws(driver: Any, report: Path) -> None:
    show(driver, report)
    for chart in ("bits-plan", "sensitivity", "roofline", "memory", "timeline"):
        menu = f"document.getElementById('chart-{chart}-view')"
        n_views = driver.execute_script(f"return {menu}.options.length")
        assert n_views > 1
        for view in range(n_views):
            driver.execute_script(
                f"{menu}.value = '{view}'; {menu}.dispatchEvent(new Event('change', {{bubbles: true}}));"
            )
            assert drawn(driver)[f"chart-{chart}"]["marks"] > 0
        assert overlapping_text(driver) == []
    assert severe(driver) == []


def test_colours_follow_the_system_and_the_button(driver: Any, report: Path) -> None:
    from selenium.webdriver.common.by import By

    ink = "return getComputedStyle(document.querySelector('#chart-pareto .xtitle')).fill"
    ground = "return getComputedStyle(document.body).backgroundColor"
    show(driver, report, scheme="dark")
    dark = driver.execute_script(ink), driver.execute_script(ground)
    prefer(driver, "light")
    light = driver.execute_script(ink), driver.execute_script(ground)
    assert brightness(dark[0]) > 180 > 60 > brightness(dark[1])
    assert brightness(light[0]) < 60 < 200 < brightness(light[1])
    driver.find_element(By.ID, "theme").click()
    assert (driver.execute_script(ink), driver.execute_script(ground)) == dark


def brightness(colour: str) -> float:
    """Mean channel of a CSS rgb() colour."""
    channels = colour[colour.index("(") + 1 : colour.index(")")].split(",")[:3]
    return sum(float(channel) for channel in channels) / 3


def test_table_sorts_by_a_click(driver: Any, report: Path) -> None:
    show(driver, report)
    cells = (
        "return Array.from(document.querySelectorAll('table.sortable tbody tr'),"
        " row => row.cells[4].dataset.sort)"
    )
    press = (
        "Array.from(document.querySelectorAll('table.sortable th button'))"
        ".find(button => button.textContent == 'Perplexity').click()"
    )
    driver.execute_script(press)
    values = [value for value in driver.execute_script(cells) if value is not None]
    assert values == sorted(values, key=float)
    driver.execute_script(press)
    values = [value for value in driver.execute_script(cells) if value is not None]
    assert values == sorted(values, key=float, reverse=True)


@pytest.mark.parametrize("kind", ["hostile", "empty", "deep"])
def test_unusual_results(driver: Any, tmp_path: Path, kind: str) -> None:
    """A hostile name does not run; a result without measurements and a model of 80 layers draw as well."""
    show(driver, write_report(unusual(kind), tmp_path / f"{kind}.html"))
    assert driver.execute_script("return window.hacked === undefined")
    assert severe(driver) == []
    assert drawn(driver)
    assert overlapping_text(driver) == []


def unusual(kind: str) -> StudyResult:
    if kind == "hostile":
        name = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
        result = make_result(model_name=name)
        front = [replace(point, name=f"{name}-{point.name}") for point in result.front]
        return replace(result, front=front, chosen=front[3].name)
    if kind == "empty":
        return replace(make_result(measured=False), sensitivity={}, timeline=[], roofline=[], progress=[])
    return make_result(n_layers=80, n_front=20)
