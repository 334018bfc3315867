"""Spec files: what a good one means, and the one line that each mistake gives."""

import subprocess
import sys

import pytest
import yaml

from dse.errors import ConfigError, UnitError
from hardware_specs.kernels import KERNEL_NAMES
from hardware_specs.loader import (
    cluster_names,
    device_names,
    load_cluster,
    load_device,
    load_runtime,
    runtime_names,
)

DEVICE = """
name: toy
vendor: Nobody
class: edge_gpu
description: A toy
sources: {s1: "The toy's data sheet"}
process: {value: 7, unit: nm, source: s1}
cores: {value: 4, unit: count, source: s1}
clock: {value: 1e9, unit: Hz, source: s1}
compute:
  fp32: {support: native, rate: {value: 1, unit: TFLOP/s, source: s1}}
  fp16: {support: native, rate: {value: 2, unit: TFLOP/s, source: "measured by hand",
      note: twice, confidence: low}}
  int4: {support: emulated, compute_as: fp16}
  fp8: {support: unsupported, reason: too old}
weight_only: {bits: [8, 4], source: s1}
memory:
  - {name: l2, kind: SRAM, capacity: {value: 1, unit: MiB, source: s1}}
  - {name: dram, kind: LPDDR5, main: true, capacity: {value: 8, unit: GB, source: s1},
     bandwidth: {value: 100, unit: GB/s, source: s1}, energy: {value: 4, unit: pJ/bit, source: s1}}
reserve: {value: 0.5, unit: GiB, source: s1}
links:
  - {name: eth, kind: scale_up, bandwidth: {value: 8, unit: Gbit/s, source: s1},
     latency: {value: 50, unit: us, source: s1}}
power: {tdp: {value: 20, unit: W, source: s1}, static_note: unknown}
kernels:
  gemm: {flop_efficiency: 0.5, byte_efficiency: "5e-1", floor: {value: 3, unit: us}, exponent: 2, source: s1}
price: {value: 0.1, unit: USD/h, source: s1}
"""

CLUSTER = """
name: two
description: Two toys and an H100
source: Invented for a test
nodes:
  - {name: a, device: ./toy.yaml, count: 2}
  - {name: b, device: nvidia_h100_sxm}
inter_link: {name: eth, kind: scale_out, bandwidth: {value: 1, unit: Gbit/s, source: "the label"},
  latency: {value: 0.1, unit: ms, source: "the label"}}
"""


def changed(*steps, value=None, remove=False):
    """The toy device with one place set or removed."""
    document = yaml.safe_load(DEVICE)
    place = document
    for step in steps[:-1]:
        place = place[step]
    if remove:
        del place[steps[-1]]
    else:
        place[steps[-1]] = value
    return document


def test_a_good_device(write):
    spec = load_device(write(DEVICE))
    assert spec.name == "toy"
    assert spec.clock_hz == 1e9  # PyYAML reads 1e9 as text
    assert spec.rate_flop_per_s("int4") == 2e12
    assert spec.path("fp16").dense_flop_per_s == 2e12
    assert spec.main_memory.bandwidth_bytes_per_s == 100e9
    assert spec.reserve_bytes == 2**29
    assert spec.links[0].bandwidth_bytes_per_s == 1e9
    assert spec.links[0].latency_s == 5e-5
    assert spec.weight_only_bits == (4, 8)
    kernel = spec.kernel("gemm")
    assert (kernel.flop_eff_frac, kernel.byte_eff_frac, kernel.floor_s) == (0.5, 0.5, 3e-6)
    assert (kernel.provenance, kernel.source) == ("calibrated", "The toy's data sheet")
    assert {entry.name for entry in spec.kernels} == set(KERNEL_NAMES)
    assert spec.kernel("gemm_weight_only").provenance == "analytic"


def test_sources_are_kept_with_value_unit_and_confidence(write):
    sourced = {entry.path: entry for entry in load_device(write(DEVICE)).sources}
    rate = sourced["compute.fp16.rate"]
    assert (rate.value, rate.unit, rate.source) == (2.0, "TFLOP/s", "measured by hand")
    assert (rate.note, rate.confidence) == ("twice", "low")
    assert sourced["memory.dram.capacity"].source == "The toy's data sheet"


