"""``dse bench emulation``: what rounding weights and emulated forward passes cost."""

from __future__ import annotations

import typer

from dse.cli import options
from dse.cli.output import emit_json, note, table


def emulation(
    model: str = typer.Argument("smollm2-135m-instruct", help="Model with weights."),
    tokens: int = typer.Option(1024, "--tokens", help="Tokens of a forward pass."),
    sequence_length: int = options.SEQUENCE,
    dtype: str = options.DTYPE,
    learned: bool = typer.Option(False, "--learned", help="Also formats whose levels are fitted (k-means)."),
    as_json: bool = options.JSON,
) -> None:
    """Time rounding of all weights, and forwards beside a plain one, torchao and a per-element emulator."""
    from dse.emulate.model import EmulatedModel
    from dse.graph.cache import load_graph
    from dse.graph.units import units_of
    from studies.catalogue import resolve_model
    from studies.weights import with_weights

    options.check_sizes(tokens=tokens, sequence_length=sequence_length)
    source = with_weights(resolve_model(model), note)
    graph = load_graph(source)

    import torch

    from studies import emulation_speed as speed

    assert source.weights is not None
    emulated = EmulatedModel.load(source.weights, graph, units_of(graph, "block"), dtype=dtype)
    shape = (tokens // sequence_length, sequence_length)
    ids = torch.randint(0, graph.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    formats = speed.SCALAR_FORMATS + (speed.LEARNED_FORMATS if learned else ())
    rows = [*speed.forwards(emulated, ids), *speed.rounding(emulated, formats)]
    if as_json:
        emit_json(
            {"model": model, "dtype": dtype, "n_tokens": ids.numel(), "rows": [row.to_json() for row in rows]}
        )
        return
    table(
        f"{model}, {dtype}, {ids.numel()} tokens, {torch.get_num_threads()} threads",
        ("what", "by", "time", "to plain"),
        [(r.name, r.kind, f"{r.time_s:.2f} s", "" if r.ratio is None else f"{r.ratio:.2f} x") for r in rows],
        numeric_from=2,
    )
