"""Values that no architecture can have, told before transformers fails over them in its own words."""

from __future__ import annotations

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
    for key in ACTIVATIONS:
        _check_activation(config.get(key), key, file)


def _check_activation(value: Any, key: str, file: str) -> None:
    if not isinstance(value, str):
        return
    from transformers.activations import ACT2CLS

    if value not in ACT2CLS:
        raise ConfigError(
            f"unknown activation '{value}'", file=file, path=key, value=value, allowed=sorted(ACT2CLS)
        )