def test_energies_that_the_file_does_not_state_are_derived(write):
    """Oracle: table of 7 nm multiply-adds by hand, 3.3 delivery, half of it per operation."""
    spec = load_device(write(DEVICE))
    assert spec.power.energy_j_per_flop["fp16"] == pytest.approx(3.3 * 0.72e-12 / 2)
    assert spec.power.energy_j_per_flop["fp32"] == pytest.approx(3.3 * 1.69e-12 / 2)
    assert set(spec.power.energy_j_per_flop) == {"fp32", "fp16"}
    assert spec.power.main_memory_j_per_bit == pytest.approx(4e-12 * 15.3 / 5.0)
    derived = [entry for entry in spec.sources if entry.path == "power.per_flop.fp16"]
    assert derived[0].source.startswith("derived")
    assert derived[0].confidence == "low"


def test_stated_energy_scales_the_derived_ones(write):
    document = changed("power", "per_flop", value={"fp16": {"value": 5, "unit": "pJ/FLOP", "source": "s1"}})
    energy = load_device(write(document)).power.energy_j_per_flop
    assert energy["fp16"] == 5e-12
    assert energy["fp32"] / energy["fp16"] == pytest.approx(1.69 / 0.72)


def test_unknown_process_leaves_energy_unknown(write):
    assert load_device(write(changed("process", remove=True))).power.energy_j_per_flop == {}


def test_content_hash_follows_the_content_and_not_the_layout(write):
    first = load_device(write(DEVICE)).content_hash
    assert load_device(write(yaml.safe_load(DEVICE), "b.yaml")).content_hash == first
    assert load_device(write(changed("vendor", value="Else"), "c.yaml")).content_hash != first


