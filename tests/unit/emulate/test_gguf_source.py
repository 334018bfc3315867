"""A GGUF file read block by block: the same as the file expanded as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dse.emulate.checkpoint import convert_gguf, describe_gguf
from dse.emulate.compensate import WeightRecipe
from dse.emulate.corpus import TokenSample
from dse.emulate.gguf_source import expanded_bytes
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError
from dse.evaluate.block_by_block import StreamedResult, quantize_block_by_block
from dse.formats.grammar import parse_precision
from dse.graph.source import load_source
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.plan import Assignment
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folders(file: Path) -> tuple[Path, Path]:
    """The file expanded by transformers, and only described."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSE_CACHE", str(file.parent / "cache"))
        return convert_gguf(file), describe_gguf(file)


def test_every_tensor_is_that_of_the_whole_conversion(file: Path, folders: tuple[Path, Path]) -> None:
    """Oracle: transformers' own loading of the file, bit for bit, in every type that the file has."""
    whole, described = folders
    assert (whole / "config.json").read_bytes() == (described / "config.json").read_bytes()
    assert (whole / "tokenizer.json").read_bytes() == (described / "tokenizer.json").read_bytes()
    assert not list(described.glob("*.safetensors"))
    expected = load_file(whole / "model.safetensors")
    model = StreamedModel.open(described, trace_model(load_source(file)), (), gguf=file)
    for name, value in expected.items():
        stored = name if name in model.source else "model.embed_tokens.weight"  # tied to the head
        assert torch.equal(model.source.read(stored), value), name
    assert expanded_bytes(file) == sum(value.nbytes for value in expected.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_as_from_the_expanded_folder(file: Path, folders: tuple[Path, Path], dtype: str) -> None:
    """Oracle: the same from the safetensors of the whole conversion, bit for bit."""
    whole, described = folders
    graph = trace_model(load_source(file))
    units = units_of(graph, "block")
    assignment = Assignment(tuple((unit.name, parse_precision("int4_g64_asym")) for unit in units))
    ids = np.random.default_rng(0).integers(0, 256, (2, 4, 32)).astype(np.int32)
    evaluation = TokenSample(ids[0], "random", "0", "evaluation", 0, "a")
    calibration = TokenSample(ids[1], "random", "0", "calibration", 0, "b")

    def run(model: StreamedModel) -> StreamedResult:
        formats, how = model.formats_of(assignment), WeightRecipe(quantizer="gptq")
        return quantize_block_by_block(model, formats, how, evaluation, calibration=calibration)

    found = run(StreamedModel.open(described, graph, units, dtype=dtype, gguf=file))
    assert found == run(StreamedModel.open(whole, graph, units, dtype=dtype))
    assert found.measured.kl_nats > 0.01


def test_files_that_cannot_be_read_are_one_line(
    file: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "cut.gguf"
    bad.write_bytes(file.read_bytes()[:500])
    graph = trace_model(load_source(file))
    for make in (describe_gguf, lambda path: StreamedModel.open(folders[1], graph, (), gguf=path)):
        with pytest.raises(ConfigError, match=r"cut\.gguf") as caught:
            make(bad)
        assert "\n" not in str(caught.value)
    assert expanded_bytes(bad) == 0
