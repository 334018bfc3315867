"""From the whole module to the one that is traced: equal layers kept once.

Nothing here knows a model family. The list of transformer blocks is the module list as long as the
configuration says the model is deep; two layers are equal when their submodules have the same classes, the
same sizes and switches, the same parameter shapes, and the cache treats them alike.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dse.errors import ConfigError
from dse.graph.fit import DECODER, ENCODER, VISION
from dse.graph.kernels import EXPERTS_NAME, replace_dense_experts
from dse.graph.module import attends_both_ways, build_module
from dse.graph.recording_cache import UNBOUNDED
from dse.graph.skeleton import Skeleton, Stack
from dse.graph.source import ModelSource

LAYER_KINDS = ("layer_types", "layers_block_type")
DEFAULT_SOURCE_TOKENS = 512  # the length that T5 was trained with (arXiv 1910.10683, section 3.1.2)
INDEX_ATTRIBUTES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})


def build_skeleton(source: ModelSource) -> Skeleton:
    """Build the full module, find its equal layers and keep one of each.

    Raises:
        ConfigError: the module has no list of transformer blocks, or a cache of an unknown kind.
    """
    model = build_module(source)
    _use_traced_experts(model)
    if model.config.is_encoder_decoder:
        return _with_both_stacks(model, source)
    if {"text_config", "vision_config"} <= vars(model.config).keys() and attends_both_ways(model):
        raise ConfigError(
            f"'{model.config.model_type}' joins a text and a vision model: trace one of the two "
            "(its text_config or vision_config as a configuration of its own)",
            file=source.name,
            path="model_type",
            value=model.config.model_type,
        )
    encoder = attends_both_ways(model)
    probe = DECODER if not encoder else ENCODER if model.main_input_name == "input_ids" else VISION
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = model.config.get_text_config()
    path, layers = _find_layers(model, config.num_hidden_layers, source.name)
    kept_in: list[tuple[type[Any], int | None]] = [(DynamicLayer, None)] * len(layers)
    if not encoder:
        kept_in = _cache_layers(config, source.name)
    stack, originals = _fold(model, path, layers, kept_in)
    return Skeleton(
        model=model,
        stacks=(stack,),
        parameters=parameters,
        cache_argument=None if encoder else _cache_argument(model, source.name),
        cache_kinds=() if encoder else tuple(UNBOUNDED[kept_in[index][0]] for index in originals),
        probe=probe,
    )


def _with_both_stacks(model: nn.Module, source: ModelSource) -> Skeleton:
    """Keep one layer of each kind of the encoder, which runs once for a request, and of the decoder."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = {id(module): name for name, module in model.named_modules()}
    halves: tuple[Any, Any] = (model.get_encoder(), model.get_decoder())
    stacks = []
    for half in halves:
        inside, layers = _find_layers(half, _depth(half), source.name)
        path = f"{names[id(half)]}.{inside}"
        stacks.append(_fold(model, path, layers, [(DynamicLayer, None)] * len(layers))[0])
    length = source.source_tokens or getattr(model.config, "n_positions", None) or DEFAULT_SOURCE_TOKENS
    return Skeleton(
        model=model,
        stacks=tuple(stacks),
        parameters=parameters,
        cache_argument=_cache_argument(model, source.name),
        cache_kinds=(DynamicLayer,) * len(stacks[1].kind_of),
        probe=DECODER,
        source_tokens=int(length),
        encoder=names[id(halves[0])],
    )


def _depth(stack: nn.Module) -> int:
    """Return the length of the first list of modules, which holds the layers."""
    return next((len(m) for m in stack.modules() if isinstance(m, nn.ModuleList)), 0)