MISTAKES = {
    "typo two levels deep": (
        changed(
            "memory", 1, "capacity", value={"value": 8, "unit": "GB", "source": "s1", "confidance": "low"}
        ),
        "memory.1.capacity: unknown key 'confidance' (did you mean 'confidence'? allowed: confidence, note,",
    ),
    "typo that also leaves a key missing": (
        changed("memory", 1, "capacity", value={"valeu": 8, "unit": "GB", "source": "s1"}),
        "memory.1.capacity: unknown key 'valeu' (did you mean 'value'?",
    ),
    "unknown key at the top": (
        changed("vendr", value="x"),
        "toy.yaml: unknown key 'vendr' (did you mean 'vendor'?",
    ),
    "missing source": (
        changed("clock", value={"value": 1, "unit": "GHz"}),
        "clock: has no source: every number says where it comes from",
    ),
    "empty source": (
        changed("clock", "source", value=" "),
        "clock.source: the source is empty",
    ),
    "unknown source id": (
        changed("clock", "source", value="s2"),
        "clock.source: unknown source id 's2' (did you mean 's1'?",
    ),
    "bare number": (
        changed("clock", value=3),
        "clock: must be a mapping {value, unit, source, note, confidence}, but is 3",
    ),
    "unknown unit": (
        changed("clock", "unit", value="Ghz"),
        "clock: unknown unit 'Ghz' (did you mean 'GHz'? allowed: GHz, Hz, MHz, kHz)",
    ),
    "unit of another dimension": (
        changed("memory", 1, "bandwidth", "unit", value="GB"),
        "memory.dram.bandwidth: unit 'GB' measures bytes, not bytes_per_s",
    ),
    "negative value": (
        changed("power", "tdp", "value", value=-5),
        "power.tdp: must be above 0, but is -5",
    ),
    "boolean as number": (
        changed("cores", "value", value=True),
        "cores: must be a number, but is True",
    ),
    "part of a core": (
        changed("cores", "value", value=2.5),
        "cores: must be a whole number, but is 2.5",
    ),
    "unknown class": (
        changed("class", value="gpu"),
        "class: 'gpu' is not allowed (did you mean",
    ),
    "unknown compute kind": (
        changed("compute", "mxfp44", value={"support": "unsupported", "reason": "x"}),
        "compute: unknown key 'mxfp44' (did you mean 'mxfp4'?",
    ),
    "sparsity is not a key": (
        changed("compute", "fp16", "sparsity", value=2),
        "compute.fp16: unknown key 'sparsity' (",
    ),
    "emulated by a kind that is not native": (
        changed("compute", "int4", "compute_as", value="bf16"),
        "compute.int4.compute_as: 'bf16' is not a native kind of this device (did you mean 'fp16'?",
    ),
    "unsupported without reason": (
        changed("compute", "fp8", "reason", remove=True),
        "compute.fp8: an unsupported kind needs a 'reason'",
    ),
    "native without rate or reason": (
        changed("compute", "fp16", "rate", remove=True),
        "compute.fp16: a native kind without a rate needs a 'reason'",
    ),
    "rate of an emulated kind": (
        changed("compute", "int4", "rate", value={"value": 1, "unit": "TOP/s", "source": "s1"}),
        "compute.int4: only native kinds have a rate of their own, but this one is emulated",
    ),
    "two main memories": (
        changed("memory", 0, "main", value=True),
        "memory: exactly one tier must be 'main: true'",
    ),
    "no memory": (
        changed("memory", value=[]),
        "memory: needs at least one entry, or a reason under missing.memory",
    ),
    "static power unknown without a word": (
        changed("power", value={}),
        "power: needs 'static', or a 'static_note' why it is unknown",
    ),
    "static above TDP": (
        changed("power", "static", value={"value": 30, "unit": "W", "source": "s1"}),
        "power.static: static power 30 W exceeds the TDP of 20 W",
    ),
    "unknown kernel": (
        changed("kernels", "gem", value=yaml.safe_load(DEVICE)["kernels"]["gemm"]),
        "kernels: unknown key 'gem' (did you mean 'gemm'?",
    ),
    "efficiency in percent": (
        changed("kernels", "gemm", "flop_efficiency", value=78),
        "kernels.gemm.flop_efficiency: must be above 0 and at most 2, but is 78",
    ),
    "width out of range": (
        changed("weight_only", "bits", value=[16]),
        "weight_only.bits: widths are 1 to 8 bits, but got 16",
    ),
    "empty file": ("", "toy.yaml: the file is empty"),
    "a list": ("[1, 2]", "toy.yaml: must hold a mapping of keys, but is [1, 2]"),
    "not YAML": ("name: [1, 2", "not valid YAML"),
    "a key twice": (DEVICE + "vendor: again\n", "not valid YAML: the key 'vendor' is given twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_line(mistake, refused):
    content, expected = MISTAKES[mistake]
    assert expected in refused(content)


def test_unit_mistakes_have_their_own_type(write):
    with pytest.raises(UnitError):
        load_device(write(changed("clock", "unit", value="parsec")))


@pytest.mark.parametrize(
    ("load", "wrong", "right"),
    [
        (load_device, "nvidia_h100_smx", "nvidia_h100_sxm"),
        (load_cluster, "llmpq_cluser3", "llmpq_cluster3"),
        (load_runtime, "vlm", "vllm"),
    ],
)
def test_unknown_name_suggests_the_nearest(load, wrong, right):
    with pytest.raises(ConfigError, match=f"unknown .* '{wrong}' \\(did you mean '{right}'"):
        load(wrong)


@pytest.mark.parametrize("load", [load_device, load_cluster, load_runtime])
def test_missing_file(load, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load(tmp_path / "none.yaml")


def test_cluster_with_device_files_beside_it(write):
    write(DEVICE)
    cluster = load_cluster(write(CLUSTER, "two.yml"))
    assert [name for name, _ in cluster.devices] == ["a/0", "a/1", "b/0"]
    assert cluster.spec_of("a/1").name == "toy"
    assert cluster.link_between("a/0", "a/1").name == "eth"  # the device's own scale-up link
    assert cluster.link_between("a/0", "b/0").bandwidth_bytes_per_s == 1.25e8
    assert cluster.price_usd_per_h == pytest.approx(2 * 0.1 + 3)
    assert {entry.path for entry in cluster.sources} == {"inter_link.bandwidth", "inter_link.latency"}


def test_cluster_price_is_unknown_if_one_device_has_none(write):
    write(changed("price", remove=True))
    assert load_cluster(write(CLUSTER, "two.yml")).price_usd_per_h is None


def test_cluster_hash_follows_its_devices(write):
    write(DEVICE)
    path = write(CLUSTER, "two.yml")
    first = load_cluster(path).content_hash
    write(changed("vendor", value="Else"))
    assert load_cluster(path).content_hash != first


CLUSTER_MISTAKES = {
    "no nodes": ("nodes", [], "nodes: needs at least one entry"),
    "no devices in a node": (
        "nodes",
        [{"name": "a", "device": "nvidia_t4", "count": 0}],
        "nodes.0.count: must be greater than or equal to 1, but is 0",
    ),
    "unknown device": (
        "nodes",
        [{"name": "a", "device": "nvidia_t5"}],
        "nodes.0.device: unknown device 'nvidia_t5' (did you mean 'nvidia_t4'?",
    ),
    "name twice": (
        "nodes",
        [{"name": "a", "device": "nvidia_t4"}, {"name": "a", "device": "nvidia_l4"}],
        "nodes.1.name: node names must be unique and without '/', but got 'a'",
    ),
    "no link between nodes": ("inter_link", None, "inter_link: several nodes need a link between them"),
    "typo in a link": (
        "inter_link",
        {"name": "x", "kind": "scale_out", "bandwith": {}},
        "inter_link: unknown key 'bandwith' (did you mean 'bandwidth'?",
    ),
}


@pytest.mark.parametrize("mistake", CLUSTER_MISTAKES)
def test_cluster_mistakes(mistake, write):
    key, value, expected = CLUSTER_MISTAKES[mistake]
    document = yaml.safe_load(CLUSTER)
    document["nodes"][0]["device"] = "nvidia_t4"
    document[key] = value
    with pytest.raises(ConfigError) as caught:
        load_cluster(write(document, "two.yaml"))
    assert expected in str(caught.value)


def test_a_mistake_in_a_device_file_names_both_files(write):
    write(changed("clock", "unit", value="Ghz"))
    with pytest.raises(ConfigError, match=r"two.yml: nodes.0.device: .*toy.yaml: clock: unknown unit 'Ghz'"):
        load_cluster(write(CLUSTER, "two.yml"))


def test_runtime_restricts_formats():
    """Oracle: the rules of vLLM as published, spelt out here."""
    vllm = load_runtime("vllm")
    assert ("q_proj", "k_proj", "v_proj") in vllm.ties
    assert ("gate_proj", "up_proj") in vllm.ties
    assert vllm.kv_is_global
    assert vllm.allows("weights", "int4_g128")
    assert vllm.allows("weights", "int4_g64_asym")
    assert not vllm.allows("weights", "int3_g64")
    assert not vllm.allows("weights", "int4_g1280")
    assert vllm.allows("kv", "fp8_e4m3")
    assert not vllm.allows("kv", "int8_head")
    generic = load_runtime("generic")
    assert generic.ties == ()
    assert generic.allows("kv", "int8_head")


def test_runtime_role_tied_twice(write):
    document = {"name": "x", "description": "x", "source": "x", "ties": [["q", "k"], ["k", "v"]]}
    with pytest.raises(ConfigError, match="ties: 'k' is tied twice"):
        load_runtime(write(document))


def test_names_are_sorted_and_cached_loads_are_one_object():
    for names in (device_names(), cluster_names(), runtime_names()):
        assert list(names) == sorted(names)
    assert load_device("nvidia_t4") is load_device("nvidia_t4")


def test_unsupported_kind_says_why():
    with pytest.raises(ConfigError, match="rockchip_rk3588_npu: not a hardware format"):
        load_device("rockchip_rk3588_npu").rate_flop_per_s("fp8")


def test_loading_needs_no_heavy_library():
    script = (
        "import sys; from hardware_specs.loader import load_device; load_device('nvidia_t4');"
        "heavy = {'torch', 'transformers', 'plotly', 'numpy', 'optuna'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_node_may_leave_only_part_of_its_memory() -> None:
    """The limit is beside the runtime reserve, and never above what the device has."""
    shared, whole = load_cluster("edge_three_shared"), load_cluster("edge_three")
    spec = shared.specs["nvidia_jetson_agx_orin_64gb"]
    assert shared.capacity_bytes("jetson/0") == spec.reserve_bytes + 240 * 2**20
    assert whole.capacity_bytes("jetson/0") == spec.main_memory.capacity_bytes
