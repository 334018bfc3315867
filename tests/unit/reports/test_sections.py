"""The facts of each section, computed by hand or counted from the synthetic result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from reports.blocks import Chart, Details, Note, Table, elided, plotly_text
from reports.points import METRIC, METRICS, device_entry, format_bits
from reports.section import SECTIONS, all_sections
from reports.sections import (
    bits,
    dropped,
    fidelity,
    hardware,
    memory,
    pareto,
    planners,
    progress,
    provenance,
    roofline,
    sensitivity,
    summary,
    timeline,
    uniform,
)
from reports.theme import BITS_SCALE, bits_colour
from studies.result import StudyResult
from tests.factories_result import BITS, FORMATS, UNIFORM, make_result

EXPECTED_ORDER = [
    "summary",
    "tradeoffs",
    "bits",
    "sensitivity",
    "roofline",
    "memory",
    "timeline",
    "fidelity",
    "uniform",
    "planners",
    "search",
    "dropped",
    "hardware",
    "provenance",
]


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return make_result()


def emptied(result: StudyResult) -> StudyResult:
    """The same study, having found nothing at all."""
    return replace(
        result,
        model={},
        devices=[],
        units=[],
        reference={},
        front=[],
        chosen="",
        chosen_reason="",
        baselines=[],
        comparisons=[],
        sensitivity={},
        hypervolume={},
        progress=[],
        roofline=[],
        timeline=[],
        dropped=[],
        provenance={},
        times={},
    )


def test_sections_are_in_order() -> None:
    assert [section.name for section in all_sections()] == EXPECTED_ORDER
    assert len(SECTIONS) == len(EXPECTED_ORDER)


@pytest.mark.parametrize("name", EXPECTED_ORDER)
def test_every_section_survives_an_empty_result(name: str, result: StudyResult) -> None:
    all_sections()
    blocks = SECTIONS.get(name).render(emptied(result))
    assert blocks
    assert any(isinstance(block, Note | Details) for block in blocks)
    assert not any(isinstance(block, Chart) for block in blocks)


@pytest.mark.parametrize("name", EXPECTED_ORDER)
def test_every_chart_is_described_and_has_axis_units(name: str, result: StudyResult) -> None:
    all_sections()
    for block in SECTIONS.get(name).render(result):
        if isinstance(block, Chart):
            assert block.alt
            for variant in block.variants:
                assert variant.figure.layout.xaxis.title.text


def test_summary_names_the_neighbouring_uniform_plans(result: StudyResult) -> None:
    facts = summary.info(result)
    assert facts.chosen is not None
    ours = facts.chosen.predicted.effective_bits
    larger, smaller = facts.rivals
    assert larger.larger
    assert not smaller.larger
    assert smaller.point.predicted.effective_bits < ours <= larger.point.predicted.effective_bits
    between = [
        point
        for point in result.baselines
        if smaller.point.predicted.effective_bits
        < point.predicted.effective_bits
        < larger.point.predicted.effective_bits
    ]
    assert between == []
    assert sum(count for _, count in facts.formats) == len(result.units)


def test_summary_interpolates_log_perplexity_linearly(result: StudyResult) -> None:
    """Closed form: halfway in bits is the geometric mean of the rivals' perplexities."""
    facts = summary.info(result)
    high, low = (rival.point for rival in facts.rivals)
    assert facts.chosen is not None
    assert high.measured is not None
    assert low.measured is not None
    middle = (high.predicted.effective_bits + low.predicted.effective_bits) / 2
    moved = replace(facts.chosen, predicted=replace(facts.chosen.predicted, effective_bits=middle))
    front = [moved if point.name == moved.name else point for point in result.front]
    line = summary.info(replace(result, front=front)).line_perplexity
    assert line == pytest.approx(math.sqrt(high.measured.perplexity * low.measured.perplexity))


@pytest.mark.parametrize(
    ("factor", "tone", "word"),
    [(0.5, "good", "beats uniform"), (1.0, "", "Better than uniform"), (2.0, "warn", "does not pay off")],
)
def test_summary_is_honest_about_a_loss(result: StudyResult, factor: float, tone: str, word: str) -> None:
    facts = summary.info(result)
    assert facts.chosen is not None
    assert facts.chosen.measured is not None
    quality = replace(facts.chosen.measured, perplexity=factor * facts.chosen.measured.perplexity)
    chosen = replace(facts.chosen, measured=quality)
    front = [chosen if point.name == chosen.name else point for point in result.front]
    (note,) = summary.verdict(summary.info(replace(result, front=front)), chosen)
    assert note.tone == tone
    assert word in note.title


