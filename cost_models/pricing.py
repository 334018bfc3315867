"""From physical work to its cost on a device: one formula per class of kernel, kept in a registry."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cost_models import attention
from cost_models.energy import dynamic_energy_j
from cost_models.matmul import matmul_times
from cost_models.roofline import KernelTimes, roofline, vector_rate_flop_per_s
from cost_models.tables import bit_plane_times, lookup_times, sparse_times
from cost_models.work import Floats, OpCost, Provenance, Work
from dse.errors import UnsupportedOnDevice
from dse.registry import Registry
from hardware_specs.kernels import KernelProfile
from hardware_specs.spec import HardwareSpec


class KernelModel(Protocol):
    """A formula from work to time; ``rate`` in flop/s, ``bandwidth`` in bytes/s."""

    def __call__(
        self, work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
    ) -> KernelTimes:
        """Return the times, with the broadcast shape of the work."""
        ...


KERNEL_MODELS: Registry[KernelModel] = Registry("kernel model")


KERNEL_MODELS.register("matmul")(matmul_times)
KERNEL_MODELS.register("matmul_lookup")(lookup_times)
KERNEL_MODELS.register("matmul_bit_plane")(bit_plane_times)
KERNEL_MODELS.register("sparse")(sparse_times)


@KERNEL_MODELS.register("elementwise")
def elementwise_times(
    work: Work, spec: HardwareSpec, profile: KernelProfile, rate: float, bandwidth: float
) -> KernelTimes:
    """Smooth roofline with the vector units' fp32 rate, where it is published; else memory alone."""
    vector_rate = vector_rate_flop_per_s(spec)
    flop: Floats = work.vector_flop if vector_rate is not None else np.zeros_like(work.vector_flop)
    moved = work.read_bytes + work.write_bytes
    return roofline(flop, moved, vector_rate or rate, bandwidth, profile, work.n_launches)


KERNEL_MODELS.register("attention_prefill")(attention.prefill_times)
KERNEL_MODELS.register("attention_decode")(attention.decode_times)


def main_bandwidth_bytes_per_s(spec: HardwareSpec) -> float:
    """Return the bandwidth of the main memory.

    Raises:
        UnsupportedOnDevice: it was never published, so nothing can be timed.
    """
    bandwidth = spec.main_memory.bandwidth_bytes_per_s
    if bandwidth is None:
        raise UnsupportedOnDevice(
            spec.name, "memory bandwidth", known=[], reason="the main memory's bandwidth is not published"
        )
    return bandwidth


def price(work: Work, spec: HardwareSpec) -> OpCost:
    """Return time and dynamic energy of work on a device, with the broadcast shape of the work.

    Raises:
        UnsupportedOnDevice: the compute kind has no path or no published rate.
        ConfigError: unknown kernel class or profile.
    """
    profile = spec.kernel(work.profile)
    model = KERNEL_MODELS.get(work.kernel)
    times = model(work, spec, profile, spec.rate_flop_per_s(work.compute), main_bandwidth_bytes_per_s(spec))
    return OpCost(
        time_s=times.time_s,
        energy_j=dynamic_energy_j(work, spec, times.time_s),
        compute_time_s=times.compute_time_s,
        memory_time_s=times.memory_time_s,
        provenance=profile.provenance,
        interval=profile.interval,
    )


def join_provenance(first: Provenance, second: Provenance) -> Provenance:
    """Return the provenance of a sum: that of its parts, "mixed" where they differ."""
    return first if first == second else "mixed"


def bound_by(time_s: float, compute_time_s: float, memory_time_s: float) -> str:
    """Return what takes most of a time: "compute", "memory" or "launch" (floors and other overheads)."""
    overhead_s = time_s - max(compute_time_s, memory_time_s)
    if overhead_s > max(compute_time_s, memory_time_s):
        return "launch"
    return "compute" if compute_time_s >= memory_time_s else "memory"
