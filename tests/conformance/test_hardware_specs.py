"""Every packaged spec file obeys the physics and the bookkeeping that its class allows, or says why not."""

from importlib import resources

import pytest
import yaml

from dse.errors import ConfigError
from hardware_specs.kernels import KERNEL_NAMES
from hardware_specs.loader import (
    cluster_names,
    device_names,
    load_cluster,
    load_device,
    load_runtime,
    runtime_names,
)
from hardware_specs.parts import COMPUTE_KINDS, VENDOR_KINDS
from hardware_specs.sanity import check, findings, native_rates

REQUIRED_DEVICES = {
    *("amd_alveo_v70", "amd_mi250x", "amd_mi325x", "amd_mi355x", "amd_xdna2_strix_point", "apple_ane_m4"),
    *("apple_m3_ultra", "aws_inferentia2", "aws_trainium1", "aws_trainium2", "cambricon_mlu370_x8"),
    *("cambricon_mlu590", "cerebras_wse2_cs2", "cerebras_wse3_cs3", "dmatrix_corsair", "etched_sohu"),
    *("encharge_en100_m2", "encharge_en100_pcie", "fujitsu_a64fx", "google_coral_edge_tpu", "google_tpu_v4"),
    *("google_tpu_v5p", "google_tpu_v7_ironwood", "graphcore_bow_ipu", "groq_lpu_v1", "hailo_10h", "hailo_8"),
    *("intel_arc_b60", "intel_gaudi2", "intel_npu4_lunar_lake", "meta_mtia_v1", "meta_mtia_v2"),
    *("microsoft_maia_100", "nvidia_a10", "nvidia_a40", "nvidia_b200_sxm", "nvidia_h200_sxm", "nvidia_l40s"),
    *("nvidia_jetson_thor_t5000", "nvidia_rtx_3090", "nvidia_rtx_a6000", "nvidia_rtx_pro_6000_server"),
    *("qualcomm_cloud_ai_100_pro", "qualcomm_hexagon_8gen3", "rockchip_rk3576_npu", "sambanova_sn40l"),
    *("sophgo_sc7_hp75_i", "tenstorrent_wormhole_n150", "tesla_dojo_d1", "untether_speedai240"),
    *("nvidia_h100_sxm", "nvidia_a100_sxm_80gb", "nvidia_a100_sxm_40gb", "nvidia_v100_sxm2_32gb"),
    *("nvidia_t4", "nvidia_l4", "nvidia_rtx_4090", "nvidia_p100_pcie_12gb", "amd_mi300x", "google_tpu_v5e"),
    *("google_tpu_v6e", "intel_gaudi3", "nvidia_jetson_agx_orin_64gb", "rockchip_rk3588_npu"),
    *("qualcomm_hexagon_x_elite", "generic_x86_2core"),
}
REQUIRED_CLUSTERS = {
    *(f"llmpq_cluster{number}" for number in range(1, 12)),
    *("h100_node8", "a100_node8", "mi300x_node8", "gaudi3_node8", "tpu_v5e_slice8"),
    *("edge_pair", "edge_three", "helix_10", "helix_24"),
}
CALIBRATED = {
    *("nvidia_a100_sxm_80gb", "nvidia_h100_sxm", "nvidia_l40s", "nvidia_rtx_pro_6000_server"),
    *("rockchip_rk3588_npu", "nvidia_t4", "nvidia_v100_sxm2_32gb"),
}
devices = pytest.mark.parametrize("name", device_names())


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
    assert tuple(path.kind for path in spec.compute if path.kind not in VENDOR_KINDS) == COMPUTE_KINDS
    assert native_rates(spec) or spec.missing["compute"], "a device without any published rate says so"
    for path in spec.compute:
        if path.support == "emulated" and path.compute_as and spec.availability != "incomplete":
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
        fitted = path.startswith("kernels.") or ".collectives." in path  # one source for all numbers of a fit
        if "value" in node and "source" not in node and not fitted:
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
    for kind in native_rates(spec):
        assert f"compute.{kind}.rate" in paths
    for tier in spec.memory:
        assert f"memory.{tier.name}.capacity" in paths


@devices
def test_obeys_every_sanity_rule_or_says_why_not(name):
    """The rules are in ``hardware_specs.sanity``; that each of them catches its slip is tested there."""
    spec = load_device(name)
    assert [f"{found.rule}: {found.text}" for found in check(spec)] == []
    broken = {found.rule for found in findings(spec)}
    assert set(spec.exceptions) <= broken, "an exception that nothing needs any more"
    assert all(len(reason) > 10 for reason in spec.exceptions.values())


def test_arithmetic_is_checked_where_it_is_known():
    """Rates whose cores, clock and width are known apart from each other: a third of all files."""
    closed = [name for name in device_names() if load_device(name).flop_per_cycle]
    assert len(closed) >= 30
    assert {"nvidia_a100_sxm_80gb", "nvidia_h100_sxm", "amd_mi300x", "groq_lpu_v1"} <= set(closed)


@devices
def test_says_whether_it_can_be_bought_and_what_is_missing(name):
    spec = load_device(name)
    text = resources.files("hardware_specs").joinpath(f"devices/{name}.yaml").read_text("utf-8")
    assert f"\navailability: {spec.availability}\n" in text, "packaged files state their availability"
    assert all(reason.strip() for reason in spec.missing.values())
    for tier in spec.memory:
        assert not (tier.main and not (tier.weights and tier.kv))
    if spec.availability == "incomplete":
        for kind in COMPUTE_KINDS:
            with pytest.raises(ConfigError, match="incomplete, so it cannot be timed") as caught:
                spec.rate_flop_per_s(kind)
            assert "\n" not in str(caught.value)


def test_links_know_how_they_join_devices():
    """Every scale-up link with a stated domain says its topology; a torus' sides multiply to its domain."""
    for name in device_names():
        link = load_device(name).link("scale_up")
        if link is not None and link.max_devices is not None:
            assert link.topology is not None, name
    mi300x, tpu = load_device("amd_mi300x").link("scale_up"), load_device("google_tpu_v5p").link("scale_up")
    assert mi300x.peer_bandwidth_bytes_per_s == pytest.approx(64e9)  # one of seven links
    assert tpu.topology.dims == (16, 20, 28)
    assert load_device("dmatrix_corsair").link("scale_up").bandwidth_bytes_per_s == 500e9  # printed both ways


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
    if name == "h100_node8":
        assert [tier.name for tier in cluster.nodes[0].host_memory] == ["dram", "ssd"]
    if cluster.inter_link is not None:
        confidence = {entry.path: entry.confidence for entry in cluster.sources}
        assert confidence["inter_link.bandwidth"] == "low" or "edge" in name, "networks are assumed"
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


@devices
def test_no_kernel_reads_faster_than_the_memory(name):
    """Fitted efficiencies stay below 1 / 0.97: a batch-1 decode never beats bandwidth over weight bytes."""
    spec = load_device(name)
    for profile in spec.kernels:
        assert profile.byte_eff_frac <= 1 / 0.97 + 1e-3, profile.name


def test_h100_bound_of_decode():
    """Llama-3-8B in bfloat16 reads about 15 GB per token: no more than 223 tokens/s on 3.35 TB/s."""
    assert load_device("nvidia_h100_sxm").main_memory.bandwidth_bytes_per_s / 15e9 == pytest.approx(
        223, abs=0.5
    )
