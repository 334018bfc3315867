"""Where models come from: folders, GGUF files, hub ids. Oracle for GGUF: the gguf package writes the file."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dse.errors import ConfigError
from dse.graph.source import ModelSource, load_source
from dse.graph.trace import trace_model
from tests.unit.graph.conftest import LLAMA


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    source = load_source(folder)
    assert (source.name, source.config) == ("my-model", LLAMA)
    assert (source.weights, source.has_weights) == (None, False)
    assert "architecture only" in source.note
    (folder / "model.safetensors").write_bytes(b"")
    assert load_source(str(folder)).weights == folder


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "model_type: is missing"),
    ],
)
def test_a_broken_folder(tmp_path: Path, content: str | None, text: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=text) as caught:
        load_source(tmp_path)
    assert "\n" not in str(caught.value)


def write_gguf(path: Path, architecture: str = "llama", window: int | None = None) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    if window is not None:
        writer.add_sliding_window(window)
    writer.add_context_length(64)
    writer.add_embedding_length(48)
    writer.add_block_count(3)
    writer.add_feed_forward_length(80)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(101)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_gguf(path)
    source = load_source(path)
    assert (source.gguf, source.weights, source.config["model_type"]) == (path, None, "llama")
    graph = trace_model(source)
    assert (graph.n_layers, graph.hidden_size, graph.vocab_size) == (3, 48, 101)


@pytest.mark.parametrize(
    ("cut", "text"),
    [(None, "no such file"), (0, "is not a GGUF file"), (30, "is a damaged or unsupported GGUF file")],
)
def test_a_corrupt_gguf_file(tmp_path: Path, cut: int | None, text: str) -> None:
    path = tmp_path / "small.gguf"
    if cut is not None:
        write_gguf(path)
        path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=text) as caught:
        load_source(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_garbage_after_the_magic_is_a_corrupt_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)))
    with pytest.raises(ConfigError, match="is a damaged or unsupported GGUF file"):
        load_source(path)


def test_the_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def refuse(hub_id: str, *, local_files_only: bool) -> None:
        assert local_files_only
        raise OSError(f"cannot reach the hub\nfor {hub_id}")

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"hub model 'org/name'.*pass a local folder") as caught:
        load_source("org/name")
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no such model './nothing/here'"):
        load_source("./nothing/here")


def test_the_hash_is_that_of_the_architecture() -> None:
    one, other = ModelSource("a", {**LLAMA, "_name_or_path": "x"}), ModelSource("b", dict(LLAMA))
    assert one.config_hash == other.config_hash
    assert ModelSource("a", {**LLAMA, "vocab_size": 102}).config_hash != other.config_hash


def test_a_configuration_names_its_architecture() -> None:
    with pytest.raises(ConfigError, match="x: model_type: is missing"):
        ModelSource("x", {"hidden_size": 4})


@pytest.mark.parametrize("window", [None, 32])
def test_a_mistral_gguf_file_slides_as_its_header_says(tmp_path: Path, window: int | None) -> None:
    write_gguf(tmp_path / "m.gguf", "mistral", window)
    graph = trace_model(load_source(tmp_path / "m.gguf"))
    found = {op.attention.window for block in graph.blocks for op in block.ops if op.attention is not None}
    assert found == {window}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "llama"}, "give hidden_size, num_hidden_layers, num_attention_heads, vocab_size"),
        ({"model_type": "gpt2", "n_embd": 48, "n_head": 6, "vocab_size": 11}, "does not give n_layer "),
        ({"model_type": "mamba", "hidden_size": 48, "num_hidden_layers": 2}, "does not give vocab_size "),
        ({**LLAMA, "rope_scaling": {"rope_type": "yern", "factor": 2.0}}, "unknown rope type 'yern'.*yarn"),
        ({"model_type": "clip"}, "'clip' joins a text and a vision model"),
    ],
)
def test_a_configuration_that_cannot_be_traced_says_why_in_one_line(
    config: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        trace_model(ModelSource("x", config))
    assert "\n" not in str(caught.value)
