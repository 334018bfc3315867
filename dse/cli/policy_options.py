"""The group of options of runtime policies, and how their texts become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from dse.errors import ConfigError

if TYPE_CHECKING:
    from dse.policy import RuntimePolicy


@dataclass(frozen=True)
class PolicyOptions:
    """What a runtime does with activations, with positions and with the cache."""

    static_activations: bool = typer.Option(
        False,
        "--static-activations",
        help="One calibrated range per linear; activations per tensor, e.g. int8.",
    )
    integer_products: bool = typer.Option(
        False, "--integer-products", help="Sums of whole numbers, as an integer kernel accumulates (slow)."
    )
    at: list[str] = typer.Option(
        [],
        "--at",
        help="POSITION=WEIGHTS[/ACTIVATIONS]: other formats from a token position on (decode, progressive); "
        "repeatable.",
    )
    kv_window: int = typer.Option(
        0, "--kv-window", help="Newest positions of the cache that stay in full precision."
    )
    kv_sinks: int = typer.Option(
        0, "--kv-sinks", help="First positions of the cache that stay in full precision."
    )
    keys_per_channel: int = typer.Option(
        0, "--keys-per-channel", help="Tokens that share a scale in each channel of the keys; 0: per token."
    )
    queries: str | None = typer.Option(None, "--queries", help="Format of queries in the attention products.")
    probabilities: str | None = typer.Option(
        None, "--probabilities", help="Format of attention probabilities."
    )
    softmax_bits: int | None = typer.Option(
        None, "--softmax-bits", help="Probabilities as powers of two of so many bits."
    )

    def policy(self) -> RuntimePolicy:
        """Return the policy that the options say.

        Raises:
            ConfigError: a text of ``--at`` that is no position and format, or a value that is not allowed.
        """
        from dse.policy import RuntimePolicy

        cache: dict[str, Any] = {
            "window": self.kv_window,
            "sinks": self.kv_sinks,
            "queries": self.queries,
            "probabilities": self.probabilities,
            "softmax_bits": self.softmax_bits,
        }
        if self.keys_per_channel:
            cache |= {"keys_per_channel": True, "key_group": self.keys_per_channel}
        return RuntimePolicy.from_json(
            {
                "cache": cache,
                "static_activations": self.static_activations,
                "integer_products": self.integer_products,
                "phases": [_phase(text) for text in self.at],
            }
        )


def _phase(text: str) -> dict[str, Any]:
    position, _, formats = text.partition("=")
    weights, _, activations = formats.partition("/")
    if not position.isdigit() or not weights:
        raise ConfigError(f"must be POSITION=WEIGHTS[/ACTIVATIONS], but is '{text}'", path="--at")
    return {"start": int(position), "weights": weights, "activations": activations or None}
