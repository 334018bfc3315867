"""Every packaged spec file obeys the physics and the bookkeeping that its class allows.

The ranges are those of the public devices themselves (data sheets collected in 2026), widened by 5 %: a value
outside is either a slip (GB for Gbit, a sparse peak, per card for per chip) or a device that needs an entry
among the exceptions, with its reason.
"""

from importlib import resources

import pytest
import yaml

from hardware_specs.loader import (
    cluster_names,
    device_names,
    load_cluster,
    load_device,
    load_runtime,
    runtime_names,
)
from hardware_specs.parts import COMPUTE_KINDS
from hardware_specs.spec import KERNEL_NAMES

REQUIRED_DEVICES = {
    *("nvidia_h100_sxm", "nvidia_a100_sxm_80gb", "nvidia_a100_sxm_40gb", "nvidia_v100_sxm2_32gb"),
    *("nvidia_t4", "nvidia_l4", "nvidia_rtx_4090", "nvidia_p100_pcie_12gb", "amd_mi300x", "google_tpu_v5e"),
    *("google_tpu_v6e", "intel_gaudi3", "nvidia_jetson_agx_orin_64gb", "rockchip_rk3588_npu"),
    *("qualcomm_hexagon_x_elite", "generic_x86_2core"),
}
REQUIRED_CLUSTERS = {"llmpq_cluster3", "llmpq_cluster6", "h100_node8", "edge_pair", "edge_three"}
CALIBRATED = {
    *("nvidia_a100_sxm_80gb", "nvidia_h100_sxm", "nvidia_l40s", "nvidia_rtx_pro_6000_server"),
    "rockchip_rk3588_npu",
}
SLACK = 1.05
BITS = {"fp32": 32, "tf32": 19, "fp16": 16, "bf16": 16, "mxfp6": 6, "mxfp4": 4, "nvfp4": 4, "int4": 4}

NO_MATRIX_UNIT = {
    "fujitsu_a64fx",
    "generic_x86_2core",
    *(name for name in device_names() if name.startswith("nvidia_p100")),
    "apple_m3_ultra",
}
IN_MEMORY = {"untether_speedai240"}

devices = pytest.mark.parametrize("name", device_names())


def family(spec):
    """The kind of main memory, which decides most ranges."""
    kind = spec.main_memory.kind.upper()
    return next(word for word in ("SRAM", "HBM", "GDDR", "LPDDR", "DDR") if word in kind)


def within(value, low, high):
    return low / SLACK <= value <= high * SLACK


def native(spec):
    return {
        path.kind: path.dense_flop_per_s
        for path in spec.compute
        if path.support == "native" and path.dense_flop_per_s is not None
    }


def rate_16_bit(spec):
    rates = native(spec)
    return rates.get("bf16") or rates.get("fp16")


def devices_where(condition):
    return pytest.mark.parametrize("name", [name for name in device_names() if condition(load_device(name))])


rated = devices_where(lambda spec: rate_16_bit(spec) is not None)
powered = devices_where(lambda spec: spec.power.tdp_w is not None)
powered_and_rated = devices_where(lambda spec: spec.power.tdp_w is not None and rate_16_bit(spec) is not None)
off_chip = devices_where(
    lambda spec: spec.power.tdp_w and spec.main_memory.energy_j_per_bit and family(spec) != "SRAM"
)


def note_of(spec, path):
    return next(entry.note + entry.source for entry in spec.sources if entry.path == path)


def test_required_entries_exist():
    assert set(device_names()) >= REQUIRED_DEVICES
    assert set(cluster_names()) >= REQUIRED_CLUSTERS
    assert {"generic", "vllm"} <= set(runtime_names())


@devices
def test_name_is_the_file_name(name):
    assert load_device(name).name == name


@devices
def test_every_compute_kind_is_stated(name):
    spec = load_device(name)
    assert tuple(path.kind for path in spec.compute) == COMPUTE_KINDS
    assert native(spec), "a device without any published rate cannot be timed"
    for path in spec.compute:
        if path.support == "emulated" and path.compute_as:
            assert spec.rate_flop_per_s(path.kind) == spec.path(path.compute_as).dense_flop_per_s


@devices
def test_every_kernel_is_present_and_says_where_it_comes_from(name):
    spec = load_device(name)
    assert sorted(entry.name for entry in spec.kernels) == sorted(KERNEL_NAMES)
    for entry in spec.kernels:
        assert entry.source
        assert 0 < entry.flop_eff_frac <= 2
        assert 0 < entry.byte_eff_frac <= 2
        assert 0 <= entry.floor_s < 1e-3
    if any(entry.provenance == "calibrated" for entry in spec.kernels):
        assert name in CALIBRATED


