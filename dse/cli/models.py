"""``dse models``: the catalogue of architectures, and bringing the demo checkpoint."""

from __future__ import annotations

import typer

from dse.cli.options import JSON
from dse.cli.output import emit_json, note, si, table
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("models")(models)


def models(
    name: str = typer.Argument(None, help="A catalogue name, or 'fetch' to bring a checkpoint."),
    fetched: str = typer.Argument(None, help="With 'fetch': the catalogue name to bring."),
    as_json: bool = JSON,
) -> None:
    """List the catalogue, show one model, or fetch a checkpoint (`dse models fetch NAME`)."""
    from studies.catalogue import catalogue, model_entry

    if name == "fetch":
        _fetch(fetched, as_json=as_json)
        return
    entries = catalogue() if name is None else (model_entry(name),)
    if as_json:
        documents = [entry.to_json() for entry in entries]
        emit_json({"models": documents} if name is None else documents[0])
        return
    table(
        "Models",
        ("model", "type", "parameters", "layers", "hidden", "weights", "source of the count"),
        [
            (
                entry.name,
                entry.model_type,
                si(entry.parameters, ""),
                str(entry.n_layers),
                str(entry.hidden_size),
                "dse models fetch" if entry.checkpoint else "architecture only",
                entry.parameters_source,
            )
            for entry in entries
        ],
        numeric_from=7,
    )


def _fetch(name: str | None, *, as_json: bool) -> None:
    from studies.catalogue import catalogue, fetch_checkpoint

    if name is None:
        have = [entry.name for entry in catalogue() if entry.checkpoint]
        raise ConfigError(f"say which model to fetch: dse models fetch {' | '.join(have)}")
    folder = fetch_checkpoint(name, note)
    if as_json:
        emit_json({"model": name, "folder": str(folder)})
    else:
        typer.echo(str(folder))
