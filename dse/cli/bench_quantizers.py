"""``dse bench quantizers``: quantizers on a real model over calibration seeds, with bars and orderings."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean
from typing import TYPE_CHECKING

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table
from dse.errors import ConfigError

if TYPE_CHECKING:
    from studies.quantizers import Bar, Claim, Results, RowResult


def quantizers(
    model: str = typer.Argument("smollm2-135m-instruct", help="Model with weights, of the Llama family."),
    row: list[str] = typer.Option([], "--row", help="Only rows whose name contains this; repeatable."),
    seed: list[int] = typer.Option([], "--seed", help="Calibration seed; repeatable; by default 0, 1, 2."),
    tokens: int = typer.Option(4096, "--tokens", help="Evaluation tokens."),
    sequence_length: int = options.SEQUENCE,
    as_json: bool = options.JSON,
) -> None:
    """Measure every quantizer at every seed (half an hour per seed on one core; finished rows are kept)."""
    from dataclasses import replace

    from dse.cli.progress import ConsoleProgress
    from dse.graph.cache import load_graph
    from studies import quantizers as study
    from studies.catalogue import resolve_model
    from studies.weights import with_weights

    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    wanted = [name for name in study.ROWS if not row or any(part in name for part in row)]
    if not wanted:
        raise ConfigError(f"no row is called '{row[0]}'", path="--row", value=row[0], allowed=study.ROWS)
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)
    quality = replace(study.default_quality(), tokens=tokens, sequence_length=sequence_length)
    results: list[RowResult] = []
    with ConsoleProgress() as progress:
        for name in wanted:
            for number in seed or study.SEEDS:
                progress.step(f"{name}, seed {number}")
                results += study.run_row(study.ROWS[name], number, source, graph, quality, progress.advance)
    found = study.by_row(results)
    if as_json:
        emit_json(_document(model, results, found))
        return
    _show_rows(model, found)
    _show_verdicts(found)


def _document(model: str, results: list[RowResult], found: Results) -> dict[str, object]:
    from studies import quantizers as study

    return {
        "model": model,
        "rows": [asdict(entry) | {"increase_frac": entry.increase_frac} for entry in results],
        "claims": [
            {"text": claim.text, "holds_by_seed": study.claim_holds(claim, found)} for claim in study.CLAIMS
        ],
        "bars": [
            {"text": bar.text, "increase_and_limit_frac_by_seed": study.bar_margin(bar, found)}
            for bar in study.BARS
        ],
    }


def _show_rows(model: str, found: Results) -> None:
    first = next(iter(next(iter(found.values())).values()))
    seeds = sorted({number for entries in found.values() for number in entries})
    table(
        f"{model}: perplexity over {first.baseline:.3f} of full precision, {first.n_tokens} tokens, measured",
        ("weights", "activations", "linear bits", *(f"seed {number}" for number in seeds), "KL nats"),
        [
            (
                name,
                activations,
                f"{next(iter(entries.values())).linear_bits:.2f}",
                *(f"{entries[number].increase_frac:+.1%}" for number in seeds),
                f"{mean(entry.kl_nats for entry in entries.values()):.4f}",
            )
            for (name, activations), entries in found.items()
        ],
    )


def _show_verdicts(found: Results) -> None:
    from studies import quantizers as study

    lines = [line for bar in study.BARS if (line := _bar_line(bar, found)) is not None]
    lines += [line for claim in study.CLAIMS if (line := _claim_line(claim, found)) is not None]
    if lines:
        table("Bars and expected orderings", ("", "at how many seeds"), lines)


def _bar_line(bar: Bar, found: Results) -> tuple[str, str] | None:
    from studies.quantizers import bar_margin

    margins = bar_margin(bar, found).values()
    if not margins:
        return None
    return bar.text, f"{sum(value <= limit for value, limit in margins)} of {len(margins)}"


def _claim_line(claim: Claim, found: Results) -> tuple[str, str] | None:
    from studies.quantizers import claim_holds

    holds = claim_holds(claim, found).values()
    return (claim.text, f"{sum(holds)} of {len(holds)}") if holds else None
