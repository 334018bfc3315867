"""Hypothesis strategies for the project's types, shared by the property tests."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from dse.formats.grammar import parse_format
from dse.formats.precision import NumberFormat, Precision

_SCOPES = ("", "_row", "_token", "_head", "_g1", "_g7", "_g16", "_g32", "_g64", "_g128")
_MX_NAMES = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8")


def integer_names(min_bits: int = 2, grids: tuple[str, ...] = ("", "_asym", "_full", "_gptq")):
    """Names of integer formats."""
    return st.builds(
        "int{}{}{}".format, st.integers(min_bits, 8), st.sampled_from(_SCOPES), st.sampled_from(grids)
    )


def quantized_names():
    """Names of every kind of quantized format."""
    return st.one_of(
        integer_names(),
        st.builds("fp8_{}{}".format, st.sampled_from(("e4m3", "e5m2")), st.sampled_from(_SCOPES)),
        st.builds("{}{}".format, st.sampled_from(_MX_NAMES), st.sampled_from(("", "_ceil", "_even"))),
        st.just("nvfp4"),
    )


def formats() -> st.SearchStrategy[NumberFormat]:
    """Any format, quantized or plain float."""
    return st.one_of(quantized_names(), st.sampled_from(("fp32", "fp16", "bf16"))).map(parse_format)


def quantized_formats() -> st.SearchStrategy[NumberFormat]:
    """Any format with scales."""
    return quantized_names().map(parse_format)


def precisions() -> st.SearchStrategy[Precision]:
    """Any precision whose formats suit their tensors."""

    def suiting(*scopes: str) -> st.SearchStrategy[NumberFormat]:
        return formats().filter(lambda fmt: fmt.granularity in scopes)

    return st.builds(
        Precision,
        suiting("tensor", "row", "group", "block"),
        suiting("tensor", "token", "group", "block"),
        suiting("tensor", "head", "group", "block"),
    )


def matrices(
    max_rows: int = 6, max_columns: int = 150, magnitude: float = 1e4
) -> st.SearchStrategy[torch.Tensor]:
    """(rows, columns) float32 tensors: Gaussian, with outliers, zero rows, few values or many magnitudes."""
    return st.builds(
        partial(_matrix, magnitude=magnitude),
        st.integers(1, max_rows),
        st.integers(1, max_columns),
        st.integers(0, 2**32 - 1),
        st.sampled_from(("gaussian", "outliers", "positive", "zero rows", "few values", "wide")),
    )


def _matrix(rows: int, columns: int, seed: int, look: str, magnitude: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, columns), generator=generator)
    if look == "outliers":
        x *= torch.where(torch.rand((rows, columns), generator=generator) < 0.05, 50.0, 1.0)
    elif look == "positive":
        x = x.abs() + 1
    elif look == "zero rows":
        x[:: max(1, rows // 2)] = 0
    elif look == "few values":
        x = x.round() / 2
    elif look == "wide":
        x *= torch.pow(10.0, torch.randint(-4, 4, (rows, 1), generator=generator))
    return x.clamp_(-magnitude, magnitude)


def small_configurations() -> st.SearchStrategy[dict[str, Any]]:
    """Hugging Face configurations of small decoders: any head grouping, depth, windows, tied heads."""

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        head_dim = 4 * draw(st.integers(1, 4))
        config: dict[str, Any] = {
            "model_type": draw(
                st.sampled_from(("llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "phi3"))
            ),
            "hidden_size": head_dim * groups * per_group,
            "intermediate_size": draw(st.integers(1, 60)),
            "num_hidden_layers": draw(st.integers(1, 4)),
            "num_attention_heads": groups * per_group,
            "num_key_value_heads": groups,
            "head_dim": head_dim,
            "vocab_size": draw(st.integers(8, 120)),
            "pad_token_id": 0,
            "tie_word_embeddings": draw(st.booleans()),
        }
        if config["model_type"] in ("mistral", "gemma2"):
            config["sliding_window"] = draw(st.integers(2, 40))
        return config

    return build()


def workload_points() -> st.SearchStrategy[tuple[int, int, int]]:
    """(batch, query, context) of a prefill, a chunk or a decode step."""
    return st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(0, 30)).map(
        lambda sizes: (sizes[0], sizes[1], sizes[1] + sizes[2])
    )
