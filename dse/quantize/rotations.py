"""Orthogonal matrices that rotations are made of: Hadamard of many orders, random, cosine, and products.

Orders: 2^k (Sylvester), q + 1 for a prime q = 3 mod 4 (Paley I), 2 (q + 1) for a prime q = 1 mod 4 (Paley
II), and those times 2^k. 576 = 36 * 16 and 1536 = 12 * 128 are among them; 9 is not, there an orthogonal
matrix stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dse.errors import ConfigError

_CPU = torch.device("cpu")  # where matrices are built; what they are applied to says where they are needed


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix kron(left, right) of size a b, applied without being built.

    Attributes:
        left: (a, a); right: (b, b), float64, orthogonal.
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return len(self.left) * len(self.right)

    def matrix(self) -> Tensor:
        """Return the matrix M (size, size) float64."""
        return torch.kron(self.left, self.right)

    def apply(self, x: Tensor) -> Tensor:
        """Return x M for row vectors x (..., size), in the dtype of x."""
        a, b = len(self.left), len(self.right)
        left, right = self.left.to(x), self.right.to(x)
        y = x.reshape(*x.shape[:-1], a, b)
        if b > 1:
            y = y @ right
        if a > 1:
            y = left.t() @ y
        return y.reshape(x.shape)

    def apply_exact(self, x: Tensor) -> Tensor:
        """Return x M computed in float64, in the dtype of x."""
        return self.apply(x.double()).to(x.dtype)


@lru_cache(maxsize=16)
def hadamard_rotation(n: int) -> Rotation:
    """Return the normalised Hadamard rotation of order n.

    Raises:
        ConfigError: no construction here has that order.
    """
    power = 1
    while True:
        odd = n // power
        base = _paley(odd)
        if base is not None:
            return Rotation(base / odd**0.5, _sylvester(power) / power**0.5)
        if odd % 2 or odd < 2:
            raise ConfigError(f"no Hadamard matrix of order {n} is known here", value=str(n))
        power *= 2


def randomised(rotation: Rotation, seed: int) -> Tensor:
    """Return diag(+-1) M (size, size) float64, as QuaRot randomises its rotation (arXiv 2404.00456)."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], rotation.size)
    return torch.as_tensor(signs, device=_CPU)[:, None] * rotation.matrix()


def random_orthogonal(n: int, seed: int) -> Tensor:
    """Return a random orthogonal matrix (n, n) float64 (QR of a Gaussian, signs fixed)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return torch.as_tensor(q * np.sign(np.diag(r)), device=_CPU)


def cosine(n: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (n, n) float64, which also spreads every coordinate over all."""
    from scipy.fft import dct

    return torch.as_tensor(dct(np.eye(n), norm="ortho", axis=0), device=_CPU)


def pca_basis(moments: Tensor) -> Tensor:
    """Return eigenvectors of second moments (n, n) as columns, by rising eigenvalue; float64."""
    return torch.linalg.eigh(moments.double()).eigenvectors


def permutation_matrix(order: Tensor) -> Tensor:
    """Return P (n, n) float64 so that x P takes the channels of x in ``order``."""
    return torch.eye(len(order), dtype=torch.float64, device=order.device)[:, order]


def _sylvester(n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64, device=_CPU)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device=_CPU)
    while len(matrix) < n:
        matrix = torch.kron(matrix, two)
    return matrix


def _paley(n: int) -> Tensor | None:
    """Return a Hadamard matrix of order n by one Paley construction, [[1]] for 1, or None."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64, device=_CPU)
    if _is_prime(n - 1) and (n - 1) % 4 == 3:
        skew = _bordered(n - 1, sign=-1.0)
        return skew + torch.eye(n, dtype=torch.float64, device=_CPU)
    q = n // 2 - 1
    if n % 2 == 0 and _is_prime(q) and q % 4 == 1:
        conference = _bordered(q, sign=1.0)
        one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device=_CPU)
        other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64, device=_CPU)
        identity = torch.eye(q + 1, dtype=torch.float64, device=_CPU)
        return torch.kron(conference, one) + torch.kron(identity, other)
    return None


def _bordered(q: int, sign: float) -> Tensor:
    """Return the Jacobsthal matrix of GF(q) with a border of ones, (q + 1, q + 1)."""
    squares = {(i * i) % q for i in range(1, q)}
    character = [0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)]
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64, device=_CPU)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = sign
    for i in range(q):
        for j in range(q):
            matrix[1 + i, 1 + j] = character[(i - j) % q]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
