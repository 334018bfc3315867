"""The ``dse`` program: registers the commands and turns expected errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys

import typer

from dse.cli import (
    bench,
    calibrate,
    capacity,
    cost,
    devices,
    evaluate,
    models,
    plan,
    quantize,
    report,
    run,
    search,
    sensitivity,
    trace,
)
from dse.cli.output import fail
from dse.errors import DseError

INTERRUPTED = 130
CHATTY = ("torchao", "torch.utils._pytree")  # warn when transformers looks which libraries are installed

app = typer.Typer(
    name="dse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for module in (
    run,
    search,
    models,
    devices,
    trace,
    cost,
    sensitivity,
    plan,
    evaluate,
    quantize,
    report,
    bench,
    calibrate,
    capacity,
):
    module.register(app)


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of expected errors."),
) -> None:
    """Which precision for every part of a model, on which devices, and what will it cost?"""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["DSE_DEBUG"] = "1" if debug else os.environ.get("DSE_DEBUG", "")


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 bad input, 3 no plan, 130 interrupted."""
    try:
        app()
    except DseError as error:
        if os.environ.get("DSE_DEBUG"):
            raise
        sys.exit(fail(str(error), error.exit_code))
    except SystemExit as error:
        # typer turns Ctrl-C into this exit code without a word
        if error.code == INTERRUPTED:
            fail("interrupted; finished work is kept, --resume goes on", INTERRUPTED)
        raise
    except BrokenPipeError:
        # The reader of our output (head, less) left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
