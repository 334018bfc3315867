"""The page of devices: what is drawn, where labels fit, and that the page needs nothing else."""

import itertools
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_specs.loader import device_names, load_device
from hardware_specs.sanity import native_rates
from reports.device_points import (
    BITS,
    best_points,
    drawable,
    not_drawn,
    peak_points,
    place_labels,
    rooflines,
    spread,
)
from reports.devices import render_devices_page

FEW = ("nvidia_h100_sxm", "amd_mi300x", "google_tpu_v5e", "groq_lpu_v1", "hailo_8", "etched_sohu")
SPECS = [load_device(name) for name in device_names()]


def test_points_are_the_rates_of_the_files():
    points = {(p.name, p.bits): p for p in peak_points(SPECS)}
    h100 = points["nvidia_h100_sxm", 8]
    assert h100.kinds == ("fp8", "int8")
    assert h100.flop_per_s == 1978.8e12
    assert h100.flop_per_s_per_w == pytest.approx(1978.8e12 / 700)
    assert points["nvidia_h100_sxm", 16].flop_per_s == 989.4e12
    assert ("google_tpu_v5e", 16) not in points  # no TDP is published
    for spec in SPECS:
        assert set(native_rates(spec)) <= set(BITS)


def test_each_device_once_at_its_fastest():
    best = best_points(peak_points(SPECS))
    assert len({p.name for p in best}) == len(best)
    assert {p.name: p.bits for p in best}["nvidia_b200_sxm"] == 4
    assert {p.name: p.bits for p in best}["intel_gaudi3"] == 8  # fp8 is as fast as bf16


def test_roofs_meet_at_the_ridge():
    for line in rooflines(SPECS):
        assert line.ridge_flop_per_byte * line.bytes_per_s == pytest.approx(line.flop_per_s)
    assert {line.name: line.kind for line in rooflines(SPECS)}["nvidia_v100_sxm2_32gb"] == "fp16"


def test_what_is_not_drawn_says_why():
    lines = dict(line.split(": ", 1) for line in not_drawn(SPECS))
    assert lines["etched_sohu"] == "no published rate, no published TDP, no published bandwidth"
    assert lines["hailo_8"] == "no native 16-bit rate, no known main memory"
    assert lines["google_tpu_v5e"] == "no published TDP"
    assert "nvidia_h100_sxm" not in lines
    assert "generic_x86_2core" not in [spec.name for spec in drawable(SPECS)]


@given(
    st.lists(st.tuples(st.floats(1, 1e4), st.floats(1e9, 1e15), st.text("abcdef_", min_size=1)), max_size=25)
)
def test_labels_never_cover_each_other(points):
    """Oracle: all pairs of the boxes, worked out here from the sides that were chosen."""
    size, x_range, y_range = (1000.0, 500.0), (0.5, 2e4), (5e8, 2e15)
    sides = place_labels(points, x_range, y_range, size)
    boxes = []
    for (x, y, text), side in zip(points, sides, strict=True):
        if side is None:
            continue
        left = size[0] * _share(x, x_range)
        low = size[1] * _share(y, y_range)
        half, right = 6.7 * len(text) / 2, {"middle right": 1, "middle left": -1}.get(side, 0)
        up = {"top center": 1, "bottom center": -1}.get(side, 0)
        middle, level = left + right * (half + 7), low + up * 13.5
        boxes.append((middle - half, middle + half, level - 6.5, level + 6.5))
        assert boxes[-1][0] >= 0
        assert boxes[-1][1] <= size[0]
    for a, b in itertools.combinations(boxes, 2):
        apart = a[1] <= b[0] + 1e-6 or b[1] <= a[0] + 1e-6 or a[3] <= b[2] + 1e-6 or b[3] <= a[2] + 1e-6
        assert apart


def _share(value, bounds):
    return (math.log10(value) - math.log10(bounds[0])) / (math.log10(bounds[1]) - math.log10(bounds[0]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(0.01, 2))
def test_spread_keeps_order_distance_and_middle(values, least):
    moved = spread(values, least)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for before, after in itertools.pairwise(order):
        assert moved[after] - moved[before] >= least - 1e-9
    assert sum(moved) == pytest.approx(sum(values), abs=1e-6)


def test_spread_leaves_values_that_are_far_apart():
    assert spread([3.0, 1.0, 2.0], 0.5) == [3.0, 1.0, 2.0]
    assert spread([1.0, 1.0], 1.0) == [0.5, 1.5]


@pytest.fixture(scope="module")
def page():
    return render_devices_page([load_device(name) for name in FEW], highlighted=("nvidia_h100_sxm",))


def test_page_is_whole_and_loads_nothing(page):
    assert page.count('class="plot"') == 3
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#|data:)', outside)
    assert "default-src &#39;none&#39;" in page
    for name in FEW:
        assert name in outside
    assert render_devices_page([load_device(name) for name in FEW], highlighted=("nvidia_h100_sxm",)) == page


def test_chosen_devices_come_first(page):
    views = json.loads(re.search(r'id="chart-roofs-data">(.*?)</script>', page, re.DOTALL)[1])["views"]
    assert views[0]["label"] == "the chosen devices"
    assert [trace["name"] for trace in views[0]["data"] if trace.get("name")] == ["nvidia_h100_sxm"]
    for view in views:
        top = view["layout"]["yaxis"]["range"][1]
        assert all(note["y"] <= top for note in view["layout"]["annotations"])


def test_one_device_alone_makes_a_page():
    assert "chart-power" in render_devices_page([load_device("nvidia_t4")])
