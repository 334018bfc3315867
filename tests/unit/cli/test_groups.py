"""Groups of options against a command that spells out the same options."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from dse.cli.groups import add_command


@dataclass(frozen=True)
class Sizes:
    """A group."""

    width: int = typer.Option(3, "--width", min=1)
    names: list[str] = typer.Option([], "--name")
    seed: int = typer.Option(0, "--seed")


@dataclass(frozen=True)
class Luck:
    """A group that shares an option with the first."""

    seed: int = typer.Option(0, "--seed")


def grouped(sizes: Sizes, luck: Luck, what: str = typer.Argument(...)) -> None:
    """Say what was given."""
    assert sizes.seed == luck.seed
    typer.echo((what, sizes.width, sizes.names, luck.seed))


def spelled_out(
    width: int = typer.Option(3, "--width", min=1),
    names: list[str] = typer.Option([], "--name"),
    seed: int = typer.Option(0, "--seed"),
    what: str = typer.Argument(...),
) -> None:
    """Say what was given."""
    typer.echo((what, width, names, seed))


@pytest.mark.parametrize(
    "words",
    [
        ("a",),
        ("a", "--width", "7", "--name", "x", "--name", "y", "--seed", "5"),
        ("--help",),
        (),
        ("a", "--width", "0"),
        ("a", "--height", "1"),
    ],
)
def test_a_group_is_its_options(words: tuple[str, ...]) -> None:
    apps = typer.Typer(), typer.Typer()
    add_command(apps[0], "same", grouped)
    apps[1].command("same")(spelled_out)
    got, expected = (CliRunner().invoke(app, words) for app in apps)
    assert (got.exit_code, got.output) == (expected.exit_code, expected.output)
    assert got.output
