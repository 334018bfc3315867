"""Products of differences: against passes in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dse.emulate.candidates import weights_by_sequence
from dse.emulate.differences import Differences
from dse.emulate.model import EmulatedModel
from dse.formats.grammar import parse_format, parse_precision
from dse.graph.units import units_of
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "linear")
FORMATS = [parse_format(name) for name in ("int8_g32", "int4_g32", "int2_g32")]


@pytest.fixture
def model(tmp_path: Path) -> EmulatedModel:
    return EmulatedModel.load(write_tiny_llama(tmp_path), GRAPH, UNITS, dtype="float32")


def test_changes_of_logits_are_relative_to_the_effect(model: EmulatedModel) -> None:
    """Oracle: a float32 pass per format. The bound is the same share of the effect at 8 bits and at 2."""
    differences = Differences(model)
    ids = torch.arange(40)[None] * 7 % 256
    unit = UNITS[2]
    paths = [model.path(unit.layer, op) for op in unit.ops]
    with differences.recorded() as passes:
        model.logits(ids)
    with weights_by_sequence(model, paths, FORMATS), differences.applied(passes, paths) as read:
        model.logits(ids.expand(3, -1))
    found = torch.zeros(3, 40, GRAPH.vocab_size)
    for part, changes in differences.logit_changes(read[-1], passes):
        found[:, part] = changes.float()
    full = model.logits(ids)[0]
    for fmt, change in zip(FORMATS, found, strict=True):
        with model.applied(model.expand([(unit, parse_precision(fmt.name))])):
            exact = model.logits(ids)[0] - full
        exact -= exact.mean(-1, keepdim=True)
        assert float(exact.norm()) > 0
        assert float((change - exact).norm() / exact.norm()) < 0.01
    assert torch.equal(model.logits(ids)[0], full)


def test_the_unchanged_model_has_no_changes(model: EmulatedModel) -> None:
    differences = Differences(model)
    ids = torch.arange(20)[None]
    with differences.recorded() as passes:
        model.logits(ids)
    assert set(passes) == {model.path(unit.layer, op) for unit in UNITS for op in unit.ops} | {"lm_head"}
    with differences.applied(passes, []) as read:
        model.logits(ids.expand(2, -1))
    changes = torch.cat([part for _, part in differences.logit_changes(read[-1], passes)], 1)
    assert float(changes.abs().max()) < 1e-4


def test_no_head_where_something_follows_it(model: EmulatedModel) -> None:
    """A cap of the logits, as Gemma 2 has."""
    assert Differences(model).head == "lm_head"
    forward = model.module.forward

    def capped(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = torch.tanh(output.logits)
        return output

    model.module.forward = capped
    assert Differences(model).head is None