def _numbers_without_source(node, path=""):
    """Leaves (mappings with a value) that name no source, in the raw file."""
    if isinstance(node, dict):
        if "value" in node and "source" not in node and not path.startswith("kernels."):
            yield path
        for key, child in node.items():
            yield from _numbers_without_source(child, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _numbers_without_source(child, f"{path}.{index}")


@pytest.mark.parametrize("folder", ["devices", "clusters"])
def test_every_number_of_every_file_has_a_source(folder):
    for file in resources.files("hardware_specs").joinpath(folder).iterdir():
        content = yaml.load(file.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        assert not list(_numbers_without_source(content)), file.name
        used = str(content)
        for key in content.get("sources", {}):
            assert f"'source': '{key}'" in used, f"{file.name}: source '{key}' is not used"


@devices
def test_every_number_has_a_source_after_loading(name):
    spec = load_device(name)
    paths = [entry.path for entry in spec.sources]
    assert len(paths) == len(set(paths))
    assert all(entry.source.strip() for entry in spec.sources)
    for kind in native(spec):
        assert f"compute.{kind}.rate" in paths
    for tier in spec.memory:
        assert f"memory.{tier.name}.capacity" in paths


@devices
def test_dense_peaks_are_plausible(name):
    """A 2:4-sparse figure taken for a dense one shows as twice what one die of its time could do."""
    spec = load_device(name)
    multi_die = {"amd_mi250x", "amd_mi300x"}
    if spec.device_class.endswith("gpu") and spec.year and spec.year < 2024 and name not in multi_die:
        assert (rate_16_bit(spec) or 0) < 1.1e15
    assert not any("sparse peak" in entry.note for entry in spec.sources)


@devices
def test_fewer_bits_are_never_slower_unless_the_file_says_so(name):
    spec = load_device(name)
    reference = rate_16_bit(spec)
    for kind, rate in native(spec).items():
        if reference is None or kind in ("fp32", "tf32"):
            continue
        ratio = rate / reference
        if not any(abs(ratio / whole - 1) < 0.05 for whole in (1, 2, 4, 8)):
            assert note_of(spec, f"compute.{kind}.rate"), f"{kind} runs at {ratio:.3g} times the 16-bit rate"
        if ratio < 0.95:
            assert name == "nvidia_b300_sxm"  # its INT8 units were nearly removed
    rates = native(spec)
    if "fp32" in rates and reference is not None:
        assert rates["fp32"] <= reference * SLACK


RIDGE = {"HBM": (115, 560), "GDDR": (75, 420), "LPDDR": (48, 950), "SRAM": (0.3, 5.4)}
RIDGE_EXCEPTIONS = {
    "amd_alveo_v70": (1000, 1400),  # one small DDR4 channel behind a large array
    "fujitsu_a64fx": (13, 14),
    "apple_m3_ultra": (33, 36),
    "intel_xeon_8480plus": (350, 400),
    "untether_speedai240": (9000, 11000),  # weights live in the arrays
    **{n: (26, 36) for n in device_names() if n.startswith("nvidia_p100")},
}


@rated
def test_ridge_point(name):
    """16-bit peak over main bandwidth, FLOP per byte."""
    spec = load_device(name)
    reference = rate_16_bit(spec)
    low, high = RIDGE_EXCEPTIONS.get(name) or RIDGE[family(spec)]
    assert within(reference / spec.main_memory.bandwidth_bytes_per_s, low, high)


SWEEP_S = {"HBM": (19e-3, 46e-3), "GDDR": (25e-3, 86e-3), "LPDDR": (80e-3, 1.2), "DDR": (0.2, 2.0)}


@devices
def test_sweep_time(name):
    """Capacity over bandwidth: catches GB for Gbit and per card for per chip."""
    main = load_device(name).main_memory
    sweep_s = main.capacity_bytes / main.bandwidth_bytes_per_s
    if family(load_device(name)) == "SRAM":
        assert sweep_s < 0.05e-3
    else:
        assert within(sweep_s, *SWEEP_S[family(load_device(name))])


@powered
def test_operations_per_watt(name):
    spec = load_device(name)
    tops_per_w = max(native(spec).values()) / 1e12 / spec.power.tdp_w
    assert tops_per_w < 60
    if name not in IN_MEMORY:
        assert tops_per_w < 15 * SLACK
    if name in NO_MATRIX_UNIT or name in IN_MEMORY or spec.process_nm is None or spec.device_class == "wafer":
        return
    low, high = (0.4, 3.8) if spec.process_nm >= 12 else (0.6, 6) if spec.process_nm >= 6 else (0.6, 13)
    assert within(tops_per_w, low, high)


@powered_and_rated
def test_energy_per_operation_at_the_power_limit(name):
    """TDP over 16-bit peak, pJ per operation."""
    spec = load_device(name)
    bound_pj = spec.power.tdp_w / rate_16_bit(spec) * 1e12
    if name in NO_MATRIX_UNIT:
        assert bound_pj > 9
    elif spec.device_class == "desktop_gpu":
        assert within(bound_pj, 1.9, 4.9)
    elif name not in IN_MEMORY:
        assert within(bound_pj, 0.44, 3.1)


BANDWIDTH_PER_W = {"HBM": (2.2, 8), "GDDR": (1.8, 5), "LPDDR": (0.7, 8), "DDR": (0.8, 3)}


@powered
def test_bandwidth_per_watt(name):
    """GB/s per watt of TDP."""
    spec = load_device(name)
    ratio = spec.main_memory.bandwidth_bytes_per_s / 1e9 / spec.power.tdp_w
    if family(spec) == "SRAM":
        assert ratio > 200
    else:
        assert within(ratio, *BANDWIDTH_PER_W[family(spec)])


@off_chip
def test_memory_power_is_a_part_of_the_power_limit(name):
    """Bandwidth x pJ/bit of memory and interface: 5 to 45 % of TDP."""
    spec = load_device(name)
    drawn_w = spec.main_memory.bandwidth_bytes_per_s * 8 * spec.main_memory.energy_j_per_bit
    share = drawn_w / spec.power.tdp_w
    assert within(share, 0.048, 0.455)


NVLINK_STEP = {"nvlink1": 20e9, "nvlink2": 25e9, "nvlink3": 25e9, "nvlink4": 25e9, "nvlink5": 50e9}


@devices
def test_links(name):
    spec = load_device(name)
    scale_up, host = spec.link("scale_up"), spec.link("host")
    for link in spec.links:
        assert link.max_devices is None or link.max_devices >= 2
        assert 0 < link.latency_s < 1e-3
        step = NVLINK_STEP.get(link.name)
        if step and name not in ("nvidia_rtx_3090", "nvidia_rtx_a6000", "nvidia_a40"):  # 14 GB/s a link
            assert link.bandwidth_bytes_per_s % step == 0
        if link.name == "pcie":
            lanes = [link.bandwidth_bytes_per_s / lane for lane in (0.985e9, 1.969e9, 3.938e9)]
            assert any(within(lane / width, 1, 1) for lane in lanes for width in (4, 8, 16))
    if scale_up and host and spec.device_class == "datacenter_gpu":
        assert host.bandwidth_bytes_per_s <= scale_up.bandwidth_bytes_per_s


@devices
def test_capacity_and_reserve(name):
    spec = load_device(name)
    main = spec.main_memory
    gib = main.capacity_bytes / 2**30
    if family(spec) != "SRAM":
        assert abs(gib - round(gib)) / gib < 0.03
    unified = spec.device_class in ("npu", "edge_gpu")
    assert spec.reserve_bytes <= (0.4 if unified else 0.2) * main.capacity_bytes * 1.01
    for fast, slow in zip(spec.memory, spec.memory[1:], strict=False):
        if fast.bandwidth_bytes_per_s and slow.bandwidth_bytes_per_s:
            assert fast.bandwidth_bytes_per_s > slow.bandwidth_bytes_per_s


@devices
def test_weight_only_widths(name):
    spec = load_device(name)
    assert set(spec.weight_only_bits) <= set(range(1, 9))
    if set(spec.weight_only_bits) != {2, 3, 4, 5, 6, 8}:
        assert spec.weight_only_reason


@devices
def test_energies(name):
    """An operation costs between a femtojoule and 100 pJ; only native kinds have an energy of their own."""
    spec = load_device(name)
    for kind, energy in spec.power.energy_j_per_flop.items():
        assert 1e-15 < energy < 1e-10
        assert spec.path(kind).support == "native"
    if spec.power.static_w is None:
        assert spec.power.static_note
    if spec.process_nm is None and spec.device_class != "cpu":
        assert spec.power.energy_j_per_flop == {}


@pytest.mark.parametrize("name", cluster_names())
def test_clusters(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.devices
    for first, _ in cluster.devices:
        for second, _ in cluster.devices:
            if first != second:
                assert cluster.link_between(first, second).bandwidth_bytes_per_s > 0


@pytest.mark.parametrize("name", runtime_names())
def test_runtimes(name):
    runtime = load_runtime(name)
    assert runtime.name == name
    assert runtime.allows("weights", "bf16")
    assert runtime.allows("activations", "bf16")
    assert runtime.allows("kv", "bf16")


def test_unknown_stays_unknown():
    """TPU v5e: Google has published neither its power nor its process."""
    spec = load_device("google_tpu_v5e")
    assert spec.power.tdp_w is None
    assert spec.power.static_w is None
    assert spec.process_nm is None


def test_h100_bound_of_decode():
    """Llama-3-8B in bfloat16 reads about 15 GB per token: no more than 223 tokens/s on 3.35 TB/s."""
    assert load_device("nvidia_h100_sxm").main_memory.bandwidth_bytes_per_s / 15e9 == pytest.approx(
        223, abs=0.5
    )
