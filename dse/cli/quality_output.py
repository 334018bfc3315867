"""Measured quality beside full precision, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dse.cli.output import table

if TYPE_CHECKING:
    from dse.evaluate.quality import Quality
    from studies.quantizing import Quantized


def show_quality(title: str, result: Quantized, note: str) -> None:
    """Print both rows, and where the weights came from."""
    sample = result.sample
    rows = [
        ("full precision", "16.00", *_texts(result.baseline)),
        ("quantized", f"{result.linear_effective_bits:.2f}", *_texts(result.measured)),
    ]
    what = f"{result.measured.n_tokens} tokens in sequences of {result.measured.sequence_length}"
    table(
        f"{title} on {sample.corpus}: {what}, measured",
        ("", "linear bits", "perplexity", "KL nats", "top-1 agreement"),
        rows,
    )
    if note:
        typer.echo(f"note: {note}")


def _texts(quality: Quality) -> tuple[str, str, str]:
    return f"{quality.perplexity:.3f}", f"{quality.kl_nats:.5f}", f"{quality.top1_agreement_frac:.2%}"