def test_summary_says_when_nothing_was_measured() -> None:
    facts = summary.info(make_result(measured=False))
    assert facts.chosen is not None
    (note,) = summary.verdict(facts, facts.chosen)
    assert note.title == "Not compared"
    assert facts.line_perplexity is None


def test_summary_table_has_every_plan_and_marks_the_chosen(result: StudyResult) -> None:
    (table,) = (block for block in summary.render(result) if isinstance(block, Table))
    assert [row.cells[0].text for row in table.rows] == [p.name for p in (*result.front, *result.baselines)]
    assert [row.cells[0].text for row in table.rows if row.tone == "strong"] == [result.chosen]
    tags = {column.label: column.tag for column in table.columns}
    assert tags["Perplexity"] == "measured"
    assert tags["TPOT"] == "predicted"
    assert "$/Mtok" not in tags  # no plan of this result has a price


def test_metric_names_are_unique_and_senses_differ(result: StudyResult) -> None:
    assert len(METRIC) == len(METRICS)
    point = result.front[0]
    assert METRIC["throughput"].cost(point) == -point.predicted.throughput_tokens_per_s
    assert METRIC["tpot"].cost(point) == point.predicted.tpot_s
    assert METRIC["tpot"].axis_title == "Time per output token [s] — predicted"


def test_pareto_groups_and_axes(result: StudyResult) -> None:
    facts = pareto.info(result)
    assert {origin: len(points) for origin, points in facts.groups} == {"exact": 7, "tpe": 3, "uniform": 5}
    names = [axis.metric.name for axis in facts.axes]
    assert "cost" not in names
    assert names[facts.x] == "bits"
    assert names[facts.y] == "perplexity"
    logs = {axis.metric.name: axis.log for axis in facts.axes}
    assert logs["kl_predicted"]
    assert not logs["tpot"]


def test_pareto_front_line_is_what_brute_force_finds(result: StudyResult) -> None:
    facts = pareto.info(result)
    x, y = METRIC["tpot"], METRIC["throughput"]
    line = pareto.front_line(facts, x, METRIC["top1"])
    known = [(x.value(p), METRIC["top1"].value(p)) for p in facts.points if p.measured]
    best = {
        (a, b)
        for a, b in known
        if a is not None
        and b is not None
        and not any(
            c <= a and d >= b and (c, d) != (a, b) for c, d in known if c is not None and d is not None
        )
    }
    assert set(line) == best
    assert len(pareto.front_line(facts, x, y)) == 1  # both are best at the same plan


def test_pareto_picker_covers_every_trace(result: StudyResult) -> None:
    facts = pareto.info(result)
    drawing, picker = pareto.figure_of(facts), pareto.picker(facts)
    for choice in picker.choices:
        assert len(choice.values) == len(drawing.data)
    assert len(picker.fronts) == len(picker.fronts[0]) == len(picker.choices)


def test_pareto_marks_unmeasured_plans_open(result: StudyResult) -> None:
    drawing = pareto.figure_of(pareto.info(result))
    exact = next(trace for trace in drawing.data if trace.name == "exact solver")
    assert list(exact.marker.symbol).count("circle-open") == 2


def test_bits_rows_and_means(result: StudyResult) -> None:
    facts = bits.info(result)
    assert facts.n_layers == 30
    assert facts.plans[0].name == result.chosen
    plan = facts.plans[0]
    assert [label for label, _ in plan.rows] == [
        "attention weights",
        "ffn weights",
        "activations",
        "KV cache",
    ]
    assignment = next(p for p in result.front if p.name == result.chosen).plan["assignment"]
    for layer in (0, 13, 29):
        names = [assignment[f"layers.{layer}.{role}"]["weights"] for role in ("attention", "ffn")]
        assert plan.mean[layer].bits == sum(BITS[name] for name in names) / 2
    assert [stage[2:] for stage in plan.stages] == [(0, 16), (16, 26), (26, 30)]


def test_bits_of_a_format_this_version_does_not_know() -> None:
    assert format_bits("int4_g64_asym") == 4
    assert format_bits("bf16") == 16
    assert format_bits("posit7_of_the_future") is None


def test_bits_colour_hits_the_stops() -> None:
    assert bits_colour(2.0) == BITS_SCALE[0][1]
    assert bits_colour(16.0) == BITS_SCALE[-1][1]
    assert bits_colour(32.0) == BITS_SCALE[-1][1]
    assert len({bits_colour(n) for n in (2, 3, 4, 5, 6, 8, 16)}) == 7


