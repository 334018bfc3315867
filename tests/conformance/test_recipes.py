"""Every packaged recipe runs on a tiny model; a new file is tested unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dse.emulate.corpus import load_corpus
from dse.errors import ConfigError
from dse.graph.source import ModelSource
from studies.measuring import Bench
from studies.progress import Silent
from studies.quantizing import Quantized, assignment_of, quantize, weight_recipe
from studies.recipes import load_recipe, recipe_names
from studies.schema import QualitySpec
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recipes")
    (place / "corpus.txt").write_text("".join(f"Number {i} is followed by {i + 1}. " for i in range(400)))
    write_tiny_llama(place / "tiny-llama")
    return place


def _run(name: str, folder: Path, output: Path | None = None, *, on_disk: bool = False) -> Quantized:
    recipe = replace(load_recipe(name), calibration_tokens=1024)
    assignment, units = assignment_of(recipe, GRAPH)
    quality = QualitySpec(corpus=str(folder / "corpus.txt"), tokens=128, sequence_length=64, dtype="float32")
    source = ModelSource(name="tiny", config={"model_type": "llama"}, weights=folder / "tiny-llama")
    bench = Bench(source, GRAPH, units, quality, 0, load_corpus(quality.corpus))
    return quantize(bench, recipe, assignment, Silent(), output=output, block_by_block=on_disk)


@pytest.mark.parametrize("name", recipe_names())
def test_it_runs_and_says_what_it_did(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_CACHE", str(folder / "cache"))
    result = _run(name, folder)
    assert result.recipe.name == name
    assert result.recipe.description
    assert result.measured.kl_nats > 0 or result.recipe.policy.cache.window >= 64
    assert 2 < result.linear_effective_bits <= 16
    document = result.to_json()
    assert document["sequence_length"] == 64
    assert document["recipe"]["runtime"] == result.recipe.policy.to_json()
    assert (document["calibration_hash"] is None) == (
        not weight_recipe(result.recipe, 0).needs_calibration and not result.recipe.policy.static_activations
    )


def test_stores_count_in_the_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_CACHE", str(folder / "cache"))
    plain, low_rank = _run("gptq-int3", folder), _run("low-rank-int3", folder)
    shapes = [op.weight_shape for block in GRAPH.block_of_layer for op in block.ops if op.kind == "linear"]
    extra = sum(16 * 16 * (m + n) for m, n in (shape for shape in shapes if shape))
    elements = sum(m * n for m, n in (shape for shape in shapes if shape))
    assert low_rank.linear_effective_bits - plain.linear_effective_bits == pytest.approx(extra / elements)
    assert low_rank.measured.kl_nats < plain.measured.kl_nats


@pytest.mark.parametrize(
    ("name", "on_disk"), [("rotate-gptq-int4", False), ("rotate-gptq-int4", True), ("gptq-int4", True)]
)
def test_written_weights_are_those_that_were_measured(
    name: str, on_disk: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: transformers loads the folder and its loss is the measured one."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("DSE_CACHE", str(folder / "cache"))
    result = _run(name, folder, tmp_path / "out", on_disk=on_disk)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.from_numpy(result.sample.ids).long()
    with torch.inference_mode():
        loss = loaded(input_ids=ids, labels=ids).loss
    assert float(loss.exp()) == pytest.approx(result.measured.perplexity, rel=1e-5)
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert record["perplexity"] == result.measured.perplexity
    assert record["block_by_block"] == on_disk
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(ConfigError, match="not empty"):
        _run(name, folder, tmp_path / "out", on_disk=on_disk)
    with pytest.raises(ConfigError, match="'quarot' turns activations"):
        _run("quarot-w4a4kv4", folder, tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nformats: {weights: int99}", "formats.weights: unknown number format 'int99'"),
        ("name: x\nformat: {}", "unknown key 'format' .*did you mean 'formats'"),
        ("name: x\nroles: {down_proj: {weights: nope}}", "roles.down_proj.weights"),
        ("name: x\nruntime: {cache: {windw: 1}}", "runtime.cache: unknown key 'windw'"),
        ("name: x\nlow_rank: -1", "low_rank"),
    ],
)
def test_mistakes_name_file_and_place(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gptq-int4'"):
        load_recipe("gptq-int44")
    for key, value in (("fit", "msee"), ("transform", "awk"), ("quantizer", "gptk"), ("order", "up")):
        recipe = load_recipe("rtn-int4")
        recipe.weights[key] = value
        with pytest.raises(ConfigError, match=value):
            weight_recipe(recipe, 0)
