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
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    initialization,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.moe import ExpertsInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from dse.errors import ConfigError
from dse.graph.check import check_given, check_values
from dse.graph.fit import DECODER, ENCODER, VISION, Probe
from dse.graph.kernels import (
    ATTENTION_NAME,
    EXPERTS_NAME,
    replace_dense_experts,
    routed_experts,
    traced_attention,
)
from dse.graph.recording_cache import UNBOUNDED, CacheLayout
from dse.graph.source import ModelSource

LAYER_KINDS = ("layer_types", "layers_block_type")
DEFAULT_SOURCE_TOKENS = 512  # the length that T5 was trained with (arXiv 1910.10683, section 3.1.2)
INDEX_ATTRIBUTES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})


@dataclass(frozen=True)
class Stack:
    """A list of transformer blocks of which one of each kind is kept, and a second one of the first kind.

    The second one reads what a layer before it made; where the model has one layer only, there is none.

    Attributes:
        prefix: module path of its layers, with ``{layer}`` for the index.
        kinds: for each kind, its layers in the full stack.
        windows: for each kind, its sliding window or None.
    """

    prefix: str
    kinds: tuple[tuple[int, ...], ...]
    windows: tuple[int | None, ...]

    @property
    def kind_of(self) -> tuple[int, ...]:
        """Kind of each kept layer."""
        once = tuple(range(len(self.kinds)))
        return once if self.kinds == ((0,),) else (*once, 0)

    @property
    def n_layers(self) -> int:
        """Layers of the full stack."""
        return sum(map(len, self.kinds))


@dataclass(frozen=True)
class Part:
    """A kept layer: its stack, its index among the layers kept there, and its kind."""

    stack: int
    index: int
    kind: int


@dataclass(frozen=True)
class Skeleton:
    """A model with one layer of each kind.

    Attributes:
        model: the reduced module, on the meta device in bfloat16.
        stacks: its lists of transformer blocks: encoder and decoder of an encoder-decoder, else one.
        parameters: elements of all parameters of the full model, shared ones once.
        cache_argument: name of the forward argument that takes the cache, None for encoders.
        cache_kinds: for each kept layer of the last stack, the class of its layer in the cache.
        layouts: for each kept layer of the last stack, what it keeps; known after a first pass.
        probe: sizes at which the module is run, and the polynomials that they determine.
        source_tokens: of an encoder-decoder, the length of the encoder's input, else None; ``encoder``: the
            module path of its encoder.
    """

    model: nn.Module
    stacks: tuple[Stack, ...]
    parameters: int
    cache_argument: str | None
    cache_kinds: tuple[type[Any], ...]
    probe: Probe
    layouts: tuple[CacheLayout, ...] = ()
    source_tokens: int | None = None
    encoder: str = ""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The kept layers of all stacks, in order; elsewhere a part is an index into these."""
        return tuple(
            Part(number, index, kind)
            for number, stack in enumerate(self.stacks)
            for index, kind in enumerate(stack.kind_of)
        )

    def prefix(self, part: int) -> str:
        """Return the module path of a kept layer."""
        place = self.parts[part]
        return self.stacks[place.stack].prefix.format(layer=place.index)

    def original_prefix(self, part: int) -> str:
        """Return the module path, in the full model, of the first layer that equals a kept one."""
        place = self.parts[part]
        stack = self.stacks[place.stack]
        return stack.prefix.format(layer=stack.kinds[place.kind][0])

    def window(self, part: int) -> int | None:
        """Return the sliding window of a kept layer."""
        place = self.parts[part]
        return self.stacks[place.stack].windows[place.kind]

    def layout(self, part: int) -> CacheLayout:
        """Return what a kept layer keeps in the cache."""
        place = self.parts[part]
        return self.layouts[place.index] if place.stack == len(self.stacks) - 1 else CacheLayout()

    def template(self, stack: int, kind: int) -> int:
        """Return the kept layer that stands for a kind: the last one of it, which reads a layer before it."""
        return max(i for i, part in enumerate(self.parts) if (part.stack, part.kind) == (stack, kind))

    @property
    def config(self) -> Any:
        """The text configuration of the reduced module."""
        return self.model.config.get_text_config()


def build_config(source: ModelSource) -> Any:
    """Return the transformers configuration object of a source.

    Raises:
        ConfigError: unknown ``model_type``, or values that the family does not allow.
    """
    keywords = {k: v for k, v in source.config.items() if k != "model_type"}
    model_type = source.config["model_type"]
    check_values(source.config, source.name)
    check_given(source.config, source.name)
    try:
        with _quiet():
            config = AutoConfig.for_model(model_type, **copy.deepcopy(keywords))
    except Exception as error:
        if model_type not in CONFIG_MAPPING:
            raise ConfigError(
                f"architecture '{model_type}' is not known to transformers",
                file=source.name,
                path="model_type",
                value=model_type,
                allowed=sorted(CONFIG_MAPPING),
            ) from error
        text = f"not a valid {model_type} configuration: {one_line(error)}"
        raise ConfigError(text, file=source.name) from error
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
    """Return the module on the meta device in bfloat16, without weights.

    A family of decoders gives its causal language model, an encoder-decoder its generating model. What
    attends in both directions, and what is no language model, gives the bare encoder without a head.

    Args:
        source: where the configuration comes from.
        attention: name of transformers' attention implementation; the default is the traced one.
    """
    AttentionInterface.register(ATTENTION_NAME, traced_attention)
    ExpertsInterface.register(EXPERTS_NAME, routed_experts)
    config = build_config(source)
    if getattr(config, "is_encoder_decoder", False):
        model = _instantiate(AutoModelForSeq2SeqLM, config, attention, source).eval()
        model.tie_weights()
        if source.config.get("tie_word_embeddings") is False:  # transformers ties until it sees a checkpoint
            head = model.get_output_embeddings()
            head.weight = nn.Parameter(torch.empty_like(head.weight))
        return model
    language_model = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    model = _instantiate(AutoModelForCausalLM if language_model else AutoModel, config, attention, source)
    if language_model and _attends_both_ways(model):
        model = _instantiate(AutoModel, build_config(source), attention, source)
    model.eval()
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def _instantiate(builder: Any, config: Any, attention: str, source: ModelSource) -> nn.Module:
    """Build one module, with its own attention where the family has no interface for another one."""
    for implementation in dict.fromkeys((attention, "eager")):
        try:
            with _quiet(), torch.device("meta"), initialization.no_init_weights():
                return builder.from_config(
                    copy.deepcopy(config), dtype=torch.bfloat16, attn_implementation=implementation
                )
        except Exception as error:
            if isinstance(error, KeyError) and implementation == ATTENTION_NAME:
                continue
            raise ConfigError(
                f"'{config.model_type}' does not build: {one_line(error)}", file=source.name
            ) from error
    raise AssertionError("unreachable")


def _attends_both_ways(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", True) is False for module in model.modules())


def build_skeleton(source: ModelSource) -> Skeleton:
    """Build the full module, find its equal layers and keep one of each.

    Raises:
        ConfigError: the module has no list of transformer blocks, or a cache of an unknown kind.
    """
    model = build_module(source)
    _use_traced_experts(model)
    if model.config.is_encoder_decoder:
        return _with_both_stacks(model, source)
    if {"text_config", "vision_config"} <= vars(model.config).keys() and _attends_both_ways(model):
        raise ConfigError(
            f"'{model.config.model_type}' joins a text and a vision model: trace one of the two "
            "(its text_config or vision_config as a configuration of its own)",
            file=source.name,
            path="model_type",
            value=model.config.model_type,
        )
    encoder = _attends_both_ways(model)
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
