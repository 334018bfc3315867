"""Values that no architecture can have, told before transformers fails over them in its own words."""

from __future__ import annotations

import inspect
from typing import Any

from dse.errors import ConfigError

COUNTS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    *(
        "intermediate_size",
        "head_dim",
        "n_embd",
        "n_layer",
        "n_head",
        "d_model",
        "d_ff",
        "d_kv",
        "num_layers",
    ),
    *("num_heads", "num_experts_per_tok", "num_local_experts", "num_experts", "n_routed_experts"),
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
ESSENTIAL = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
OLD_ROPE_TYPES = ("su", "mrope")  # names that published files have and transformers reads
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")


def check_values(config: dict[str, Any], file: str) -> None:
    """Refuse counts below 1, heads and experts that do not fit each other, and unknown activations.

    Raises:
        ConfigError: the text names the key.
    """
    for key in COUNTS:
        value = config.get(key)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"must be at least 1, but got {value}", file=file, path=key, value=value)
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise ConfigError(
            f"must divide the {heads} attention heads, but got {shared}",
            file=file,
            path="num_key_value_heads",
            value=shared,
        )
    chosen, known = config.get("num_experts_per_tok"), [config[key] for key in EXPERTS if key in config]
    if isinstance(chosen, int) and known and isinstance(known[0], int) and chosen > known[0]:
        raise ConfigError(
            f"a token cannot go to {chosen} of {known[0]} experts",
            file=file,
            path="num_experts_per_tok",
            value=chosen,
        )
    _check_rotation(config, file)
    for key in ACTIVATIONS:
        _check_activation(config.get(key), key, file)


def check_given(config: dict[str, Any], file: str) -> None:
    """Refuse a configuration that leaves out a size which transformers would fill in without a word.

    Only the sizes that the family has, under its own names; composite configurations have none.

    Raises:
        ConfigError: the text names all missing keys.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        return
    family = CONFIG_MAPPING[config["model_type"]]
    own_names = family.attribute_map or {}
    known = inspect.signature(family).parameters.keys() | own_names.keys()
    pairs = [(key, own_names.get(key, key)) for key in ESSENTIAL if key in known]
    missing = [own for key, own in pairs if key not in config and own not in config]
    if missing:
        raise ConfigError(
            f"does not give {', '.join(missing)} (transformers would take those of some {family.model_type})",
            file=file,
        )


def _check_rotation(config: dict[str, Any], file: str) -> None:
    """Refuse an unknown way of scaling rotary positions."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for path in ("rope_scaling", "rope_parameters"):
        settings = config.get(path)
        if not isinstance(settings, dict):
            continue
        key = "rope_type" if "rope_type" in settings else "type"
        value, allowed = settings.get(key), ("default", *OLD_ROPE_TYPES, *ROPE_INIT_FUNCTIONS)
        if isinstance(value, str) and value not in allowed:
            raise ConfigError(
                f"unknown rope type '{value}'",
                file=file,
                path=f"{path}.{key}",
                value=value,
                allowed=sorted(allowed),
            )


def _check_activation(value: Any, key: str, file: str) -> None:
    if not isinstance(value, str):
        return
    from transformers.activations import ACT2CLS

    if value not in ACT2CLS:
        raise ConfigError(
            f"unknown activation '{value}'", file=file, path=key, value=value, allowed=sorted(ACT2CLS)
        )
