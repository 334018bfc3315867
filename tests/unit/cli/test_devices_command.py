"""``dse devices``: the list, one device, a comparison, and the one line of each mistake."""

import json
import subprocess
import sys
from importlib import resources

import pytest
import typer
from typer.testing import CliRunner

from dse.cli import devices as command
from dse.cli.device_values import ordered
from dse.errors import ConfigError
from hardware_specs.loader import cluster_names, device_names, load_device


@pytest.fixture
def run():
    app = typer.Typer()
    command.register(app)

    def invoke(*arguments):
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    return invoke


def test_list_has_every_device_and_cluster_once(run):
    lines = run().splitlines()
    for name in (*device_names(), *cluster_names()):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert any(line.startswith("etched_sohu") and line.endswith("incomplete") for line in lines)


def test_list_of_a_class_in_order(run):
    """Oracle: the TDPs of the files, sorted here."""
    document = json.loads(run("--class", "datacenter_gpu", "--sort", "tdp", "--json"))
    powers = [entry["tdp_w"] for entry in document["devices"]]
    assert powers == sorted(powers, reverse=True)
    assert {entry["class"] for entry in document["devices"]} == {"datacenter_gpu"}


def test_unknown_values_sort_last():
    specs = [load_device(name) for name in device_names()]
    names = [spec.name for spec in ordered(specs, "price")]
    priced = [name for name in names if load_device(name).price_usd_per_h is not None]
    assert names[: len(priced)] == priced
    assert [spec.name for spec in ordered(specs, "name")] == sorted(device_names())


def test_one_device_shows_every_number_with_its_source(run):
    text = run("nvidia_h100_sxm")
    spec = load_device("nvidia_h100_sxm")
    for entry in spec.sources:
        assert entry.path in text
    assert "2:4 structured weights double the matrix peaks; not in the rates here" in text
    assert "gemm_weight_only_int8" in text
    document = json.loads(run("nvidia_h100_sxm", "--json"))
    assert document["name"] == spec.name
    assert {pair["weights"] for pair in document["operand_pairs"]} >= {"int4_g128", "fp8_e4m3"}
    assert document["odd"] == []
    assert len(document["sources"]) == len(spec.sources)


def test_incomplete_device_is_shown_with_its_reasons(run):
    text = run("etched_sohu")
    assert "incomplete, so it cannot be timed: compute is missing" in text
    for reason in load_device("etched_sohu").missing.values():
        assert reason in text


def test_exceptions_are_shown_with_their_reason(run):
    assert "nearly all INT8 units were removed" in run("nvidia_b300_sxm")


def test_comparison_gives_ratios_to_the_first(run):
    text = run("nvidia_a100_sxm_80gb", "nvidia_h100_sxm", "cambricon_mlu590")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("bandwidth"))
    assert "2.04 TB/s" in line
    assert "3.35 TB/s (1.64x)" in line
    assert line.rstrip().endswith("-")
    names = [entry["name"] for entry in json.loads(run("nvidia_t4", "nvidia_l4", "--json"))["devices"]]
    assert names == ["nvidia_t4", "nvidia_l4"]


def test_a_cluster_is_shown_too(run):
    text = run("h100_node8")
    assert "8x nvidia_h100_sxm" in text
    assert "1 TiB DDR5, 6.912 TiB NVMe" in text
    assert "assumed" in run("helix_24").lower()
    assert json.loads(run("h100_node8", "--json"))["nodes"][0]["n_devices"] == 8


def test_a_slip_in_a_file_of_ones_own_is_pointed_out(run, tmp_path):
    text = resources.files("hardware_specs").joinpath("devices/nvidia_h100_sxm.yaml").read_text("utf-8")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("value: 80, unit: GiB", "value: 80, unit: GB"), encoding="utf-8")
    assert "ODD, a slip? capacity: 80 GB of HBM3: memory chips come in GiB" in run(str(mine))


def test_plot_writes_one_page(run, tmp_path):
    page = tmp_path / "npus.html"
    run("hailo_10h", "--class", "npu", "--plot", str(page))
    assert "<h1>hailo_10h</h1>" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sort", "pries"), "cannot sort by 'pries' \\(did you mean 'price'"),
        (("--class", "edge_gpus"), "unknown class 'edge_gpus' \\(did you mean 'edge_gpu'"),
        (("nvidia_h10_sxm",), "unknown device 'nvidia_h10_sxm' \\(did you mean 'nvidia_h100_sxm'"),
    ],
)
def test_mistakes(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(*arguments)


def test_the_list_loads_nothing_heavy():
    script = (
        "import sys, typer; from dse.cli import devices; app = typer.Typer(); devices.register(app);"
        "app([], standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'plotly', 'numpy', 'optuna', 'jinja2', 'rich.table'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
