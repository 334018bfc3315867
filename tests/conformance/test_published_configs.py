"""Catalogue configurations against the models' own config.json files, as aiconfigurator-core mirrors them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from studies.catalogue import catalogue_entry

MIRROR = "aiconfigurator_core"
PUBLISHED = {
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
    "gpt-oss-120b": "openai--gpt-oss-120b",
    "gpt-oss-20b": "openai--gpt-oss-20b",
    "llama-3.1-405b": "meta-llama--Meta-Llama-3.1-405B",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
    "llama-4-maverick": "meta-llama--Llama-4-Maverick-17B-128E-Instruct",
    "llama-4-scout": "meta-llama--Llama-4-Scout-17B-16E-Instruct",
    "mixtral-8x22b": "mistralai--Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "qwen3-0.6b": "Qwen--Qwen3-0.6B",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-32b": "Qwen--Qwen3-32B",
    "qwen3-8b": "Qwen--Qwen3-8B",
}


def published(name: str) -> dict[str, Any]:
    """Return the text configuration of a mirrored config.json."""
    found = importlib.util.find_spec(MIRROR)
    if found is None or found.origin is None:
        pytest.skip("needs pip install -e '.[bench]'")
    folder = Path(found.origin).parent / "model_configs"
    document: dict[str, Any] = json.loads((folder / f"{PUBLISHED[name]}_config.json").read_text())
    return document.get("text_config", document)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_says_what_the_published_file_says(name: str) -> None:
    ours, theirs = catalogue_entry(name).config, published(name)
    compared = (ours.keys() & theirs.keys()) - {"model_type"}
    assert {key: ours[key] for key in compared} == {key: theirs[key] for key in compared}
    assert {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"} <= compared
    assert len(compared) >= 12
