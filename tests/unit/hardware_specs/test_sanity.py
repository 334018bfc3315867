"""Each sanity rule catches its slip, and slips that other tools' tables hold cannot come back.

Oracle: the packaged files (which break no rule) with one number changed the way people get it wrong.
"""

import copy

import pytest

from dse.documents import read_packaged
from dse.errors import ConfigError
from hardware_specs.loader import load_device
from hardware_specs.sanity import RULES, check, findings
from hardware_specs.schema import parse_device

H100, A100, L40S = "nvidia_h100_sxm", "nvidia_a100_sxm_80gb", "nvidia_l40s"


def with_slip(name, *steps, value=None, **values):
    """A packaged device with one place of its file set, or several keys of that place updated."""
    content, file = read_packaged("hardware_specs", "devices", "device", name)
    document = copy.deepcopy(content)
    place = document
    for step in steps[:-1]:
        place = place[step]
    if values:
        place[steps[-1]].update(values)
    else:
        place[steps[-1]] = value
    return parse_device(document, file)


MAIN = ("memory", 1)
SLIPS = {
    "sparse peak": (
        (A100, "compute", "fp16", "rate", "value"),
        {"value": 624},
        ("arithmetic_closure", "2 times what its arithmetic gives: a figure with sparsity?"),
    ),
    "the full die for the product": (
        (A100, "cores", "value"),
        {"value": 128},
        ("arithmetic_closure", "0.844 times cores x operations per cycle x clock"),
    ),
    "a source with sparsity": (
        ("nvidia_l4", "compute", "fp8", "rate", "source"),
        {"value": "NVIDIA L4 data sheet, with sparsity"},
        ("sparse_doubling", "compute.fp8.rate cites a figure with sparsity"),
    ),
    "twice what one die does": (
        (H100, "compute", "bf16", "rate", "value"),
        {"value": 1979},
        ("sparse_doubling", "1979 TFLOP/s in 16 bits is more than one die of 2022 does"),
    ),
    "8 bits slower than 16": (
        ("intel_gaudi3", "compute", "fp8", "rate", "value"),
        {"value": 918},
        ("fewer_bits_never_slower", "fp8 is slower than 16 bits: 0.5 times"),
    ),
    "an odd ratio": (
        (H100, "compute", "int8", "rate", "value"),
        {"value": 1513},
        ("fewer_bits_never_slower", "int8 runs at 1.53 times the 16-bit rate, without a note"),
    ),
    "GB for Gbit": (
        (H100, "memory", 1, "bandwidth", "unit"),
        {"value": "Gbit/s"},
        ("ridge_point", "ridge point of 2.36e+03 FLOP/B is outside 115 to 560"),
    ),
    "capacity of the card, bandwidth of one of its chips": (
        ("encharge_en100_pcie", "memory", 0, "bandwidth", "value"),
        {"value": 68},
        ("sweep_time", "time to read all of it once of 2.02e+03 ms is outside 80 to 1200"),
    ),
    "milliwatts": (
        ("qualcomm_cloud_ai_100_pro", "power", "tdp", "value"),
        {"value": 15.4},
        ("operations_per_watt", "operations per watt of 24.4 TOP/s/W is outside 0.6 to 6"),
    ),
    "power of the rack": (
        (H100, "power", "tdp", "value"),
        {"value": 10200},
        ("energy_per_operation", "TDP per 16-bit operation of 10.3 pJ is outside 0.44 to 3.1"),
    ),
    "bandwidth per watt": (
        (L40S, "power", "tdp", "value"),
        {"value": 1000},
        ("bandwidth_per_watt", "bandwidth per watt of 0.864 GB/s/W is outside 1.8 to 5"),
    ),
    "energy per byte for energy per bit": (
        (H100, "memory", 1, "energy", "value"),
        {"value": 40},
        ("memory_power", "memory's share of the TDP of 1.53 is outside"),
    ),
    "both directions for one": (
        (H100, "links", 2, "bandwidth", "value"),
        {"value": 126},
        ("links", "pcie of 126 GB/s is no 4, 8 or 16 lanes"),
    ),
    "not whole NVLinks": (
        (H100, "links", 0, "bandwidth", "value"),
        {"value": 440},
        ("links", "nvlink4 is no multiple of 25 GB/s"),
    ),
    "GB for GiB": (
        (H100, "memory", 1, "capacity", "unit"),
        {"value": "GB"},
        ("capacity", "80 GB of HBM3: memory chips come in GiB"),
    ),
    "half of the memory reserved": (
        (H100, "reserve", "value"),
        {"value": 38},
        ("capacity", "the reserve is 44% of the memory"),
    ),
    "slow before fast": (
        (H100, "memory", 0, "bandwidth", "value"),
        {"value": 550},
        ("capacity", "the tiers go from fast to slow, but hbm is as fast as l2"),
    ),
    "undated price": (
        (H100, "price", "date"),
        {"value": ""},
        ("provenance", "the price has no date"),
    ),
    "absence without a reason": (
        ("hailo_10h", "missing"),
        {"value": {}},
        ("provenance", "the bandwidth of dram is absent without a reason under 'missing'"),
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_every_slip_is_caught(slip):
    place, change, (rule, text) = SLIPS[slip]
    name = place[0]
    assert not check(load_device(name))
    found = check(with_slip(name, *place[1:], value=change["value"]))
    assert any(entry.rule == rule and text in entry.text for entry in found), found


def test_every_rule_has_a_slip():
    assert {rule for _, _, (rule, _) in SLIPS.values()} == set(RULES)


def test_an_exception_explains_its_rule_and_no_other():
    """B300 has hardly any INT8 units: its file says so."""
    spec = load_device("nvidia_b300_sxm")
    assert {found.rule for found in findings(spec)} == {"fewer_bits_never_slower"}
    assert check(spec) == []
    assert [found.rule for found in check(with_slip("nvidia_b300_sxm", "exceptions", value={}))] == [
        "fewer_bits_never_slower"
    ]


def test_an_exception_from_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="unknown key 'ridge_pont' \\(did you mean 'ridge_point'"):
        with_slip(H100, "exceptions", value={"ridge_pont": "typo"})


def rate(kind):
    return lambda spec: spec.rate_flop_per_s(kind)


def bandwidth(spec):
    return spec.main_memory.bandwidth_bytes_per_s


def capacity(spec):
    return spec.main_memory.capacity_bytes


def scale_up(spec):
    return spec.link("scale_up").bandwidth_bytes_per_s


def host(spec):
    return spec.link("host").bandwidth_bytes_per_s


# What another tool's table says, and what we keep: (device, quantity, theirs, ours).
OTHER_TOOLS = {
    "GenZ 0.0.16 H100-class bf16 (GH200_GPU) is the fp8 figure": (H100, rate("bf16"), 1979e12, 989.4e12),
    "GenZ 0.0.16 GB200 bf16 is the fp8 figure of B200": (
        "nvidia_gb200_nvl72",
        rate("bf16"),
        4500e12,
        2500e12,
    ),
    "GenZ 0.0.16 B100 bf16, faster than the larger B200": (
        "nvidia_b200_sxm",
        rate("bf16"),
        3500e12,
        2250e12,
    ),
    "GenZ 0.0.16 A100 interconnect is half": (A100, scale_up, 150e9, 300e9),
    "GenZ 0.0.16 TPU v4 interconnect is part of one link": ("google_tpu_v4", scale_up, 24e9, 270e9),
    "LLM-Viewer H100 bandwidth": (H100, bandwidth, 3072e9, 3350e9),
    "LLM-Viewer A100 is silently the 40 GB part: bandwidth": (A100, bandwidth, 1555e9, 2039e9),
    "LLM-Viewer A100 is silently the 40 GB part: capacity": (A100, capacity, 40 * 2**30, 80 * 2**30),
    "LLMCompass GA100 has the cores of the full die": (A100, lambda spec: spec.n_cores, 128, 108),
    "LLMCompass GA100 has the L2 of the full die": (
        A100,
        lambda spec: spec.memory[0].capacity_bytes,
        48 * 2**20,
        40 * 2**20,
    ),
    "aiconfigurator B200 host link counts both directions": ("nvidia_b200_sxm", host, 128e9, 63e9),
}


@pytest.mark.parametrize("case", OTHER_TOOLS)
def test_errors_of_other_tables_stay_out(case):
    name, quantity, theirs, ours = OTHER_TOOLS[case]
    found = quantity(load_device(name))
    assert found == pytest.approx(ours, rel=0.01)
    assert abs(found / theirs - 1) > 0.05


@pytest.mark.parametrize(
    ("name", "theirs", "rule"),
    [
        (H100, 1979, "arithmetic_closure"),
        ("nvidia_gb200_nvl72", 4500, "fewer_bits_never_slower"),
        ("nvidia_b200_sxm", 3500, "fewer_bits_never_slower"),
    ],
)
def test_the_rules_would_have_caught_the_wrong_peaks(name, theirs, rule):
    document = copy.deepcopy(read_packaged("hardware_specs", "devices", "device", name)[0])
    for kind in ("fp16", "bf16"):
        document["compute"][kind]["rate"]["value"] = theirs
    assert rule in {found.rule for found in check(parse_device(document, name))}


# Values that sources disagree on, and the one kept: (device, quantity, kept).
KEPT = {
    "B200 is the 180 GB board": ("nvidia_b200_sxm", capacity, 180 * 2**30),
    "B200 bandwidth": ("nvidia_b200_sxm", bandwidth, 7.7e12),
    "B200 dense fp8": ("nvidia_b200_sxm", rate("fp8"), 4.5e15),
    "B200 dense tf32": ("nvidia_b200_sxm", rate("tf32"), 1.1e15),
    "H200 as the device reports it": ("nvidia_h200_sxm", capacity, 143771 * 2**20),
    "Thor dense fp8": ("nvidia_jetson_thor_t5000", rate("fp8"), 517e12),
    "Thor dense fp4": ("nvidia_jetson_thor_t5000", rate("nvfp4"), 1035e12),
    "L40S int4, the lower": (L40S, rate("int4"), 733e12),
    "MI300X dense fp16": ("amd_mi300x", rate("fp16"), 1307.4e12),
    "MI355X dense fp4": ("amd_mi355x", rate("mxfp4"), 10.07e15),
    "MI355X cache": ("amd_mi355x", lambda spec: spec.memory[0].capacity_bytes, 256 * 2**20),
    "TPU v5e bandwidth": ("google_tpu_v5e", bandwidth, 819e9),
    "Trainium 1 bandwidth": ("aws_trainium1", bandwidth, 820e9),
    "TPU v6e interconnect, half of both directions": ("google_tpu_v6e", scale_up, 400e9),
    "Gaudi 3 SRAM": ("intel_gaudi3", lambda spec: spec.memory[0].bandwidth_bytes_per_s, 12.8e12),
    "Gaudi 2 fp8": ("intel_gaudi2", rate("fp8"), 865e12),
    "Trainium 2 fp8": ("aws_trainium2", rate("fp8"), 1299e12),
    "SN40L bandwidth": ("sambanova_sn40l", bandwidth, 1.6e12),
    "V70 dense int8": ("amd_alveo_v70", rate("int8"), 202e12),
    "EN100 card is four chips": ("encharge_en100_pcie", rate("int8"), 800e12),
    "Groq 750 is int8": ("groq_lpu_v1", rate("int8"), 750e12),
    "WSE-3 dense fp16": ("cerebras_wse3_cs3", rate("fp16"), 15.6e15),
    "RK3588 bandwidth": ("rockchip_rk3588_npu", bandwidth, 34e9),
    "MLU370 link, half of both directions": ("cambricon_mlu370_x8", scale_up, 100e9),
    "Corsair SRAM is 2 GB": ("dmatrix_corsair", lambda spec: spec.memory[0].capacity_bytes, 2 * 2**30),
    "EN100 module draws 8.25 W": ("encharge_en100_m2", lambda spec: spec.power.tdp_w, 8.25),
}


@pytest.mark.parametrize("case", KEPT)
def test_of_values_that_disagree_the_chosen_one_is_kept(case):
    name, quantity, kept = KEPT[case]
    assert quantity(load_device(name)) == pytest.approx(kept, rel=0.002)


# Fewer bits that buy no arithmetic: (device, kind, times the 16-bit rate).
TRAPS = [
    ("google_tpu_v4", "int8", 1),
    ("google_tpu_v5p", "fp8", 1),
    ("google_tpu_v6e", "fp8", 1),
    ("google_tpu_v6e", "int8", 2),
    ("intel_gaudi3", "fp8", 1),
    ("amd_mi250x", "int8", 1),
    ("tesla_dojo_d1", "fp8", 1),
    ("amd_mi355x", "mxfp6", 4),
    ("nvidia_b200_sxm", "mxfp6", 2),
    ("nvidia_b300_sxm", "int8", 0.068),
    ("nvidia_rtx_4090", "int8", 4),
    ("nvidia_rtx_3090", "int4", 8),
    ("qualcomm_cloud_ai_100_pro", "int8", 3),
    ("tenstorrent_wormhole_n150", "fp8", 3.54),
    ("cambricon_mlu370_x8", "int8", 2.67),
]


@pytest.mark.parametrize(("name", "kind", "times"), TRAPS)
def test_rates_follow_the_device_and_not_the_bits(name, kind, times):
    spec = load_device(name)
    sixteen = next(
        path.dense_flop_per_s
        for path in spec.compute
        if path.kind in ("bf16", "fp16") and path.dense_flop_per_s
    )
    assert spec.rate_flop_per_s(kind) / sixteen == pytest.approx(times, rel=0.02)
