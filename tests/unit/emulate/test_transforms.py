"""Transforms leave the full-precision model alone: logits before and after, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dse.emulate import transforms as t
from dse.emulate.anatomy import anatomy_of
from dse.emulate.model import EmulatedModel
from dse.emulate.principal import rotate_to_principal
from dse.errors import ConfigError
from dse.graph.source import load_source
from dse.graph.trace import trace_model
from dse.graph.units import units_of
from dse.quantize.rotations import cosine, hadamard_rotation, pca_basis, random_orthogonal
from tests.demo_model import demo_folder
from tests.tiny_llama import FFN, HIDDEN, tiny_graph, write_tiny_llama

Transform = Callable[[EmulatedModel], None]


def _scale_everything(model: EmulatedModel) -> None:
    for block in anatomy_of(model).blocks:
        for source, linears in t.sites(block, with_down=True).values():
            n = linears[0].in_features
            scale = torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.5
            t.scale_site(source, linears, t.smooth_scale(scale, linears, 0.5))
            t.scale_site(source, linears, t.awq_scale(scale, 0.6))


def _pca(model: EmulatedModel) -> None:
    width = anatomy_of(model).width
    x = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(0))
    t.fuse_norms(model)
    t.rotate_residual(model, pca_basis(x.t() @ x))


def _principal(model: EmulatedModel) -> None:
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(4))
    names = ("self_attn.q_proj", "mlp.gate_proj")
    paths = [[f"model.layers.{layer}.{name}" for name in names] for layer in range(len(model.layers))]
    rotate_to_principal(model, paths, ids)


def _permute(model: EmulatedModel) -> None:
    anatomy = anatomy_of(model)
    generator = torch.Generator().manual_seed(1)
    t.permute_residual(model, torch.randperm(anatomy.width, generator=generator))
    t.permute_ffn(
        model, [torch.randperm(block.down.in_features, generator=generator) for block in anatomy.blocks]
    )


TRANSFORMS: dict[str, Transform] = {
    "fuse": t.fuse_norms,
    "offline": lambda model: t.quarot(model, online=False),
    "quarot": t.quarot,
    "values within heads": lambda model: t.rotate_values(model, across_heads=False),
    "scales": _scale_everything,
    "pca": _pca,
    "principal": _principal,
    "permute": _permute,
}


def _exact_norms(model: EmulatedModel) -> None:
    """The library's RMS norm computes in float32 at any dtype; here it must not."""
    anatomy = anatomy_of(model)

    def forward(self: torch.nn.Module, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    norms = [n for b in anatomy.blocks for n in (b.attention_norm, b.ffn_norm)]
    for norm in [*norms, anatomy.final_norm]:
        norm.forward = forward.__get__(norm)


def _tiny(folder: Path) -> EmulatedModel:
    graph = tiny_graph()
    model = EmulatedModel.load(folder, graph, units_of(graph, "block"), dtype="float32")
    model.module.double()
    generator = torch.Generator().manual_seed(2)
    for norm in [n for b in anatomy_of(model).blocks for n in (b.attention_norm, b.ffn_norm)]:
        norm.weight.data = torch.rand(HIDDEN, generator=generator, dtype=torch.float64) + 0.5
    _exact_norms(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_tiny_model_is_unchanged(name: str, folder: Path) -> None:
    """Biases are not in this model; grouped queries (4 heads, 2 of keys) are."""
    model = _tiny(folder)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))
    before, named = model.logits(ids), model.hash
    weights = [p.detach().clone() for p in model.module.parameters()]
    TRANSFORMS[name](model)
    assert float((model.logits(ids) - before).abs().max()) < 1e-10
    changed = [not torch.equal(a, b) for a, b in zip(weights, model.module.parameters(), strict=False)]
    assert any(changed)
    if name != "scales":
        assert model.hash != named


def test_rotation_needs_fused_norms(folder: Path) -> None:
    with pytest.raises(ConfigError, match="fused"):
        t.rotate_residual(_tiny(folder), random_orthogonal(HIDDEN, 0))


@pytest.mark.parametrize("n", [1, 2, 12, 20, 28, 36, 64, FFN, 576, 1536])
def test_hadamard_matrices(n: int) -> None:
    """H H^T = 1 with all entries of one size; the product form equals the matrix."""
    rotation = hadamard_rotation(n)
    matrix = rotation.matrix()
    assert torch.allclose(matrix @ matrix.t(), torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(rotation.apply(x), x @ matrix)


def test_what_has_no_hadamard_matrix() -> None:
    for n in (9, 6, 15):
        with pytest.raises(ConfigError, match="no Hadamard"):
            hadamard_rotation(n)
    for matrix in (cosine(9), random_orthogonal(9, 0), t.residual_rotation(9, 1)):
        assert torch.allclose(matrix @ matrix.t(), torch.eye(9, dtype=torch.float64), atol=1e-12)


@pytest.mark.model
def test_demo_model_is_unchanged_and_flatter() -> None:
    """METHODS 7.8 on the real model: < 1e-6 on logits in float64; rotated inputs have a lower kurtosis."""
    folder = demo_folder()
    graph = trace_model(load_source(folder))
    model = EmulatedModel.load(folder, graph, units_of(graph, "block"), dtype="float32")
    anatomy = anatomy_of(model)
    rows = torch.nn.Parameter(anatomy.embedding.weight[:2048].clone(), requires_grad=False)
    anatomy.embedding.weight = anatomy.head.weight = rows  # the logits of 2048 tokens, at a tenth of the time
    model.module.double()
    _exact_norms(model)
    ids = torch.randint(0, 2048, (1, 24), generator=torch.Generator().manual_seed(0))
    before, kurtosis = model.logits(ids), _kurtosis(model, ids)
    for transform in (_scale_everything, _permute, _principal, t.quarot):  # 9 heads, 3 of keys and values
        transform(model)
        assert float((model.logits(ids) - before).abs().max()) < 1e-6
    assert _kurtosis(model, ids) < kurtosis


def _kurtosis(model: EmulatedModel, ids: Tensor) -> float:
    """Mean kurtosis of the inputs that linears see, over all blocks."""
    seen: list[float] = []

    def look(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0] - args[0].mean()
        seen.append(float(x.pow(4).mean() / x.square().mean() ** 2))

    blocks = anatomy_of(model).blocks
    hooks = [m.register_forward_pre_hook(look) for b in blocks for m in (b.q, b.o, b.gate, b.down)]
    model.logits(ids)
    for hook in hooks:
        hook.remove()
    return sum(seen) / len(seen)
