"""What runs beside operators, against hand counts and against the bytes of the emulated stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cost_models.pricing import price
from dse.errors import ConfigError
from dse.evaluate.beside import (
    NO_EXTRAS,
    Extras,
    Outliers,
    hadamard_block,
    outlier_works,
    parse_outliers,
    scaled_sums_per_output,
)
from dse.evaluate.build import build_cost_table
from dse.evaluate.kernel_path import linear_path
from dse.evaluate.lowering import lower_beside, read_weight_bytes, weight_bytes
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from dse.graph.workload import Workload
from dse.quantize.outliers import with_columns, with_elements, with_low_rank
from tests.factories import make_graph, make_spec

GRAPH = make_graph(n_layers=2)
BLOCK = GRAPH.blocks[0]
OPS = {op.name: op for op in BLOCK.ops}
SPEC = make_spec(weight_only_bits=(2, 3, 4, 5, 8))
INT4, BF16 = parse_precision("int4_g64"), parse_precision("bf16")
WORKLOAD = Workload(4, 32, 8)


def test_stored_bytes_are_those_of_the_emulated_stores():
    """Oracle: ``dse.quantize.outliers``, whose sizes are those of its arrays."""
    fmt = parse_format("int4_g64")
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(96 * 256, dtype=torch.bool)
    mask[: round(0.005 * 96 * 256)] = True
    for store in ("csr", "bitmap"):
        kept = with_elements(weight, fmt, mask.view(96, 256), store)
        assert parse_outliers(f"{store}:0.5%").bytes_beside(96, 256) * 8 == kept.extra_bits
    columns = parse_outliers("columns:5%")
    kept = with_columns(weight, fmt, list(range(columns.n_columns(256))))
    assert columns.bytes_beside(96, 256) * 8 == kept.extra_bits
    assert columns.matrix_bytes(fmt, 96, 256) * 8 == kept.bits - kept.extra_bits
    kept = with_low_rank(weight, fmt, 8)
    assert parse_outliers("low_rank:8").bytes_beside(96, 256) * 8 == kept.extra_bits


def test_outlier_products_by_hand():
    # 1 % of 100 x 200 weights, 3 rows.
    (sparse,) = outlier_works(parse_outliers("csr:1%"), "bf16", 3, 100, 200)
    assert sparse.vector_flop == 2 * 200 * 3
    assert sparse.read_bytes == 200 * 4 + 101 * 4 + 2 * 3 * 200 + 2 * 3 * 100
    gather, narrow = outlier_works(parse_outliers("columns:2%"), "bf16", 3, 100, 200)
    assert gather.read_bytes == 3 * 4 * (2 + 2)
    assert (narrow.flop, narrow.shape) == (2 * 3 * 100 * 4, (100, 4.0))
    down, up = outlier_works(parse_outliers("low_rank:8"), "bf16", 3, 100, 200)
    assert down.flop + up.flop == 2 * 3 * 8 * (100 + 200)
    assert outlier_works(parse_outliers("columns:0.1%"), "bf16", 3, 100, 200) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csv:1%", "did you mean 'csr'|allowed"),
        ("csr", "STORE:SHARE%"),
        ("csr:1", "a share above 0%"),
        ("csr:100%", "a share above 0%"),
        ("low_rank:3%", "a rank without %"),
        ("low_rank:2.5", "whole number"),
    ],
)
def test_wrong_outliers(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_outliers(text)


def test_unknown_transform():
    with pytest.raises(ConfigError, match="unknown transform 'rotated'"):
        Extras("rotated")


def names(op, precision, extras):
    return [what for what, _ in lower_beside(op, BLOCK, precision, SPEC, "decode", 4, 1, 9, extras)]


def test_online_rotations_are_those_of_quarot():
    """Oracle: the list of QuaRot, arXiv 2404.00456, section 4; offline transforms add nothing."""
    rotated = {op.name for op in BLOCK.ops if names(op, INT4, Extras("quarot"))}
    assert rotated == {"attn.core", "attn.o_proj", "mlp.down_proj"}
    for transform in ("none", "awq", "smooth", "rotate"):
        assert not any(names(op, INT4, Extras(transform)) for op in BLOCK.ops)
    works = {
        name: lower_beside(OPS[name], BLOCK, INT4, SPEC, "decode", 4, 1, 9, Extras("quarot"))[0][1]
        for name in rotated
    }
    # 4 tokens: heads 8 + 4 of 64; 64 vectors of 8 heads; one vector of 1024.
    assert works["attn.core"].vector_flop == 4 * 12 * 64 * 6
    assert works["attn.o_proj"].vector_flop == 4 * 64 * 8 * 3
    assert works["mlp.down_proj"].vector_flop == 4 * 1024 * 10
    assert works["mlp.down_proj"].read_bytes == works["mlp.down_proj"].write_bytes == 4 * 1024 * 2


@pytest.mark.parametrize(("width", "factor"), [(4096, None), (14336, 28), (11008, 172), (9, 9), (1536, 12)])
def test_dense_factors(width, factor):
    # 14336 = 28 x 512, 11008 = 172 x 64, 1536 = 12 x 128; nothing is known of 9 heads but a dense matrix.
    assert hadamard_block(width) == factor


def test_only_quantized_weights_keep_outliers():
    kept = Extras(outliers=Outliers("csr", 0.01))
    assert names(OPS["mlp.down_proj"], INT4, kept) == ["csr"]
    assert names(OPS["mlp.down_proj"], BF16, kept) == []
    assert names(OPS["attn.core"], INT4, kept) == []


@pytest.mark.parametrize("extras", [Extras("quarot"), Extras("quarot", parse_outliers("columns:1%"))])
def test_the_table_adds_what_runs_beside(extras):
    """Oracle: pricing each kernel on its own."""
    units = units_of(GRAPH, "block")
    plain, more = (
        build_cost_table(GRAPH, units, (BF16, INT4), {"toy": SPEC}, WORKLOAD, (4,), extras=entry)
        for entry in (NO_EXTRAS, extras)
    )

    def beside_s(what, precision):
        found = [
            price(work, SPEC).time_s
            for op in BLOCK.ops
            for name, work in lower_beside(op, BLOCK, precision, SPEC, "prefill", 4, 32, 32, extras)
            if name == what
        ]
        return sum(found)

    layer = more.layer_time_s[0, 0, 0] - plain.layer_time_s[0, 0, 0]
    np.testing.assert_allclose(layer, beside_s("rotate", INT4), rtol=1e-9)
    unit = more.unit_time_s[0, 0, 0] - plain.unit_time_s[0, 0, 0]
    np.testing.assert_allclose(unit[:, 0], 0.0)
    np.testing.assert_allclose(unit[:, 1], beside_s("columns", INT4), atol=1e-15)
    stored = more.unit_weight_bytes - plain.unit_weight_bytes
    assert (stored[:, 1] > 0).all() == (extras.outliers is not None)


def test_nested_codes_read_their_planes():
    # any3of5: 5 planes and tables of 8 + 16 + 32 entries are stored, 3 planes and 8 entries are read.
    op, fmt = OPS["mlp.down_proj"], parse_format("any3of5_row")
    assert read_weight_bytes(op, fmt) == 512 * (1024 * 3 / 8 + 8 * 2)
    assert weight_bytes(op, fmt) == 512 * (1024 * 5 / 8 + (8 + 16 + 32) * 2)
    assert read_weight_bytes(op, parse_format("int4_g64")) == weight_bytes(op, parse_format("int4_g64"))


def test_formats_imply_their_kernels():
    for name, kernel in (
        ("int4_g64", "matmul"),
        ("kmeans3_row", "matmul_lookup"),
        ("nf4_b64", "matmul_lookup"),
        ("any3of5_row", "matmul_lookup"),
        ("binary_row", "matmul_bit_plane"),
    ):
        assert linear_path(SPEC, parse_precision(name)).kernel == kernel


def test_scaled_sums():
    """Oracle: one multiply-add for each group of 128 along the contraction (Atom), and a zero point."""
    fmt = parse_format
    assert scaled_sums_per_output(fmt("int4_g128"), fmt("int8_token"), 1024) == 2 * 8
    assert scaled_sums_per_output(fmt("int8_row"), fmt("int8_token"), 1024) == 0
    assert scaled_sums_per_output(fmt("int8_row"), fmt("int8_token_asym"), 1024) == 2
    assert scaled_sums_per_output(fmt("fp8_e4m3_b128x128"), fmt("fp8_e4m3_g128"), 1024) == 2 * 8
    assert linear_path(SPEC, parse_precision("int8_row/int8_token/bf16")).scales_sums
    assert not linear_path(SPEC, INT4).scales_sums
