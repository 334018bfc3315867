"""The page of an operator graph in a real browser: drawn, coloured, opened, searched, without errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dse.formats.grammar import parse_precision
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from hardware_specs.loader import load_device
from reports.graph_costs import graph_costs
from reports.graph_page import layer_ranges, render_graph_page, write_graph_page
from reports.units import fmt_si
from tests.browser.test_report import driver  # noqa: F401  (a fixture)
from tests.small_models import ARCHITECTURES


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**ARCHITECTURES["deepseek-v3"], "num_hidden_layers": 80}
    graph = trace_model(ModelSource("small <b>model</b>", config))
    return write_graph_page(graph, tmp_path_factory.mktemp("page") / "graph.html", 2, 16)


@pytest.mark.browser
def test_a_person_finds_a_layer_and_its_costs(driver: Any, page: Path) -> None:  # noqa: F811
    driver.get(page.as_uri())
    run = driver.execute_script
    assert run("return document.querySelectorAll('.layers button').length") == 82
    assert run("return document.querySelector('h1').textContent") == "small <b>model</b>"
    before = run("return document.querySelector('.box rect').style.fill")
    assert before.startswith("rgb(")
    run("document.querySelectorAll('.layers button')[40].click()")
    assert run("return document.getElementById('part-B').open")
    assert run("return document.querySelector('#part-B [data-chosen]').textContent") == "showing layer 39"
    box = '#part-B [data-name="mlp.experts.down_proj"] [data-value]'
    shown = f"return document.querySelector('{box}').textContent"
    prefill = run(shown)
    run("document.querySelector('[data-pick=decode]').click()")
    assert run(shown) != prefill
    run("const f = document.getElementById('find'); f.value = 'lm_head'; f.dispatchEvent(new Event('input'))")
    assert run("return document.getElementById('part-after').open")
    assert run("return document.querySelectorAll('.box.hit').length") == 1
    assert driver.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.parametrize("n_layers", [30, 126])
def test_time_energy_and_bits_of_every_layer(driver: Any, tmp_path: Path, n_layers: int) -> None:  # noqa: F811
    """A plan gives layer 7 fewer bits than its neighbours: its numbers, colour and share are its own."""
    graph = trace_model(ModelSource("m", {**ARCHITECTURES["llama"], "num_hidden_layers": n_layers}))
    spec, units = load_device("nvidia_a100_sxm_80gb"), units_of(graph, "block")
    wide, narrow = parse_precision("bf16"), parse_precision("int4_g16")
    chosen = {unit.name: narrow if unit.layer == 7 else wide for unit in units}
    costs = graph_costs(graph, spec, chosen, units, 2, 16, 17)
    driver.get(write_graph_page(graph, tmp_path / "g.html", 2, 16, 17, costs).as_uri())
    run = driver.execute_script
    row = "#part-A tr[data-name='mlp.down_proj'] [data-size='%s']"
    text = "return document.querySelector(arguments[0]).textContent"

    def find(wanted: str) -> None:
        run(
            "const f = document.getElementById('find'); f.value = arguments[0];"
            "f.dispatchEvent(new Event('input'))",
            wanted,
        )

    assert run("return document.querySelector('[data-pick=time_s]').getAttribute('aria-pressed')") == "true"
    find("layer 6")
    assert run(text, row % "bits") == "16.0 bits"
    find("model.layers.7.mlp")
    assert run(text, "#part-A [data-chosen]") == "showing layer 7"
    assert run(text, row % "bits") == "5.00 bits"
    assert run("return document.querySelectorAll('.box.hit').length") == 4
    told = fmt_si(costs.numbers["model.layers.7.mlp.down_proj", "prefill"]["time_s"], "s")
    assert run(text, row % "time_s") == told
    colours = "return Array.from(document.querySelectorAll('.layers button')).map(b => b.style.background)"
    for measure in ("time_s", "energy_j", "bits", "bytes"):
        run(f"document.querySelector('[data-pick={measure}]').click()")
        cells = run(colours)
        assert cells[8] != cells[7]  # the first cell is the embedding
        assert len(set(cells[1:8])) == 1
        assert len(cells) == n_layers + 2
    total = sum(v["bytes"] for (_, phase), v in costs.numbers.items() if phase == "prefill")
    mine = sum(
        v["bytes"] for (n, phase), v in costs.numbers.items() if phase == "prefill" and ".layers.7." in n
    )
    share = run(text, "#share")
    assert float(share.split(", ")[1].split(" %")[0]) == pytest.approx(100 * mine / total, rel=6e-3)
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert driver.get_log("browser") == []


def test_boxes_of_a_drawing_lie_apart_and_equal_graphs_give_equal_bytes(page: Path) -> None:
    from reports.graph_layout import BOX_HEIGHT, BOX_WIDTH, draw_block

    graph = trace_model(ModelSource("m", ARCHITECTURES["granite-hybrid"]))
    for block in graph.parts:
        boxes = draw_block(block, 2).boxes
        assert len(boxes) == len(block.ops)
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                assert abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT
    assert render_graph_page(graph, 1, 8) == render_graph_page(graph, 1, 8)
    assert "<b>model" not in page.read_text()


def test_layers_in_words() -> None:
    assert layer_ranges((0, 1, 2, 5)) == "0–2, 5"
    assert layer_ranges(tuple(range(0, 47, 2))) == "0, 2 … 46"
    assert layer_ranges((3,)) == "3"
