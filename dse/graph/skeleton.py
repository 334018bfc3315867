"""The module to trace: built on the meta device from its configuration, equal layers kept once.

Nothing here knows a model family. The list of transformer blocks is the module list as long as the
configuration says the model is deep; two layers are equal when their submodules have the same classes, the
same sizes and switches, the same parameter shapes, and the cache treats them alike.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, DynamicCache, initialization
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from dse.errors import ConfigError
from dse.graph.source import ModelSource

ATTENTION_NAME = "dse_traced_attention"
INDEX_ATTRIBUTES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})


@dataclass(frozen=True)
class Skeleton:
    """A model with one layer of each kind.

    Attributes:
        model: the reduced module, on the meta device in bfloat16. After one layer of each kind it has a
            second one of the first kind, which reads what a layer before it made; where the model has one
            layer only, it has not.
        prefix: module path of its layers, with ``{layer}`` for the index.
        kinds: for each kind, its layers in the full model.
        windows: for each kind, its sliding window or None.
        parameters: elements of all parameters of the full model, shared ones once.
        cache_argument: name of the forward argument that takes the key-value cache.
    """

    model: nn.Module
    prefix: str
    kinds: tuple[tuple[int, ...], ...]
    windows: tuple[int | None, ...]
    parameters: int
    cache_argument: str

    @property
    def kind_of(self) -> tuple[int, ...]:
        """Kind of each layer of the reduced module."""
        once = tuple(range(len(self.kinds)))
        return once if self.kinds == ((0,),) else (*once, 0)

    def original_prefix(self, layer: int) -> str:
        """Return the module path, in the full model, of the first layer that equals one of the reduced."""
        return self.prefix.format(layer=self.kinds[self.kind_of[layer]][0])

    @property
    def template_of(self) -> tuple[int, ...]:
        """For each kind, the layer of the reduced module that stands for it."""
        last = {kind: layer for layer, kind in enumerate(self.kind_of)}
        return tuple(last[kind] for kind in range(len(self.kinds)))

    @property
    def config(self) -> Any:
        """The text configuration of the reduced module."""
        return self.model.config.get_text_config()


def build_config(source: ModelSource) -> Any:
    """Return the transformers configuration object of a source.

    Raises:
        ConfigError: unknown ``model_type``, an encoder, or values that the family does not allow.
    """
    keywords = {k: v for k, v in source.config.items() if k != "model_type"}
    model_type = source.config["model_type"]
    try:
        with _quiet():
            config = AutoConfig.for_model(model_type, **copy.deepcopy(keywords))
    except Exception as error:
        if model_type not in CONFIG_MAPPING:
            text = f"architecture '{model_type}' is not known to transformers"
        else:
            text = f"not a valid {model_type} configuration: {one_line(error)}"
        raise ConfigError(text, file=source.name) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"'{model_type}' is an encoder-decoder; only decoders are traced", file=source.name)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' remarks on configurations, which are meant for people who train."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def build_module(source: ModelSource, *, attention: str = ATTENTION_NAME) -> nn.Module:
    """Return the causal language model on the meta device in bfloat16, without weights.

    Args:
        source: where the configuration comes from.
        attention: name of transformers' attention implementation; the default is the traced one.
    """
    AttentionInterface.register(ATTENTION_NAME, grouped_attention)
    config = build_config(source)
    try:
        with _quiet(), torch.device("meta"), initialization.no_init_weights():
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention
            )
    except Exception as error:
        if isinstance(error, KeyError) and attention == ATTENTION_NAME:
            return build_module(source, attention="eager")  # a family that has its own attention classes
        raise ConfigError(
            f"'{config.model_type}' does not build as a causal language model: {one_line(error)}",
            file=source.name,
        ) from error
    model.eval()
    model.tie_weights()
    return model


def build_skeleton(source: ModelSource) -> Skeleton:
    """Build the full module, find its equal layers and keep one of each.

    Raises:
        ConfigError: the module has no list of transformer blocks or no usable key-value cache.
    """
    model = build_module(source)
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ConfigError(
            f"'{source.config['model_type']}' attends in both directions; only decoders are traced",
            file=source.name,
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = model.config.get_text_config()
    path, layers = _find_layers(model, config.num_hidden_layers, source.name)
    windows = _windows(config, source.name)
    kinds: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        kinds.setdefault((_signature(layer), windows[index]), []).append(index)
    members = tuple(tuple(indices) for indices in kinds.values())
    originals = [indices[0] for indices in members]
    kept = [layers[index] for index in originals]
    if len(layers) > 1:
        originals.append(originals[0])
        kept.append(copy.deepcopy(kept[0]))
    _keep(model, path, kept, originals)
    return Skeleton(
        model=model,
        prefix=f"{path}.{{layer}}",
        kinds=members,
        windows=tuple(windows[indices[0]] for indices in members),
        parameters=parameters,
        cache_argument=_cache_argument(model, source.name),
    )


def grouped_attention(
    module: nn.Module,  # noqa: ARG001  (transformers' attention interface)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    softcap: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax(q kT / sqrt(d)) v with full products and no mask, as transformers' attention interface asks.

    Args:
        module: the calling attention module.
        query: (batch, heads, query length, width).
        key, value: (batch, key-value heads, context, width).
        attention_mask: ignored; sizes do not depend on it.
        scaling: factor of the scores, 1 / sqrt(width) by default.
        softcap: bound s of the scores, s tanh(x / s) (Gemma 2, arXiv 2408.00118, section 2).
        settings: other settings that families pass; those that add work are refused.

    Returns:
        (batch, query length, heads, width) and no attention weights.
    """
    for name in ("position_bias", "s_aux"):
        if settings.get(name) is not None:
            raise NotImplementedError(f"operator 'attention' has '{name}', for which there is no cost rule")
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * length, width)
    scores = torch.matmul(rows, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    context = torch.matmul(torch.softmax(scores, dim=-1), value)
    return context.reshape(batch, heads, length, value.shape[-1]).transpose(1, 2), None


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error's text on one line of at most ``limit`` characters, or the name of its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


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


def _windows(config: Any, name: str) -> list[int | None]:
    """Return each layer's sliding window, as the cache that transformers builds for the model has it."""
    layers = list(DynamicCache(config=config).layers)
    windows: list[int | None] = []
    for index in range(config.num_hidden_layers):
        kind = type(layers[index]) if index < len(layers) else DynamicLayer
        if kind is DynamicSlidingWindowLayer:
            windows.append(int(layers[index].sliding_window))
        elif kind is DynamicLayer:
            windows.append(None)
        else:
            raise ConfigError(
                f"layer {index} keeps a {kind.__name__}; only plain and sliding attention can be traced",
                file=name,
            )
    return windows


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
        layer_types = getattr(text, "layer_types", None)
        if layer_types is not None:
            text.layer_types = [layer_types[index] for index in original]
        text.num_hidden_layers = len(layers)


def _cache_argument(model: nn.Module, name: str) -> str:
    known = inspect.signature(model.forward).parameters
    for argument in ("cache", "past_key_values"):
        if argument in known:
            return argument
    raise ConfigError(
        f"{type(model).__name__} takes no key-value cache, so its decode cannot be traced", file=name
    )
