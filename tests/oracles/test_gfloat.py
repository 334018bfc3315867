"""Small floats and MX blocks against gfloat, an exact and slow implementation of its own."""

from __future__ import annotations

import gfloat
import numpy as np
import pytest
import torch
from gfloat import formats

from dse.formats.elements import ELEMENTS
from dse.formats.grammar import parse_format
from dse.quantize import fake_quantize
from dse.quantize.minifloat import decode_minifloat, encode_minifloat, round_minifloat_

INFOS = {
    "e2m1": formats.format_info_ocp_e2m1,
    "e2m3": formats.format_info_ocp_e2m3,
    "e3m2": formats.format_info_ocp_e3m2,
    "e4m3": formats.format_info_ocp_e4m3,
    "e5m2": formats.format_info_ocp_e5m2,
}
BLOCKS = {
    "mxfp4": formats.format_info_mxfp4_e2m1,
    "mxfp6_e2m3": formats.format_info_mxfp6_e2m3,
    "mxfp6_e3m2": formats.format_info_mxfp6_e3m2,
    "mxfp8_e4m3": formats.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": formats.format_info_mxfp8_e5m2,
    "mxint8": formats.format_info_mxint8,
}


@pytest.mark.parametrize("name", INFOS)
def test_every_code(name: str) -> None:
    """Both signs, all finite codes; what gfloat calls NaN or infinity is exactly what has no code here."""
    spec = ELEMENTS[name]
    codes = np.arange(1 << spec.bits)
    values = gfloat.decode_ndarray(INFOS[name], codes)
    finite = np.isfinite(values)
    magnitude = codes & ((1 << (spec.bits - 1)) - 1)
    assert np.array_equal(finite, magnitude < len(spec.magnitudes))
    ours = decode_minifloat(torch.from_numpy(codes[finite].astype(np.int16)), spec)
    assert np.array_equal(ours.numpy(), values[finite].astype(np.float32))
    back = encode_minifloat(torch.from_numpy(values[finite].astype(np.float32)), spec)
    assert np.array_equal(back.numpy(), codes[finite])


@pytest.mark.parametrize("name", INFOS)
def test_rounding_of_midpoints_and_of_random_values(name: str) -> None:
    spec = ELEMENTS[name]
    table = np.array(spec.magnitudes)
    random = np.random.default_rng(0).normal(size=1500) * spec.max_value / 2
    probes = np.concatenate([(table[1:] + table[:-1]) / 2, random]).astype(np.float32)
    expected = gfloat.round_ndarray(INFOS[name], probes.astype(np.float64), sat=True)
    ours = round_minifloat_(torch.from_numpy(probes.copy()), spec)
    assert np.array_equal(ours.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_with_the_floor_rule(name: str) -> None:
    """Blocks of gfloat scale, encode and decode; elements saturate in both."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((12, 32), generator=generator) * torch.logspace(-6, 6, 12)[:, None]
    x[3] = 0
    x[5, 7] = 1e4
    ours = fake_quantize(x, parse_format(name)).numpy()
    for row, expected in zip(x.double().numpy(), ours, strict=True):
        block = gfloat.quantize_block(BLOCKS[name], row, gfloat.compute_scale_amax)
        assert np.array_equal(block.astype(np.float32), expected)


def test_the_most_negative_code_of_mxint8_is_the_only_difference() -> None:
    """-128 / 64 = -2 is legal and never produced here, so that the grid is symmetric; gfloat uses it."""
    row = torch.zeros(1, 32)
    row[0, 3] = -1.998
    block = gfloat.quantize_block(BLOCKS["mxint8"], row[0].double().numpy(), gfloat.compute_scale_amax)
    assert block[3] == -2.0
    assert float(fake_quantize(row, parse_format("mxint8"))[0, 3]) == -127 / 64
    assert float(fake_quantize(-row, parse_format("mxint8"))[0, 3]) == 127 / 64
