"""Which test covers which invariant of METHODS section 7: a table that names what exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

INVARIANTS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "tables bit-exact",
        (
            "unit/quantize/test_minifloat.py::test_tables",
            "unit/quantize/test_minifloat.py::test_tables_of_the_method_sheet",
            "unit/quantize/test_tables.py::test_nf4_levels_are_normal_quantiles",
            "unit/quantize/test_tables.py::test_dialects_are_a_family_around_e2m1",
            "oracles/test_gfloat.py::test_every_code",
        ),
    ),
    2: (
        "GPTQ's error identity; lazy blocks equal columns",
        (
            "unit/quantize/test_gptq.py::test_error_identity",
            "unit/quantize/test_gptq.py::test_error_identity_with_kept_columns_and_bands",
            "unit/quantize/test_gptq.py::test_lazy_blocks_equal_columns",
        ),
    ),
    3: (
        "the cost of freezing a weight has one power of [H^-1]_jj",
        (
            "unit/quantize/test_gptq.py::test_freezing_a_weight_costs_one_power_of_the_inverse",
            "unit/quantize/test_gptq.py::test_factor_diagonal_is_the_conditional_inverse",
        ),
    ),
    4: (
        "k-means from round to nearest never ends above it",
        (
            "unit/quantize/test_tables.py::test_lloyd_never_ends_above_rtn_nor_below_the_optimum",
            "unit/quantize/test_tables.py::test_exact_levels_against_all_partitions",
        ),
    ),
    5: ("nested labels shift", ("unit/quantize/test_tables.py::test_nested_codes_shift_and_errors_fall",)),
    6: (
        "BitMoD <= base FP",
        ("unit/quantize/test_tables.py::test_bitmod_is_the_best_of_four_and_never_above_its_base",),
    ),
    7: ("dialect 7 is E2M1", ("unit/quantize/test_tables.py::test_dialects_are_a_family_around_e2m1",)),
    8: (
        "rotations and scales are exact in float64, < 1e-6",
        (
            "unit/emulate/test_transforms.py::test_tiny_model_is_unchanged",
            "unit/emulate/test_transforms.py::test_demo_model_is_unchanged_and_flatter",
        ),
    ),
    9: (
        "packed bytes are those of the formula",
        (
            "conformance/test_formats.py::test_codes_packed_bytes_and_values_agree",
            "properties/test_format_properties.py::test_bytes_hold_the_values",
            "unit/quantize/test_outliers.py::test_elements_are_exact_and_sizes_are_those_of_the_arrays",
        ),
    ),
    10: (
        "a budget is never exceeded, and the gap is below one unit",
        (
            "unit/search/test_knapsack.py::test_allocate_equals_enumeration",
            "unit/search/test_knapsack.py::test_never_worse_than_uniform_of_the_same_size",
            "unit/search/test_knapsack.py::test_front_agrees_with_every_budget",
        ),
    ),
    11: (
        "multiple-choice knapsack equals brute force",
        (
            "unit/search/test_knapsack.py::test_allocate_equals_enumeration",
            "unit/search/test_knapsack.py::test_front_equals_enumeration",
        ),
    ),
    12: (
        "outliers are reconstructed exactly; errors fall with their share",
        (
            "unit/quantize/test_outliers.py::test_elements_are_exact_and_sizes_are_those_of_the_arrays",
            "unit/quantize/test_outliers.py::test_errors_fall_with_what_is_kept",
        ),
    ),
    13: (
        "a policy with everything high is full precision",
        ("unit/emulate/test_runtime_policies.py::test_policies_at_their_limits",),
    ),
    14: (
        "precision by position: the bits that are read are the formula's",
        ("unit/emulate/test_runtime_policies.py::test_phases_equal_prefill_and_decode",),
    ),
    15: (
        "permutations are exact before quantization",
        ("unit/emulate/test_transforms.py::test_tiny_model_is_unchanged",),
    ),
}


def test_all_fifteen_are_here() -> None:
    assert sorted(INVARIANTS) == list(range(1, 16))


@pytest.mark.parametrize("number", INVARIANTS)
def test_the_tests_of_an_invariant_exist(number: int) -> None:
    for name in INVARIANTS[number][1]:
        path, _, function = name.partition("::")
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), name
