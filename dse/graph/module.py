"""The whole module of a configuration, on the meta device: the models of its family that transformers has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    initialization,
)
from transformers.integrations.moe import ExpertsInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from dse.errors import ConfigError
from dse.graph.check import check_given, check_values
from dse.graph.kernels import ATTENTION_NAME, EXPERTS_NAME, routed_experts, traced_attention
from dse.graph.source import ModelSource


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
    if language_model and attends_both_ways(model):
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


def attends_both_ways(model: nn.Module) -> bool:
    """Return whether any part of a module sees positions after its own."""
    return any(getattr(module, "is_causal", True) is False for module in model.modules())


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error's text on one line of at most ``limit`` characters, or the name of its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
