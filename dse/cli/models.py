"""``dse models``: the catalogue of architectures, and bringing the demo checkpoint."""

from __future__ import annotations

from typing import Any

import typer

from dse.cli.options import JSON
from dse.cli.output import emit_json, note, si, table
from dse.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("models")(models)


def models(
    name: str | None = typer.Argument(None, help="A catalogue name, or 'fetch' to bring a checkpoint."),
    fetched: str | None = typer.Argument(None, help="With 'fetch': the catalogue name to bring."),
    as_json: bool = JSON,
) -> None:
    """List the catalogue, show one model, or fetch a checkpoint (`dse models fetch NAME`)."""
    from studies.catalogue import model_names

    if name == "fetch":
        _fetch(fetched, as_json=as_json)
        return
    documents = [_document(entry) for entry in (model_names() if name is None else (name,))]
    if as_json:
        emit_json({"models": documents} if name is None else documents[0])
        return
    rows = [
        (
            document["name"],
            document["family"],
            si(document["parameters"], ""),
            f"dse models fetch {document['name']}" if document["checkpoint"] else "architecture only",
        )
        for document in documents
    ]
    table("Models", ("model", "family", "parameters", "weights"), rows, numeric_from=4)
    if name is not None:
        document = documents[0]
        typer.echo(f"{document['parameters']:,} parameters: {document['parameters_source']}")
        typer.echo(document["note"])
        for key, value in document["config"].items():
            typer.echo(f"  {key}: {value}")


def _document(name: str) -> dict[str, Any]:
    from studies.catalogue import catalogue_entry

    entry = catalogue_entry(name)
    return {
        "name": name,
        "family": entry.family,
        "parameters": entry.parameters.value,
        "parameters_source": entry.parameters.source,
        "checkpoint": entry.checkpoint,
        "note": entry.note,
        "config": entry.config,
    }


def _fetch(name: str | None, *, as_json: bool) -> None:
    from studies.catalogue import catalogue_entry, model_names
    from studies.weights import fetch_checkpoint

    if name is None:
        have = [entry for entry in model_names() if catalogue_entry(entry).checkpoint]
        raise ConfigError(f"say which model to fetch: dse models fetch {' | '.join(have)}")
    folder = fetch_checkpoint(name, note)
    if as_json:
        emit_json({"model": name, "folder": str(folder)})
    else:
        typer.echo(str(folder))
