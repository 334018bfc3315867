"""What a device's main memory holds while it serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in a device's main memory.

    Attributes:
        weights: stored parameters with scales and zero points.
        kv: cache of all sequences: keys and values at full length, and recurrent states.
        activations: peak of live activations.
        reserve: what the runtime takes for itself.
    """

    weights: float = 0.0
    kv: float = 0.0
    activations: float = 0.0
    reserve: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.kv + self.activations + self.reserve

    def missing_bytes(self, capacity_bytes: float) -> float:
        """Return by how much it exceeds the capacity, 0 where it fits."""
        return max(0.0, self.total - capacity_bytes)

    def to_json(self) -> dict[str, float]:
        """Return the parts and their total."""
        return {
            "weights": self.weights,
            "kv": self.kv,
            "activations": self.activations,
            "reserve": self.reserve,
            "total": self.total,
        }


def kv_cache_bytes(n_sequences: float, n_tokens: float, kv_bytes_per_token: float) -> float:
    """Return the cache size of equal sequences; ``kv_bytes_per_token`` sums keys and values of all layers."""
    return n_sequences * n_tokens * kv_bytes_per_token
