"""Options of runtime policies, and how their texts become one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.policy import RuntimePolicy

STATIC = typer.Option(
    False, "--static-activations", help="One calibrated range per linear; activations per tensor, e.g. int8."
)
INTEGER = typer.Option(
    False, "--integer-products", help="Sums of whole numbers, as an integer kernel accumulates (slow)."
)
AT = typer.Option(
    [],
    "--at",
    help="POSITION=WEIGHTS[/ACTIVATIONS]: other formats from a token position on (decode, progressive); "
    "repeatable.",
)
WINDOW = typer.Option(0, "--kv-window", help="Newest positions of the cache that stay in full precision.")
SINKS = typer.Option(0, "--kv-sinks", help="First positions of the cache that stay in full precision.")
KEYS = typer.Option(
    0, "--keys-per-channel", help="Tokens that share a scale in each channel of the keys; 0: per token."
)
QUERIES = typer.Option(None, "--queries", help="Format of queries in the attention products.")
PROBABILITIES = typer.Option(None, "--probabilities", help="Format of attention probabilities.")
SOFTMAX = typer.Option(None, "--softmax-bits", help="Probabilities as powers of two of so many bits.")


def policy_of(
    *,
    static_activations: bool,
    integer_products: bool,
    at: list[str],
    window: int,
    sinks: int,
    key_group: int,
    queries: str | None,
    probabilities: str | None,
    softmax_bits: int | None,
) -> RuntimePolicy:
    """Return the policy that the options say.

    Raises:
        ConfigError: a text of ``--at`` that is no position and format, or a value that is not allowed.
    """
    from dse.policy import RuntimePolicy

    cache: dict[str, Any] = {"window": window, "sinks": sinks, "queries": queries}
    cache |= {"probabilities": probabilities, "softmax_bits": softmax_bits}
    if key_group:
        cache |= {"keys_per_channel": True, "key_group": key_group}
    return RuntimePolicy.from_json(
        {
            "cache": cache,
            "static_activations": static_activations,
            "integer_products": integer_products,
            "phases": [_phase(text) for text in at],
        }
    )


def _phase(text: str) -> dict[str, Any]:
    position, _, formats = text.partition("=")
    weights, _, activations = formats.partition("/")
    if not position.isdigit() or not weights:
        raise ConfigError(f"must be POSITION=WEIGHTS[/ACTIVATIONS], but is '{text}'", path="--at")
    return {"start": int(position), "weights": weights, "activations": activations or None}
