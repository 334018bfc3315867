"""Every known format in every role that the grammar allows it, through a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dse.emulate.model import EmulatedModel
from dse.errors import ConfigError
from dse.formats.grammar import KNOWN_FORMATS, parse_format, parse_precision
from dse.graph.units import units_of
from dse.plan import Assignment
from tests.tiny_llama import tiny_graph, write_tiny_llama

GRAPH = tiny_graph()
UNITS = units_of(GRAPH, "block")
ROLES = {"weights": "{}", "activations": "bf16/{}/bf16", "kv": "bf16/bf16/{}"}
SCOPES = {
    "weights": {"tensor", "row", "column", "group", "block"},
    "activations": {"tensor", "token", "group", "block"},
    "kv": {"tensor", "head", "group", "block"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmulatedModel:
    folder = write_tiny_llama(Path(tmp_path_factory.mktemp("tiny")))
    return EmulatedModel.load(folder, GRAPH, UNITS, dtype="float32")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [name for name in KNOWN_FORMATS if not parse_format(name).is_float])
def test_the_model_runs_and_notices(name: str, role: str, model: EmulatedModel, ids: Tensor) -> None:
    text = ROLES[role].format(name)
    if parse_format(name).granularity not in SCOPES[role]:
        with pytest.raises(ConfigError, match=r"do not have|does not have|cannot"):
            parse_precision(text)
        return
    exact = model.logits(ids)
    assignment = Assignment.uniform(tuple(unit.name for unit in UNITS), parse_precision(text))
    with model.applied(model.formats_of(assignment)):
        rounded = model.logits(ids)
    assert bool(torch.isfinite(rounded).all())
    assert not torch.equal(rounded, exact)
    assert torch.equal(model.logits(ids), exact)
