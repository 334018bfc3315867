"""``dse search``: the main job from flags instead of a study file."""

from __future__ import annotations

from pathlib import Path

import typer

from dse.cli import options
from dse.cli.groups import add_command
from dse.cli.run import RunOptions, execute


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, "search", search)


def search(
    model: str = options.MODEL,
    cluster: str = options.CLUSTER,
    workload: str = options.WORKLOAD,
    runtime: str = options.RUNTIME,
    granularity: str = options.GRANULARITY,
    precisions: str = options.PRECISIONS,
    trials: int = typer.Option(60, min=0, help="Optuna trials after the exact solutions."),
    tokens: int = options.TOKENS,
    sequence_length: int = options.SEQUENCE,
    corpus: str | None = options.CORPUS,
    dtype: str = options.DTYPE,
    seed: int = options.SEED,
    *,
    how: RunOptions,
) -> None:
    """Search precisions and partition of a model on a cluster; the same as `dse run`, from flags."""
    from studies.schema import QualitySpec, SearchSpec, Study, load_workload

    choices = tuple(precision.name for precision in options.precisions_of(precisions))
    study = Study(
        name=f"search-{Path(model).name}",
        model=model,
        cluster=cluster,
        workload=load_workload(workload),
        precisions=choices,
        uniform=choices,
        runtime=runtime,
        granularity=granularity,
        seed=seed,
        quality=QualitySpec(corpus=corpus, tokens=tokens, sequence_length=sequence_length, dtype=dtype),
        search=SearchSpec(trials=trials),
    )
    execute(study, how)
