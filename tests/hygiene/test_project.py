"""The project as a whole: light start, true README, honest packaging."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "optuna", "ortools", "plotly", "networkx", "pandas", "scipy")


def loaded_after(code: str) -> set[str]:
    """Names of the heavy libraries that are loaded once ``code`` has run in a fresh interpreter."""
    report = f"print(*[n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    probe = f"import sys\n{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def command(*words: str) -> str:
    """Code that runs the command line in this interpreter and swallows its exit and output."""
    lines = (
        "import contextlib, io",
        "from dse.cli.main import app",
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):",
        f"    app({list(words)!r})",
    )
    return "\n".join(lines)


@pytest.mark.parametrize(
    "code",
    [
        "import dse",
        command("--help"),
        command("run", "--help"),
        command("devices"),
        command("devices", "nvidia_h100_sxm"),
        command("models"),
    ],
)
def test_light_commands_load_no_heavy_library(code: str) -> None:
    assert loaded_after(code) == set()


def test_readme_commands_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    readme = (ROOT / "README.md").read_text().splitlines()
    line = next(text for text in ci if text.endswith("-m tests"))
    assert line in [text.strip() for text in readme]


def test_all_packages_are_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    tops = ("hardware_specs", "cost_models", "dse", "studies", "reports")
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in tops
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == listed


def test_files_stay_small() -> None:
    """The style budget: no source file over 500 lines."""
    tops = ("hardware_specs", "cost_models", "dse", "studies", "reports", "tests")
    long = {
        str(path.relative_to(ROOT)): n
        for top in tops
        for path in (ROOT / top).rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 500
    }
    assert long == {}