def _fold(
    model: nn.Module, path: str, layers: nn.ModuleList, kept_in: list[tuple[type[Any], int | None]]
) -> tuple[Stack, list[int]]:
    """Keep one layer of each kind and a second of the first kind; return the stack and the layers kept."""
    kinds: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        kinds.setdefault((_signature(layer), kept_in[index]), []).append(index)
    members = tuple(tuple(indices) for indices in kinds.values())
    originals = [indices[0] for indices in members]
    kept = [layers[index] for index in originals]
    if len(layers) > 1:
        originals.append(originals[0])
        kept.append(copy.deepcopy(kept[0]))
    _keep(model, path, kept, originals)
    windows = tuple(kept_in[indices[0]][1] for indices in members)
    return Stack(f"{path}.{{layer}}", members, windows), originals


def _use_traced_experts(model: nn.Module) -> None:
    """Let every mixture of experts run as grouped products of the chosen experts."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = EXPERTS_NAME  # noqa: SLF001  (its only switch)
    replace_dense_experts(model)


def _find_layers(model: nn.Module, depth: int, name: str) -> tuple[str, nn.ModuleList]:
    """Return the path of the transformer blocks and the blocks: the largest list of the right length."""
    found = [
        (sum(parameter.numel() for parameter in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not found:
        raise ConfigError(f"no list of {depth} transformer blocks found in the module", file=name)
    _, path, layers = max(found, key=lambda entry: entry[0])
    return path, layers


def _cache_layers(config: Any, name: str) -> list[tuple[type[Any], int | None]]:
    """Return class and sliding window of each layer of the cache that transformers builds for the model."""
    layers = list(DynamicCache(config=config).layers)
    found: list[tuple[type[Any], int | None]] = []
    for index in range(config.num_hidden_layers):
        layer = layers[index] if index < len(layers) else DynamicLayer()
        if type(layer) not in UNBOUNDED:
            raise ConfigError(
                f"layer {index} keeps a {type(layer).__name__}, for which there is no cost rule", file=name
            )
        window = getattr(layer, "sliding_window", None)
        found.append((type(layer), None if window is None else int(window)))
    return found


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what two equal layers share: classes, sizes, switches and parameter shapes of all submodules."""
    return tuple(
        (
            path,
            type(module).__qualname__,
            tuple(sorted((k, repr(v)) for k, v in vars(module).items() if _is_switch(k, v))),
            tuple((k, tuple(v.shape), str(v.dtype)) for k, v in module.named_parameters(recurse=False)),
        )
        for path, module in layer.named_modules()
    )


def _is_switch(name: str, value: Any) -> bool:
    """Whether an attribute can change what a layer computes; real numbers only change values."""
    if name.startswith("_") or name in INDEX_ATTRIBUTES:
        return False
    if isinstance(value, tuple | list):
        return all(isinstance(item, int | str) for item in value)
    return value is None or isinstance(value, bool | int | str)


def _keep(model: nn.Module, path: str, layers: list[nn.Module], original: list[int]) -> None:
    """Leave only ``layers`` in the module, renumbered; ``original`` are their indices in the full model."""
    parent_path, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent_path), attribute, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name in INDEX_ATTRIBUTES & vars(module).keys():
                setattr(module, name, index)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        text = config.get_text_config()
        kinds = {name: _fewer(getattr(text, name, None), original) for name in LAYER_KINDS}
        known = {name: kind for name, kind in kinds.items() if kind is not None}
        # Some families derive the kinds from periods; a subclass with plain attributes shadows that.
        text.__class__ = type(type(text).__name__, (type(text),), known)
        for name, kind in known.items():
            setattr(text, name, kind)
        text.num_hidden_layers = len(layers)


def _fewer(kinds: Any, original: list[int]) -> list[Any] | None:
    return None if kinds is None else [kinds[index] for index in original]


def _cache_argument(model: nn.Module, name: str) -> str:
    known = inspect.signature(model.forward).parameters
    for argument in ("cache", "past_key_values", "cache_params"):
        if argument in known:
            return argument
    raise ConfigError(f"{type(model).__name__} takes no cache, so its decode cannot be traced", file=name)
