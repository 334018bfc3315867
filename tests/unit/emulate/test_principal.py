"""The principal basis: orthogonal, exact, and the high part holds the energy."""

from __future__ import annotations

import torch

from dse.emulate.principal import principal_basis


def test_basis_is_orthogonal_and_sorts_energy() -> None:
    """Oracle: the energy of the best r-dimensional subspace is the sum of the r largest eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(48, 48, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 48, generator=generator, dtype=torch.float64) @ mix
    moments = x.t() @ x
    basis = principal_basis(moments, 3, 1 / 8)
    assert torch.allclose(basis.t() @ basis, torch.eye(48, dtype=torch.float64), atol=1e-12)
    energy = (x @ basis).square().sum(0)
    largest = torch.linalg.eigvalsh(moments)[-6:].sum()
    assert torch.allclose(energy[-6:].sum(), largest)
    assert float(energy[-6:].min()) > float(energy[:-6].max())
