"""Small hand-made devices, clusters and models. Their numbers are round and belong to no product."""

from __future__ import annotations

from dse.graph.extent import Extent
from dse.graph.operator import Attention, Block, Op, OperatorGraph
from hardware_specs.kernels import KERNEL_NAMES, KernelProfile
from hardware_specs.spec import Cluster, ClusterNode, ComputePath, HardwareSpec, Link, MemoryTier, Power

PROFILE_OF = {
    "matmul": "gemm",
    "matmul_lookup": "gemm_weight_only",
    "matmul_bit_plane": "gemm_weight_only",
    "sparse": "elementwise",
}
"""Kernel profile of the classes of kernels that have no profile of their own name."""


def make_profile(
    name: str = "gemm",
    flop_eff: float = 1.0,
    byte_eff: float = 1.0,
    floor_s: float = 0.0,
    exponent: float = 2.0,
) -> KernelProfile:
    """A kernel profile, perfect unless said otherwise."""
    return KernelProfile(name, flop_eff, byte_eff, floor_s, exponent, "analytic", "made up for tests")


def make_spec(
    name: str = "toy",
    *,
    native: dict[str, float] | None = None,
    emulated: dict[str, str] | None = None,
    unsupported: dict[str, str] | None = None,
    bandwidth: float = 1e12,
    capacity: float = 16e9,
    tdp_w: float | None = 300.0,
    static_w: float | None = 50.0,
    j_per_flop: float | None = 1e-12,
    j_per_bit: float | None = 10e-12,
    floor_s: float = 2e-6,
    exponent: float = 2.0,
    profiles: tuple[KernelProfile, ...] = (),
    n_cores: int | None = 100,
    clock_hz: float | None = 1.5e9,
    device_class: str = "datacenter_gpu",
    reserve: float = 1e9,
    price: float | None = 1.0,
    weight_only_bits: tuple[int, ...] = (3, 4, 8),
) -> HardwareSpec:
    """A device with round numbers: 100 Tflop/s bf16, 1 TB/s, 16 GB."""
    rates = native if native is not None else {"bf16": 100e12, "fp16": 100e12, "int8": 200e12, "fp32": 10e12}
    compute = [ComputePath(kind, "native", rate) for kind, rate in rates.items()]
    compute += [ComputePath(kind, "emulated", None, as_) for kind, as_ in (emulated or {}).items()]
    compute += [
        ComputePath(kind, "unsupported", reason=reason) for kind, reason in (unsupported or {}).items()
    ]
    given = {profile.name: profile for profile in profiles}
    kernels = tuple(
        given.get(kernel, make_profile(kernel, 0.8, 0.8, floor_s, exponent)) for kernel in KERNEL_NAMES
    )
    energy = {} if j_per_flop is None else dict.fromkeys(rates, j_per_flop)
    return HardwareSpec(
        name=name,
        vendor="nobody",
        device_class=device_class,  # type: ignore[arg-type]
        description="made up for tests",
        compute=tuple(compute),
        memory=(MemoryTier("main", "HBM", capacity, bandwidth, None, main=True),),
        links=(),
        power=Power(tdp_w, static_w, energy, j_per_bit),
        kernels=kernels,
        n_cores=n_cores,
        clock_hz=clock_hz,
        reserve_bytes=reserve,
        price_usd_per_h=price,
        weight_only_bits=weight_only_bits,
    )


def make_cluster(specs: dict[str, HardwareSpec], counts: dict[str, int] | None = None) -> Cluster:
    """One node per device type, ``counts`` devices each, joined inside at 100 GB/s and outside at 1 GB/s."""
    sizes = counts or dict.fromkeys(specs, 1)
    nodes = tuple(
        ClusterNode(f"n_{kind}", kind, sizes[kind], Link("intra", "scale_up", 100e9, 2e-6, 5e-12))
        for kind in specs
    )
    return Cluster("toys", "made up", nodes, Link("net", "scale_out", 1e9, 50e-6, 20e-12), dict(specs))


def tokens(width: float) -> Extent:
    """batch x query x width elements."""
    return Extent.of({(1, 1, 0): width})


def _linear(name: str, outputs: int, inputs: int) -> Op:
    return Op(
        name,
        "linear",
        parameters=outputs * inputs,
        weight_shape=(outputs, inputs),
        flop=tokens(2 * outputs * inputs),
        read_elements=tokens(inputs),
        write_elements=tokens(outputs),
    )


def _elementwise(name: str, kind: str, width: int, n_inputs: int = 1, parameters: int = 0) -> Op:
    return Op(
        name,
        kind,  # type: ignore[arg-type]
        parameters=parameters,
        vector_flop=tokens(4 * width),
        read_elements=tokens(n_inputs * width),
        write_elements=tokens(width),
    )


def make_graph(
    n_layers: int = 4,
    hidden: int = 512,
    ffn: int = 1024,
    n_heads: int = 8,
    n_kv_heads: int = 4,
    vocab: int = 2000,
    window: int | None = None,
    tied: bool = False,
) -> OperatorGraph:
    """A toy decoder: grouped attention, gated feed-forward, one block template."""
    head_dim = hidden // n_heads
    kv_width = n_kv_heads * head_dim
    block = Block(
        "layers.{layer}",
        tuple(range(n_layers)),
        (
            _elementwise("input_norm", "norm", hidden, parameters=hidden),
            _linear("attn.q_proj", hidden, hidden),
            _linear("attn.k_proj", kv_width, hidden),
            _linear("attn.v_proj", kv_width, hidden),
            _elementwise("attn.rope", "rope", hidden + kv_width),
            Op(
                "attn.core",
                "attention",
                flop=Extent.of({(1, 1, 1): 4 * hidden}),
                vector_flop=Extent.of({(1, 1, 1): 5 * n_heads}),
                read_elements=tokens(hidden),
                write_elements=tokens(hidden),
                kv_read_elements=Extent.of({(1, 0, 1): 2 * kv_width}),
                kv_write_elements=tokens(2 * kv_width),
                attention=Attention(n_heads, n_kv_heads, head_dim, window),
            ),
            _linear("attn.o_proj", hidden, hidden),
            _elementwise("add", "elementwise", hidden, 2),
            _elementwise("post_norm", "norm", hidden, parameters=hidden),
            _linear("mlp.gate_proj", ffn, hidden),
            _linear("mlp.up_proj", ffn, hidden),
            _elementwise("mlp.act", "activation", ffn, 2),
            _linear("mlp.down_proj", hidden, ffn),
            _elementwise("add_1", "elementwise", hidden, 2),
        ),
    )
    embedding = Op(
        "embed_tokens",
        "embedding",
        parameters=vocab * hidden,
        weight_shape=(vocab, hidden),
        read_elements=tokens(1),
        write_elements=tokens(hidden),
    )
    head = Op(
        "lm_head",
        "linear",
        parameters=0 if tied else vocab * hidden,
        weight_shape=(vocab, hidden),
        flop=tokens(2 * vocab * hidden),
        read_elements=tokens(hidden),
        write_elements=tokens(vocab),
        tied_to="embed_tokens" if tied else None,
    )
    norm = _elementwise("norm", "norm", hidden, parameters=hidden)
    parts = (Block("", (), (embedding,)), block, Block("", (), (norm, head)))
    parameters = sum(op.parameters * part.repeats for part in parts for op in part.ops)
    return OperatorGraph("toy", "0" * 16, parts[0], (block,), parts[2], hidden, vocab, parameters)
