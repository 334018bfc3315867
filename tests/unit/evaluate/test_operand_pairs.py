"""Products by pair of operand formats, against what HARDWARE tables say of each device."""

import pytest

from dse.errors import UnsupportedOnDevice
from dse.evaluate.kernel_path import linear_path, supports
from dse.evaluate.operand_pairs import PAIRS, operand_pairs
from dse.formats.grammar import parse_precision
from hardware_specs.loader import device_names, load_device


def rows(name):
    return {(row.weights, row.activations): row for row in operand_pairs(load_device(name))}


@pytest.mark.parametrize(
    ("device", "weights", "activations", "support", "compute"),
    [
        ("nvidia_h100_sxm", "int8_row", "int8_token", "native", "int8"),
        ("nvidia_h100_sxm", "int4_row", "int4_token", "emulated", "int8"),  # Hopper has no int4 products
        ("nvidia_a100_sxm_80gb", "int4_row", "int4_token", "native", "int4"),
        ("nvidia_a100_sxm_80gb", "fp8_e4m3", "fp8_e4m3", "unsupported", None),
        ("nvidia_h100_sxm", "int4_g128", "bf16", "emulated", "bf16"),
        ("nvidia_v100_sxm2_32gb", "bf16", "bf16", "native", "fp16"),
        ("nvidia_b200_sxm", "nvfp4", "nvfp4", "native", "nvfp4"),
        ("amd_mi300x", "nvfp4", "nvfp4", "unsupported", None),
        ("dmatrix_corsair", "mxint8", "mxint8", "native", "mxint8"),
        ("generic_x86_2core", "bf16", "bf16", "emulated", "bf16"),
    ],
)
def test_known_products(device, weights, activations, support, compute):
    row = rows(device)[weights, activations]
    assert (row.support, row.compute) == (support, compute)
    assert bool(row.reason) == (support == "unsupported")


@pytest.mark.parametrize("name", device_names())
def test_every_pair_has_a_rate_or_a_reason(name):
    found = operand_pairs(load_device(name))
    assert [(row.weights, row.activations) for row in found] == list(PAIRS)
    for row in found:
        assert (row.rate_flop_per_s is None) == (row.support == "unsupported") == bool(row.reason)


def test_a_pair_that_the_file_speaks_of_is_followed():
    """RK3588: the runtime loads w8a8 only, although the arrays would multiply int4 as well."""
    spec = load_device("rockchip_rk3588_npu")
    precision = parse_precision({"weights": "int4_g64", "activations": "int8_token", "kv": "bf16"})
    with pytest.raises(UnsupportedOnDevice, match="RKLLM loads w8a8 only on this chip"):
        linear_path(spec, precision)


@pytest.mark.parametrize("name", ["etched_sohu", "cambricon_mlu590"])
def test_incomplete_devices_support_nothing_and_say_why(name):
    reason = supports(load_device(name), parse_precision("bf16"))
    assert reason is not None
    assert reason.startswith("incomplete, so it cannot be timed: compute is missing (")
    assert "\n" not in reason