def test_sensitivity_is_transposed_and_sorted(result: StudyResult) -> None:
    (table, _), correlations = sensitivity.info(result).tables, sensitivity.info(result).correlations
    assert table.precisions == tuple(reversed(UNIFORM))
    assert table.harmless == ("bf16",)
    source = result.sensitivity["tables"][0]["penalty"]
    assert table.penalty[-1][7] == source[7][FORMATS.index("int3_g64_asym")]
    assert table.layers[3] == (3, 6, 2)
    assert table.parts == ("attention", "ffn")
    assert correlations == (("kl", "variance", 0.91),)


def test_sensitivity_leaves_zero_blank(result: StudyResult) -> None:
    table = replace(sensitivity.info(result).tables[0], penalty=((0.0, 1.0), (-1e-3, 1e-9)), units=("a", "b"))
    table = replace(table, precisions=("p", "q"), layers=((0, 0, 1), (1, 1, 1)))
    heat = sensitivity.figure_of(table).data[0]
    assert heat.z[0][0] is None
    assert heat.z[1][0] is None
    assert heat.zmin == -sensitivity.MAX_DECADES


@pytest.mark.parametrize(
    ("precision", "label"),
    [
        ({"weights": "int4", "activations": "bf16", "kv": "bf16"}, "int4"),
        ({"weights": "int4", "activations": "int8_token", "kv": "fp16"}, "int4, act int8_token"),
        ({"weights": "int4", "activations": "bf16", "kv": "int8_head"}, "int4, KV int8_head"),
        ("int4", "int4"),
    ],
)
def test_precision_label(precision: Any, label: str) -> None:
    assert sensitivity.precision_label(precision) == label


def test_roofline_groups_and_shares(result: StudyResult) -> None:
    facts = roofline.info(result)
    assert [device.device for device in facts.devices] == ["toy_gpu", "toy_npu", "toy_cpu"]
    for device in facts.devices:
        for phase in ("prefill", "decode"):
            shares = [point.time_frac for point in device.points if point.phase == phase]
            assert math.fsum(shares) == pytest.approx(1.0)
        low, high = roofline.intensity_range(device)
        assert all(low < point.intensity_flop_per_byte < high for point in device.points)
    assert [roof.label for roof in facts.devices[0].roofs] == ["bf16, fp16", "int8"]


def test_roof_bends_at_the_ridge(result: StudyResult) -> None:
    """Closed form: the ridge point is peak over bandwidth (Williams et al. 2009)."""
    device = roofline.info(result).devices[0]
    line = roofline.figure_of(device).data[0]
    assert line.x[1] == pytest.approx(40e12 / 200e9)
    assert line.y[0] == pytest.approx(line.x[0] * 200e9)
    assert line.y[1] == line.y[2] == 40e12


def test_roofline_counts_what_it_cannot_show(result: StudyResult) -> None:
    rows = [
        {**result.roofline[0], "name": "norm", "intensity_flop_per_byte": 0.0, "achieved_flop_per_s": 0.0}
    ]
    facts = roofline.info(replace(result, roofline=[*result.roofline, *rows]))
    assert facts.devices[0].n_without_work == 1


def test_memory_against_capacity(result: StudyResult) -> None:
    plan = memory.info(result).plans[0]
    assert [device.capacity_bytes for device in plan.devices] == [32e9, 1.2e9, 2.5e9]
    for device in plan.devices:
        assert math.fsum(size for _, size in device.parts) == pytest.approx(device.used_bytes)
    assert 2.5e9 < memory.axis_end_bytes(plan) < 32e9


def test_memory_without_capacity_or_parts(result: StudyResult) -> None:
    point = replace(result.front[0], predicted=replace(result.front[0].predicted, memory_parts=None))
    facts = memory.info(replace(result, devices=[], front=[point], baselines=[]))
    assert facts.plans[0].devices[0].capacity_bytes is None
    assert "capacity unknown" in memory.usage_text(facts.plans[0].devices[0])
    memory.figure_of(facts.plans[0])


def test_device_entry_by_instance_and_type(result: StudyResult) -> None:
    assert device_entry(result, "board_b/0") == device_entry(result, "toy_npu") == result.devices[1]
    assert device_entry(result, "board_z/0") is None


def test_timeline_busy_share(result: StudyResult) -> None:
    """Closed form: four micro-batches of 0.30 s on the first board; the others and the link follow."""
    facts = timeline.info(result)
    assert facts.phases == ("prefill", "decode")
    assert facts.busy_frac["prefill"]["board_a/0"] == pytest.approx(
        4 * 0.30 / (0.30 * 4 + 0.02 + 0.22 + 0.26)
    )
    assert facts.devices == ("board_a/0", "board_a/0 → board_b/0", "board_b/0", "board_c/0")


