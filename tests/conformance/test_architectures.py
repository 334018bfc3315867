"""Every architecture that is served: its graph against a real run of a small model on the CPU, in float32.

Oracles: the module's own parameters, torch.utils.flop_counter around the run (all layers, eager attention
with masks, the loop over experts), the tensors in the cache that transformers builds, and the storages that
the run allocates. The counter's blind spots have closed forms here: state-space mixers, and Llama 4, which
transformers runs with every expert on every token.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any, Self

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from dse.graph.kernels import REPLACED
from dse.graph.liveness import live_profile, peak_activation_bytes
from dse.graph.module import build_config
from dse.graph.operator import OperatorGraph
from dse.graph.source import ModelSource
from dse.graph.trace import trace_model
from tests.small_models import ARCHITECTURES, DECODERS, ENCODERS, NEAR_TWINS, VISION

# (batch, query, context): whole prefills, decode steps, and a chunk of a prefill.
POINTS = [(1, 6, 6), (2, 33, 33), (3, 1, 20), (4, 1, 47), (2, 5, 31)]
OWN_ATTENTION = {"bloom", "bloom-odd-heads", "falcon-7b", "falcon-40b", "falcon-rw", "gpt-oss"}
EAGER = "eager_attention_forward"
UNFUSED = {"deepseek-v2", "gemma-2"}  # torch fuses no attention of unequal widths or with capped scores
# transformers runs every expert of Llama 4 on every token, so its peak is compared where all are chosen.
UNLIKE = {"llama-4"}
MIXERS = {"mamba", "mamba-2", "jamba", "falcon-h1", "bamba", "granite-hybrid"}
NO_FUSED_ATTENTION = {"mamba", "mamba-2"}  # they have none


def quick_first(names: Iterable[str]) -> list[Any]:
    """Mark near twins slow."""
    return [pytest.param(n, marks=pytest.mark.slow if n in NEAR_TWINS else ()) for n in names]


@cache
def graph_of(name: str) -> OperatorGraph:
    return trace_model(ModelSource(name, ARCHITECTURES[name]))


@cache
def real_model(name: str, attention: str = "eager", experts: str = "eager") -> Any:
    torch.manual_seed(0)
    builder = AutoModelForCausalLM if name in DECODERS else AutoModel
    config = build_config(ModelSource(name, ARCHITECTURES[name]))
    # The loop over experts is what the counter sees; grouped products are what a peak is measured with.
    settings = {"experts_implementation": experts} if is_routed(name) else {}
    return builder.from_config(config, dtype=torch.float32, attn_implementation=attention, **settings).eval()


def cached_tensors(held: Any) -> list[torch.Tensor]:
    """Return keys, values and states of all layers of a cache."""
    tensors: list[Any] = []
    for layer in held.layers:
        tensors += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        tensors += [
            *getattr(layer, "conv_states", {}).values(),
            *getattr(layer, "recurrent_states", {}).values(),
        ]
    return [tensor for tensor in tensors if tensor is not None]


def is_routed(name: str) -> bool:
    """Whether transformers has an interface for the experts of this architecture."""
    return "num_experts_per_tok" in ARCHITECTURES[name] and not name.startswith("llama-4")


def run(name: str, point: tuple[int, int, int], counter: Any, model: Any = None) -> Any:
    """Run ``query`` tokens after ``context - query`` uncounted ones under ``counter``; return the cache."""
    model = real_model(name) if model is None else model
    batch, query, context = point
    if name in VISION:
        size = ARCHITECTURES[name]["image_size"]
        inputs, kept = {"pixel_values": torch.zeros(batch, 3, size, size)}, None
    elif name in ENCODERS:
        inputs, kept = {"input_ids": torch.ones(batch, query, dtype=torch.long)}, None
    else:
        kept = DynamicCache(config=model.config)
        inputs = {"input_ids": torch.ones(batch, query, dtype=torch.long), "use_cache": True}
        parameters = (
            model.forward.__wrapped__.__code__.co_varnames if hasattr(model.forward, "__wrapped__") else ()
        )
        inputs["cache_params" if "cache_params" in parameters else "cache"] = kept
    with torch.no_grad():
        if kept is not None and context > query:
            model(**{**inputs, "input_ids": torch.ones(batch, context - query, dtype=torch.long)})
        with counter:
            model(**inputs)
    return kept


def mixer_flop(mixer: nn.Module, batch: int, query: int) -> int:
    """Closed form of a state-space mixer: its matrices, a depthwise convolution, two products with the state.

    Mamba, arXiv 2312.00752, section 3; Mamba 2, arXiv 2405.21060, section 6.
    """
    tokens = batch * query
    matrices = sum(2 * m.in_features * m.out_features for m in mixer.modules() if isinstance(m, nn.Linear))
    convolution = 2 * mixer.conv1d.in_channels * mixer.conv1d.kernel_size[0]
    state = 4 * mixer.intermediate_size * mixer.ssm_state_size
    return tokens * (matrices + convolution + state)


def expected_flop(name: str, point: tuple[int, int, int]) -> int:
    batch, query, _ = point
    model = real_model(name)
    counter = FlopCounterMode(display=False, depth=None)
    run(name, point, counter)
    total = counter.get_total_flops()
    if name in MIXERS:
        counted = counter.get_flop_counts()
        for path, module in model.named_modules():
            if hasattr(module, "A_log"):
                seen = sum(counted[f"{type(model).__name__}.{path}"].values())
                total += mixer_flop(module, batch, query) - seen
    if name.startswith("llama-4"):
        top_k = ARCHITECTURES[name]["num_experts_per_tok"]
        for module in model.modules():
            if type(module).__name__ == "Llama4TextExperts":
                once = 2 * batch * query * (module.gate_up_proj[0].numel() + module.down_proj[0].numel())
                total -= (module.num_experts - top_k) * once
    return total


@pytest.mark.parametrize("name", quick_first(ARCHITECTURES))
def test_flop_equals_the_counters(name: str) -> None:
    points = POINTS if name in DECODERS else [(1, 6, 6), (2, 33, 33), (3, 12, 12), (4, 1, 1), (5, 20, 20)]
    graph = graph_of(name)
    assert {point: int(graph.at("flop", *point)) for point in points} == {
        point: expected_flop(name, point) for point in points
    }


@pytest.mark.parametrize("name", quick_first(ARCHITECTURES))
def test_every_parameter_has_one_operator(name: str) -> None:
    graph, model = graph_of(name), real_model(name)
    own = sum(parameter.numel() for parameter in model.parameters())
    assert graph.parameters == own
    assert sum(op.parameters * part.repeats for part in graph.parts for op in part.ops) == own


@pytest.mark.parametrize("name", quick_first(DECODERS))
@pytest.mark.parametrize("point", [(3, 4, 4), (2, 3, 40)])
def test_the_cache_holds_what_transformers_builds(name: str, point: tuple[int, int, int]) -> None:
    held = run(name, point, torch.no_grad())
    expected = sum(tensor.numel() for tensor in cached_tensors(held))
    assert graph_of(name).cache_elements(point[0], point[2]) == expected


class Allocations(TorchDispatchMode):
    """Bytes of the storages that exist during a run, without those of ``known`` tensors."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {self.key(tensor) for tensor in known}
        self.counting = False
        self.alive: dict[int, list[Any]] = {}
        self.log: list[list[Any]] = []
        self.time = 0

    @staticmethod
    def key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.counting:
            self.note(result)
        return result

    def __enter__(self) -> Self:
        self.counting = True
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.counting = False

    def note(self, result: Any) -> None:
        self.time += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                key = self.key(tensor)
                if key not in self.known and key not in self.alive:
                    self.alive[key] = [self.time, None, tensor.untyped_storage().nbytes()]
                    self.log.append(self.alive[key])
                    weakref.finalize(tensor.untyped_storage(), self.free, key)

    def fused(self, function: Any) -> Any:
        """Return a function of which only the results count, as of one kernel that allocates nothing else."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            counting, self.counting = self.counting, False
            try:
                result = function(*args, **kwargs)
                result = tree_map_only(torch.Tensor, torch.clone, result)  # a slice keeps the whole
            finally:
                self.counting = counting
            if counting:
                self.note(result)
            return result

        return kernel

    def free(self, key: int) -> None:
        entry = self.alive.pop(key, None)
        if entry is not None:
            entry[1] = self.time

    def peak(self, kept: list[torch.Tensor]) -> int:
        """Return the highest sum; ``kept`` are tensors of the cache."""
        cached = [self.alive[self.key(t)] for t in kept if self.key(t) in self.alive]
        counted = [entry for entry in self.log if not any(entry is other for other in cached)]
        return max(
            sum(size for start, stop, size in counted if start <= now and (stop is None or stop >= now))
            for now in range(1, self.time + 1)
        )


@pytest.mark.parametrize("name", quick_first(sorted(ARCHITECTURES.keys() - UNLIKE)))
@pytest.mark.parametrize("point", [(2, 6, 6), (3, 1, 9)])
def test_the_activation_peak_is_that_of_a_real_run(
    name: str, point: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that torch does not fuse is the module's own, of which the result alone counts.

    So it is with convolutions and scans: transformers' stand-ins for their kernels pad to whole chunks and
    hold all scores inside them, per head, and a scan's discretised inputs per state element, which kernels
    keep in registers (Mamba, arXiv 2312.00752, section 3.3.2). The state that a scan hands over counts.
    """
    if name not in DECODERS and point[1] != point[2]:
        pytest.skip("encoders have no cache")
    eager = name in OWN_ATTENTION | UNFUSED | NO_FUSED_ATTENTION
    model = real_model(name, "eager" if eager else "sdpa", "grouped_mm")
    allocations = Allocations([*model.parameters(), *model.buffers()])
    kernels = (EAGER,) if name in UNFUSED else tuple(REPLACED) if name in MIXERS else ()
    for file in {type(module).__module__ for module in model.modules()}:
        for kernel in kernels:
            if hasattr(sys.modules[file], kernel):
                fused = allocations.fused(getattr(sys.modules[file], kernel))
                monkeypatch.setattr(sys.modules[file], kernel, fused)
    held = run(name, point, allocations, model)
    kept = [] if held is None else cached_tensors(held)
    measured = allocations.peak(kept)
    assert float(peak_activation_bytes(graph_of(name), *point, 4)) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("name", quick_first(sorted(MIXERS)))
def test_the_activation_peak_of_a_scan_over_several_chunks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_the_activation_peak_is_that_of_a_real_run(name, (2, 33, 33), monkeypatch)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma-2", "deepseek-v3", "bert"])
def test_freeing_after_the_last_use_never_needs_more(name: str) -> None:
    """Data flow is a lower bound of what the module holds. Shapes broadcast."""
    graph = graph_of(name)
    batch, query = torch.arange(1, 5).numpy()[:, None], torch.arange(4, 40, 9).numpy()
    steps = live_profile(graph, batch, query, query)
    held = peak_activation_bytes(graph, batch, query, query, 1)
    assert all((step.elements <= held * 1.01 + 2 * query).all() for step in steps)