def test_fidelity_counts_only_measured_plans(result: StudyResult) -> None:
    facts = fidelity.info(result)
    assert facts.n_measured == len(facts.points) == 13
    assert facts.rho is not None
    assert facts.rho > 0.95
    assert facts.fit is not None
    assert 0.7 < facts.fit.exponent < 1.1


def test_uniform_verdicts(result: StudyResult) -> None:
    facts = uniform.info(result)
    assert [duel.uniform for duel in facts.duels] == [f"uniform-{name}" for name in UNIFORM]
    assert all(("wins" in duel.verdict) == duel.wins for duel in facts.duels)
    lost = uniform.info(make_result(beats_uniform=False))
    assert lost.n_wins < facts.n_wins
    assert any("falls short by" in duel.verdict for duel in lost.duels)


def test_uniform_without_a_rival(result: StudyResult) -> None:
    entry = {
        **result.comparisons[0],
        "mixed": None,
        "mixed_bits": None,
        "mixed_perplexity": None,
        "wins": False,
    }
    (duel,) = uniform.info(replace(result, comparisons=[entry])).duels
    assert duel.verdict == "no mixed plan of at most these bits"
    assert uniform.render(replace(result, comparisons=[entry]))


def test_progress_is_a_share_of_the_combined_front(result: StudyResult) -> None:
    facts = progress.info(result)
    assert facts is not None
    assert facts.exact_frac == pytest.approx(0.0389 / 0.0421)
    assert [share for _, share in facts.steps] == sorted(share for _, share in facts.steps)


def test_dropped_joins_equal_reasons(result: StudyResult) -> None:
    facts = dropped.info(result)
    assert facts.n_choices == len(result.dropped) == 4
    assert len(facts.groups) == 2


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.0e11, "bytes/s", "200 GB/s"),
        (15, "W", "15.0 W"),
        (3.5, "USD/h", "3.500 USD/h"),
        (None, "W", "unknown"),
        ("bf16", "", "bf16"),
    ],
)
def test_hardware_values(value: object, unit: str, text: str) -> None:
    assert hardware.value_text(value, unit).replace("\N{NO-BREAK SPACE}", " ") == text


def test_only_web_addresses_become_links() -> None:
    assert hardware.source_cell("https://a.example/x.pdf, p. 3").href == "https://a.example/x.pdf"
    assert hardware.source_cell("javascript:alert(1)").href == ""
    assert hardware.source_cell("a data sheet").href == ""
    assert hardware.source_cell("").href == ""


def test_provenance_flattens_with_units() -> None:
    lines = dict(
        provenance.flatten({"a": {"search_s": 41.8, "seed": 123456}, "b": [1, 2], "c": [{"d": None}]})
    )
    assert {key: text.replace("\N{NO-BREAK SPACE}", " ") for key, text in lines.items()} == {
        "a.search_s": "41.8 s",
        "a.seed": "123456",
        "b": "1, 2",
        "c[0].d": "not set",
    }


def test_provenance_tells_how_the_checkpoint_was_stored(result: StudyResult) -> None:
    assert "stored in 4 bits" in provenance.info(result).model_note
    assert "8,192 tokens of the embedded corpus" in provenance.info(result).quality


def test_unmeasured_comparisons_are_not_losses() -> None:
    facts = make_result(measured=False)
    note = uniform.render(facts)[0]
    assert isinstance(note, Note)
    assert "none is decided" in note.text


@pytest.mark.parametrize(
    ("text", "short"), [("abc", "abc"), ("abcdefghij", "abc…hij"), ("abcdefg", "abcdefg")]
)
def test_elided(text: str, short: str) -> None:
    assert elided(text, 7) == short


def test_plotly_text_is_literal() -> None:
    assert plotly_text("<b>&") == "&lt;b&gt;&amp;"


def test_published_planners_stand_beside_the_plan(result: StudyResult) -> None:
    """Half as long again is +50 %; a broken bound and a missing plan say why."""
    facts = planners.info(result)
    assert facts is not None
    assert [line.feasible for line in facts.lines] == [True, False, False]
    note, table = planners.render(result)
    assert isinstance(note, Note)
    assert "2.04" in note.text  # 1 / 0.98
    assert isinstance(table, Table)
    texts = [[cell.text for cell in row.cells] for row in table.rows]
    assert result.chosen in texts[0][0]
    assert texts[1][0] == "PipeEdge, int4"
    assert texts[1][2].startswith("+50.0")
    assert texts[2][-1] == "penalty 0.2 is above 0.15"
    assert texts[3][1:] == ["no plan", "", "", "", "toy_npu/0 cannot run it"]
    assert planners.info(replace(result, planners={})) is None
